"""Sources as the command line names them, read with their dirt, and drawn from when they are too many."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datasets_for_tests import TOPICS, sentence, write_jsonl
from embedforge.cli import app
from embedforge.curate.rows import read_rows, write_rows
from embedforge.curate.sources import sources_of
from embedforge.data.convert import read_source
from embedforge.data.sample import sampled
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Source

PAIR = {"query": "q", "positives": ["p"]}


def curate(*arguments: str | Path):
    return CliRunner().invoke(app, ["curate", *map(str, arguments)])


def told(path: Path) -> str:
    return sources_of([str(path)])[0].kind


# --- names and kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PAIR, "examples"),
        ({"anchor": "q", "positive": "p", "text": "x", "label": "y"}, "examples"),
        ({"premise": "a", "hypothesis": "b", "label": 0}, "nli"),
        ({"sentence1": "a", "sentence2": "b", "score": 4.5}, "scored_pairs"),
        ({"text": "a", "label": "b"}, "labels"),
        ({"title": "a", "text": "b"}, "texts"),
    ],
)
def test_the_keys_of_the_rows_tell_the_kind(tmp_path: Path, row: dict, kind: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert told(tmp_path / "a.jsonl") == kind


def test_a_beir_folder_is_known_by_its_judgements(data: Path) -> None:
    (source,) = sources_of([str(data / "retrieval" / "topics")], split="test")
    assert (source.kind, source.split, source.name) == ("retrieval", "test", "")
    assert len(read_rows(source, seed=0).kept) > 5


def test_a_source_can_be_given_a_name(tmp_path: Path) -> None:
    for name in ("train.jsonl", "year=2020.jsonl"):
        write_jsonl(tmp_path / name, [PAIR])
    first, second, third = sources_of(
        [f"nli={tmp_path}/train.jsonl", f"{tmp_path}/year=2020.jsonl", "catalog:nq"]
    )
    assert (first.name, first.path) == ("nli", f"{tmp_path}/train.jsonl")
    assert (second.name, second.path) == ("", f"{tmp_path}/year=2020.jsonl")
    assert third.kind == "examples"


def test_settings_go_to_the_sources_they_are_for(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sts.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 0.9}])
    write_jsonl(tmp_path / "a.jsonl", [PAIR])
    given = [str(tmp_path / "sts.jsonl"), str(tmp_path / "a.jsonl")]
    scored, pairs = sources_of(given, threshold=0.8, cap=5, instruction="Find it")
    assert (scored.threshold, pairs.threshold) == (0.8, 4.0)
    assert (scored.cap, pairs.instruction) == (5, "Find it")
    with pytest.raises(EmbedforgeError, match=r"--threshold 0\.8 is for scored pairs, and no source"):
        sources_of(given[1:], threshold=0.8)
    (entry,) = sources_of(["catalog:sts12"], kind="nli")
    assert entry.kind == "scored_pairs"  # a catalogue entry knows


def test_what_is_not_there_is_said_before_anything_is_done(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [PAIR])
    with pytest.raises(EmbedforgeError, match=r"no such file\. Did you mean 'train.jsonl'"):
        sources_of([f"{tmp_path}/train.jsonl", f"{tmp_path}/trian.jsonl"])


# --- empty texts -----------------------------------------------------------------------------------


def test_empty_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    dirt = [
        {"query": "good", "positives": ["p"], "instruction": " "},
        {"query": "  ", "positives": ["p"]},
        {"query": None, "positives": ["p"]},
        {"query": "no document", "positives": ["", None]},
        {
            "query": "one of two",
            "positives": [{"id": 1, "text": " "}, {"id": 2, "text": "p"}],
            "negatives": [""],
        },
        {"anchor": "a", "positive": "p", "negative": ""},
        {"query": "none", "positives": []},
    ]
    write_jsonl(tmp_path / "a.jsonl", dirt)
    kept, dropped = read_rows(Source(path=str(tmp_path / "a.jsonl")), seed=0)
    assert [(item.query, item.positives, item.positive_ids, item.negatives) for item in kept] == [
        ("good", ("p",), (), ()),
        ("one of two", ("p",), ("2",), ()),
        ("a", ("p",), (), ()),
    ]
    assert [(item.part, item.reason, item.detail) for item in dropped] == [
        ("example", "empty query", "line 2 of a.jsonl"),
        ("example", "empty query", "line 3 of a.jsonl"),
        ("example", "empty document", "line 4 of a.jsonl"),
        ("positive", "empty document", "line 5 of a.jsonl"),
        ("negative", "empty document", "line 5 of a.jsonl"),
        ("negative", "empty document", "line 6 of a.jsonl"),
        ("example", "empty document", "line 7 of a.jsonl"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "", "label": "a"},
        {"text": "a", "label": None},
        {"premise": "a", "hypothesis": " ", "label": 1},
        {"sentence1": "", "sentence2": "b", "score": 5},
    ],
)
def test_rows_of_every_kind_may_be_empty(tmp_path: Path, row: dict) -> None:
    full = {
        "text": "t",
        "label": 0,
        "premise": "p",
        "hypothesis": "h",
        "sentence1": "s",
        "sentence2": "u",
        "score": 5,
    }
    full = {key: full[key] for key in row}
    write_jsonl(tmp_path / "a.jsonl", [full, row])
    kept, dropped = read_rows(Source(path=str(tmp_path / "a.jsonl"), kind=told(tmp_path / "a.jsonl")), seed=0)
    assert len(dropped) == 1
    assert kept


def test_a_broken_row_is_still_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAIR, {"query": "q", "positivs": ["p"]}])
    with pytest.raises(EmbedforgeError, match=r"line 2: unknown key 'positivs'.*Did you mean 'positives'"):
        read_rows(Source(path=str(tmp_path / "a.jsonl")), seed=0)


def test_what_stays_is_written_as_it_was_read(tmp_path: Path) -> None:
    """Byte for byte, whatever stands in the texts, in rows of the form that curation writes."""
    odd = ["a\u2028b", "\u0000 nul", "é e\u0301", "𠀀 😀", '"quoted" \\ \t', "x" * 100_000, " spaces  round "]
    rows = [
        {
            "query": text,
            "query_id": "7",
            "instruction": "i",
            "positives": [{"id": "1", "text": text}],
            "negatives": ["n"],
        }
        for text in odd
    ]
    lines = "".join(
        json.dumps(
            {k: v for k, v in row.items() if v != ["n"]} | {"negatives": [{"id": "2", "text": "n"}]},
            ensure_ascii=False,
        )
        + "\n"
        for row in rows
    )
    (tmp_path / "a.jsonl").write_bytes(lines.replace("\n", "\r\n").encode())
    kept = read_rows(Source(path=str(tmp_path / "a.jsonl")), seed=0).kept
    write_rows(tmp_path / "b.jsonl.gz", kept, "")
    assert gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()).decode() == lines


# --- the command -----------------------------------------------------------------------------------


def test_the_command_takes_sources_of_several_kinds_at_once(tmp_path: Path, data: Path) -> None:
    write_jsonl(tmp_path / "a" / "train.jsonl", [PAIR, PAIR])
    write_jsonl(
        tmp_path / "b" / "train.jsonl", [{"text": sentence(t, i), "label": t} for t in TOPICS for i in (0, 1)]
    )
    out = tmp_path / "out"
    given = [f"{tmp_path}/a/train.jsonl", f"classes={tmp_path}/b/train.jsonl", data / "retrieval" / "topics"]
    result = curate(
        *given, "--split", "test", "--out", out, "--against", data / "sts", "--cap", 3, "--ngram", 0
    )
    assert result.exit_code == 0, result.exception
    assert {path.name for path in out.iterdir()} == {
        "train.jsonl.gz",
        "classes.jsonl.gz",
        "topics.jsonl.gz",
        "report.html",
        "report.json",
        "decontaminated.json",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--languages", "en,,de"], "--languages 'en,,de': an empty code"),
        (["--against", ""], "--against '': an empty name"),
        (["--against-split", "dev"], "--against-split dev has no effect without a folder"),
        (["--query-length", ""], "--query-length takes LEAST:MOST"),
        (["--bm25", "0.5"], "--bm25 0.5 has no effect without --against"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAIR])
    result = curate(tmp_path / "a.jsonl", "--out", tmp_path / "out", *options)
    assert isinstance(result.exception, EmbedforgeError)
    assert message in str(result.exception)


# --- a cap on what may not fit in memory -----------------------------------------------------------


def test_a_sample_is_uniform_and_in_order() -> None:
    drawn = Counter[int]()
    for seed in range(4000):
        sample = sampled(iter(range(13)), 5, random.Random(seed))
        assert sample == sorted(set(sample))
        assert len(sample) == 5
        drawn.update(sample)
    assert all(abs(count - 4000 * 5 / 13) < 4 * 31 for count in drawn.values())  # four standard deviations
    for size in (13, 14):
        assert sampled(iter(range(13)), size, random.Random(0)) == list(range(13))
    assert sampled(iter([]), 3, random.Random(0)) == []


@pytest.mark.parametrize("kind", ["examples", "labels", "texts"])
def test_a_cap_takes_what_the_seed_says(tmp_path: Path, kind: str) -> None:
    rows = [
        {
            "examples": {"query": f"q{i}", "positives": ["p"]},
            "labels": {"text": f"q{i}", "label": "ab"[i % 2]},
        }.get(kind, {"text": f"q{i}"})
        for i in range(60)
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    source = Source(path=str(tmp_path / "a.jsonl"), kind=kind, cap=20, in_batch_negatives=kind != "labels")
    first, again, other = ([e.query for e in read_source(source, seed=seed)] for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 20
    assert first == sorted(first, key=lambda text: int(text[1:]))
    curated = [item.query for item in read_rows(source, seed=0).kept]
    assert curated == first
