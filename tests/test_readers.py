"""Files to Records: every format, and every way in which a file can be bad."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from embedforge.data.beir import read_beir, read_corpus
from embedforge.data.convert import from_retrieval
from embedforge.data.fields import example_of, record_of
from embedforge.data.readers import read_records
from embedforge.errors import EmbedforgeError

ROWS = [
    {"query": "capital of France?", "positive": "Paris", "negative": "Lyon"},
    {"query": "Hauptstadt der Schweiz?", "positive": "Bern, „Mutzenstadt“", "negative": "Zürich\u2028am See"},
]


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def read_all(path: Path) -> list[dict]:
    return [record.values for record in read_records(path)]


def examples_of(path: Path) -> list:
    return [*map(example_of, read_records(path))]


def fails(path: Path, *parts: str, read=examples_of) -> str:
    """Reading `path` is an error whose message has all the parts; every message names the file."""
    with pytest.raises(EmbedforgeError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message or path.name in message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    return message


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


@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t"), ("rows.csv.gz", ",")])
def test_csv(tmp_path, name, separator):
    lines = [["query", "positive", "negative"], ["a, b", 'says ""so""', "two\nlines"], ["c", "d", ""]]
    text = "\n".join(separator.join(f'"{cell}"' for cell in line) for line in lines) + "\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    records = list(read_records(path))
    assert records[0].values == {"query": "a, b", "positive": 'says "so"', "negative": "two\nlines"}
    assert records[1].values["negative"] is None
    assert records[1].number == 4  # the first record takes lines 2 and 3
    examples = examples_of(path)
    assert examples[0].negatives == ("two\nlines",)
    assert examples[1].negatives == ()


def test_csv_reads_a_very_long_cell(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,positive\na," + "x" * 200_000 + "\n")
    assert len(examples_of(path)[0].positives[0]) == 200_000


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


def test_csv_with_missing_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,positve\na,b\n")
    fails(path, "line 2", "unknown key 'positve'", "Did you mean 'positive'?")
    path.write_text("query,negative\na,b\n")
    fails(path, "line 2", "there is no 'positives'", "query, negative")


@pytest.mark.parametrize("row", ["a", "a,b,c", 'a,"b'])
def test_csv_with_a_bad_row(tmp_path, row):
    path = tmp_path / "rows.csv"
    path.write_text(f"query,positive\nx,y\n{row}\n")
    fails(path, "line 3")


def test_csv_with_a_repeated_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("query,query\na,b\n")
    fails(path, "line 1", "repeats ['query']")


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


# --- BEIR folders --------------------------------------------------------------------------------


@pytest.fixture
def beir(tmp_path) -> Path:
    folder = tmp_path / "beir"
    write_jsonl(
        folder / "corpus.jsonl.gz",
        [
            {"_id": "d1", "title": "Bern", "text": "is a city.", "metadata": {}},
            {"_id": "d2", "title": "", "text": "Paris is larger."},
            {"_id": "d3", "title": "", "text": ""},
        ],
    )
    write_jsonl(folder / "queries.jsonl", [{"_id": "q1", "text": "Bern?"}, {"_id": "q2", "text": "Paris?"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td2\t1\n"
    )
    return folder


def test_beir(beir):
    data = read_beir(beir, "train")
    assert data.documents == {
        "d1": "Bern is a city.",
        "d2": "Paris is larger.",
    }  # d3 is empty, and not asked for
    first, second = from_retrieval(data)
    assert (first.query, first.positives, first.query_id, first.positive_ids) == (
        "Bern?",
        ("Bern is a city.",),
        "q1",
        ("d1",),
    )
    assert second.positives == ("Paris is larger.",)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("q9\td1\t1", ("line 5", "no query 'q9'")),
        ("q1\td9\t1", ("line 5", "no document 'd9'")),
        ("q1\td1\tx", ("line 5", "'score' must be a number", "'x'")),
        ("q1\td1\t0.5", ("line 5", "whole number")),
        ("q1 d1 1", ("line 5", "1 cells under 3 columns")),
        ("q1\td3\t1", ("line 3", "'text' has no text")),
    ],
)
def test_bad_qrels(beir, line, parts):
    path = beir / "qrels" / "train.tsv"
    path.write_text(path.read_text() + line + "\n")
    where = beir / "corpus.jsonl.gz" if "d3" in line else path
    with pytest.raises(EmbedforgeError) as caught:
        read_beir(beir, "train")
    assert str(where) in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_bad_beir_folder(beir):
    with pytest.raises(EmbedforgeError, match=r"the splits are: train\. Did you mean 'train'\?"):
        read_beir(beir, "trian")
    with pytest.raises(EmbedforgeError, match="Did you mean 'beir'"):
        read_beir(beir.with_name("bier"), "train")
    (beir / "qrels" / "train.tsv").write_text("q1\t0\td1\t1\nq1\t0\td2\t1\n")
    with pytest.raises(EmbedforgeError, match="the header must be query-id, corpus-id, score"):
        read_beir(beir, "train")
    (beir / "queries.jsonl").unlink()
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    with pytest.raises(EmbedforgeError, match=r"queries\.jsonl: there is no such file"):
        read_beir(beir, "train")


def test_repeated_corpus_id(beir):
    write_jsonl(beir / "corpus.jsonl", [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}])
    with pytest.raises(EmbedforgeError, match="line 2: the _id 'd1' stands in the file twice"):
        list(read_corpus(beir))
