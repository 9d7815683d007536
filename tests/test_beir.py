"""BEIR folders: what is read, what is passed over and counted, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from embedforge.data.beir import read_beir, read_corpus
from embedforge.data.convert import from_retrieval, read_source
from embedforge.data.notes import EMPTY_DOCUMENTS
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Source
from readers_for_tests import write_jsonl


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
    assert not data.notes
    first, second = from_retrieval(data)
    assert (first.query, first.positives, first.query_id, first.positive_ids) == (
        "Bern?",
        ("Bern is a city.",),
        "q1",
        ("d1",),
    )
    assert second.positives == ("Paris is larger.",)
    assert read_beir(beir, "train", corpus="all").notes == {EMPTY_DOCUMENTS: 1}


def test_what_is_passed_over_in_a_beir_folder_is_counted(beir, caplog):
    """An empty document, as several public sets have them, stops nothing."""
    write_jsonl(beir / "queries.jsonl", [{"_id": f"q{n}", "text": f"{n}?"} for n in range(1, 5)])
    path = beir / "qrels" / "train.tsv"
    path.write_text(path.read_text() + "q1\td3\t1\nq1\td1\t2\nq2\td1\t-1\nq3\td3\t1\nq4\td1\t0\n")
    notes = {
        "documents without a text, passed over": 1,
        "queries without a relevant document, passed over": 2,
        "judgements given twice, of which one counts": 1,
        "grades below 0, taken as 0": 1,
    }
    for corpus in ("relevant", "judged", "all"):
        data = read_beir(beir, "train", corpus)
        assert data.notes == notes
        assert data.grades == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1, "d1": 0}}
        assert data.queries == {"q1": "1?", "q2": "2?"}
        assert data.documents.keys() == {"d1", "d2"}
    with caplog.at_level(logging.WARNING):
        examples = read_source(Source(path=str(beir), kind="retrieval"), seed=0)
    assert [example.positive_ids for example in examples] == [("d1",), ("d2",)]
    assert "queries without a relevant document, passed over: 2" in caplog.text


def test_whole_numbers_are_ids(beir):
    write_jsonl(beir / "corpus.jsonl", [{"_id": 1, "text": "Bern"}, {"_id": "2", "text": "Paris"}])
    write_jsonl(beir / "queries.jsonl", [{"_id": 7, "text": "Bern?"}])
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n7\t1\t1\n7\t2\t0\n")
    data = read_beir(beir, "train")
    assert (data.documents, data.grades) == ({"1": "Bern", "2": "Paris"}, {"7": {"1": 1, "2": 0}})
    write_jsonl(beir / "corpus.jsonl", [{"_id": 1, "text": "Bern"}, {"_id": "1", "text": "Paris"}])
    with pytest.raises(EmbedforgeError, match="line 2: the _id '1' stands in the file twice"):
        read_beir(beir, "train")
    write_jsonl(beir / "corpus.jsonl", [{"_id": 1.0, "text": "Bern"}])
    with pytest.raises(EmbedforgeError, match=r"line 1: '_id' is an id, and must be text or a whole number"):
        read_beir(beir, "train")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("q9\td1\t1", ("line 5", "no query 'q9'")),
        ("q1\td9\t1", ("line 5", "no document 'd9'")),
        ("q1\td1\tx", ("line 5", "'score' must be a number", "'x'")),
        ("q1\td1\t0.5", ("line 5", "whole number")),
        ("q1 d1 1", ("line 5", "1 cells under 3 columns")),
        ("q1\td2\t3", ("line 5", "query 'q1' and document 'd2' have grade 3 here and 0 further up")),
    ],
)
def test_bad_qrels(beir, line, parts):
    path = beir / "qrels" / "train.tsv"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(EmbedforgeError) as caught:
        read_beir(beir, "train")
    assert str(path) in str(caught.value)
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


def test_a_corpus_without_the_key_of_the_texts(beir):
    write_jsonl(beir / "corpus.jsonl", [{"_id": "d1", "title": "", "txt": "a"}])
    with pytest.raises(EmbedforgeError, match=r"line 1: there is no 'text'.*Did you mean 'txt'"):
        list(read_corpus(beir))


def test_no_query_with_a_relevant_document(beir):
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t0\nq2\td3\t1\n")
    with pytest.raises(EmbedforgeError, match=r"train\.tsv: no query has a relevant document"):
        read_beir(beir, "train")


def test_repeated_corpus_id(beir):
    write_jsonl(beir / "corpus.jsonl", [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}])
    with pytest.raises(EmbedforgeError, match="line 2: the _id 'd1' stands in the file twice"):
        list(read_corpus(beir))
