"""Files to Records: every format, and every way in which a file can be bad."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from embedforge.data.fields import record_of
from embedforge.data.readers import read_records
from embedforge.errors import EmbedforgeError
from readers_for_tests import examples_of, fails, read_all, write_jsonl

ROWS = [
    {"query": "capital of France?", "positive": "Paris", "negative": "Lyon"},
    {"query": "Hauptstadt der Schweiz?", "positive": "Bern, „Mutzenstadt“", "negative": "Zürich\u2028am See"},
]


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_jsonl(tmp_path, name):
    assert read_all(write_jsonl(tmp_path / name, ROWS)) == ROWS


def test_jsonl_passes_over_blank_lines_and_a_byte_order_mark_and_keeps_line_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": "a", "positive": "b"}\r\n\r\n{"query": "c", "positive": "d"}')
    records = list(read_records(path))
    assert [record.number for record in records] == [1, 3]
    assert records[0].values["query"] == "a"


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"query": "q", "positives": ["p1", "p2"], "negatives": None}, {"query": "r", "positives": ["p"]}]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [example.positives for example in examples_of(path)] == [("p1", "p2"), ("p",)]

    parquet.write_table(pyarrow.Table.from_pylist([{"query": "q", "positive": "p"}, {"query": "  "}]), path)
    fails(path, "row 2", "positive")
    path.write_bytes(path.read_bytes()[:50])
    fails(path, "not a readable Parquet file")


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "rows.parquet"), ("datasets", "hub:owner/name")])
def test_missing_extra_names_the_install_command(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    path = name if name.startswith("hub:") else tmp_path / name
    with pytest.raises(EmbedforgeError, match=re.escape("pip install 'embedforge[data]'")):
        list(read_records(path))


def test_hub_dataset_streams_and_names_its_classes(tmp_path, monkeypatch):
    """A folder stands in for the hub: `datasets` reads both the same way."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    table.to_parquet(tmp_path / "owner" / "name" / "train.parquet")
    monkeypatch.chdir(tmp_path)
    assert [r.values for r in read_records("hub:owner/name")] == [
        {"text": "a", "label": "yes"},
        {"text": "b", "label": -1},
    ]
    with pytest.raises(EmbedforgeError, match="hub:owner/name: cannot read the split 'nope'"):
        list(read_records("hub:owner/name", split="nope"))


def test_hub_name_must_have_an_owner():
    with pytest.raises(EmbedforgeError, match="hub:owner/name"):
        list(read_records("hub:banana"))


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "a", "positive": "b"}\n' * 3 + "garbage\n")
    assert len(list(itertools.islice(read_records(path), 3))) == 3


# --- files that are bad --------------------------------------------------------------------------


def test_missing_file_offers_the_nearest_name(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    fails(tmp_path / "trian.jsonl", "there is no such file", "Did you mean 'train.jsonl'?")
    fails(tmp_path / "nowhere" / "train.jsonl", "nor the folder")


def test_folder_in_place_of_a_file(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    fails(tmp_path, "this is a folder", "train.jsonl")
    write_jsonl(tmp_path / "corpus.jsonl", ROWS)
    fails(tmp_path, "kind: retrieval")


@pytest.mark.parametrize("name", ["rows.xml", "rows.json", "rows", "rows.parquet.gz"])
def test_unknown_format(tmp_path, name):
    (tmp_path / name).write_text("[]")
    fails(tmp_path / name, ".jsonl, .csv, .tsv")


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.jsonl", b""), ("rows.jsonl", b"\n \n"), ("rows.csv", b""), ("rows.csv", b"query,positive\n"),
     ("rows.jsonl.gz", gzip.compress(b"", mtime=0))],
)  # fmt: skip
def test_empty_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    fails(tmp_path / name, "there is no record in it")


def test_half_a_json_line(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 30])
    fails(path, "line 2", "not valid JSON", "cut off")


@pytest.mark.parametrize("line", ['"text"', "3", "[1, 2]", "null"])
def test_a_line_that_is_no_object(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    fails(path, "line 2", "a record is a JSON object")


def test_invalid_utf8(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"query": "a", "positive": "b"}\n{"query": "Z\xfcrich", "positive": "b"}\n')
    fails(path, "line 2", "not valid UTF-8", "0xfc", "byte 12")


@pytest.mark.parametrize("spoil", [lambda data: data[:-10], lambda data: b"not gzip", lambda data: data[:15]])
def test_broken_gzip(tmp_path, spoil):
    path = write_jsonl(tmp_path / "rows.jsonl.gz", ROWS * 50)
    path.write_bytes(spoil(path.read_bytes()))
    fails(path, "gzip data is broken")


def test_unreadable_file(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    fails(path, "cannot be opened (Permission denied)")


# --- records that are bad ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"query": 3, "positive": "b"}, ("'query' must be text", "3 (int)")),
        ({"query": "a", "positive": {"txt": "b"}}, ("unknown key 'txt'", "Did you mean 'text'?")),
        ({"query": "a", "positives": [["b"]]}, ("'positives[0]' must be text", "(list)")),
        ({"query": "a", "positives": "b", "negatives": ["c", 4]}, ("'negatives[1]' must be text", "4 (int)")),
        ({"query": "a", "positives": []}, ("no positives",)),
        ({"query": "a", "positives": None}, ("'positives' is empty",)),
        ({"query": "a"}, ("there is no 'positives'",)),
        ({"positive": "a"}, ("there is no 'query'",)),
        ({"query": " \n", "positive": "b"}, ("'query' has no text", "' \\n'")),
        ({"query": "a", "positive": "\t"}, ("'positive[0]' has no text",)),
        ({"query": "a", "positives": ["b", ""]}, ("'positives[1]' has no text",)),
        ({"query": "a", "positives": ["b"], "negatves": []}, ("unknown key 'negatves'", "'negatives'?")),
        ({"query": "a", "anchor": "a", "positive": "b"}, ("both 'query' and 'anchor'",)),
        ({"query": "a", "positive": "b", "negative": "c", "negative_1": "d"}, ("negative, negative_1",)),
        ({"query": "a", "positive": "b", "negative_" + "9" * 5000: "c"}, ("unknown key 'negative_9999",)),
        ({"query": "a", "positives": [{"text": "b", "id": "1"}, "c"]}, ("1 of 2 documents have an id",)),
        ({"query": "a", "positives": [{"text": "b", "id": True}]}, ("positives[0].id", "True")),
        ({"query": "a", "positive": "b", "instruction": 5}, ("'instruction' must be text",)),
        ({"query": "a", "positive": "\ud83d"}, ("surrogate",)),
    ],
)
def test_bad_example(tmp_path, record, parts):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(record) + "\n")
    fails(path, "line 2", *parts)


def test_all_forms_of_an_example(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl",
        [
            {"anchor": "a", "positive": "b", "negative": ["c", "d"]},
            {"anchor": "a", "positive": "b", "negative_10": "z", "negative_2": "y", "negative_3": None},
            {
                "query": "a",
                "query_id": 7,
                "instruction": "Find",
                "positives": [{"id": 1, "title": "T", "text": "b"}],
            },
        ],
    )
    pair, numbered, full = examples_of(path)
    assert (pair.query, pair.positives, pair.negatives) == ("a", ("b",), ("c", "d"))
    assert numbered.negatives == ("y", "z")
    assert full.positives == ("T b",)
    assert (full.query_id, full.positive_ids, full.instruction) == ("7", ("1",), "Find")


def test_an_example_survives_writing_and_reading(tmp_path):
    rows = [
        {"query": "a", "query_id": "7", "instruction": "Find", "positives": [{"id": "1", "text": "b"}],
         "negatives": [{"id": "2", "text": "c"}, {"id": "3", "text": "d"}]},
        {"query": "a", "positives": ["b", "c"]},
    ]  # fmt: skip
    examples = examples_of(write_jsonl(tmp_path / "in.jsonl", rows))
    written = [record_of(example) for example in examples]
    assert written == rows
    assert examples_of(write_jsonl(tmp_path / "out.jsonl", written)) == examples
