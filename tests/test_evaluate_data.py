"""Evaluation reads what training reads: the same labels, ids and checks; what is passed over is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb")

from rich.console import Console

from datasets_for_tests import write_jsonl
from embedforge.curate.evaluation_texts import find_evaluation_tasks
from embedforge.data.convert import read_source
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.run import evaluate
from embedforge.evaluate.tasks import find_tasks
from embedforge.evaluate.terminal import print_scores
from embedforge.recipe import Source


def loaded(folder: Path) -> Any:
    (task,) = find_tasks(str(folder))
    task.load_data()
    return task


def nli_file(folder: Path, labels: list[Any]) -> Path:
    """Premise 0 entails hypothesis 0, and nothing else follows from anything."""
    rows = [{"premise": f"p{n}", "hypothesis": f"h{n}", "label": label} for n, label in enumerate(labels)]
    write_jsonl(folder / "nli" / "x" / "test.jsonl", rows)
    return folder / "nli" / "x"


@pytest.mark.parametrize(
    "labels",
    [
        ["entailment", "neutral", "contradiction"],
        [0, 1, 2],
        ["0", "1", "2"],
        ["Entailment", "not_entailment", "neutral"],
    ],
)
def test_labels_of_nli_mean_what_they_mean_in_training(tmp_path: Path, labels: list[Any]) -> None:
    folder = nli_file(tmp_path, labels)
    assert loaded(folder).dataset["test"]["labels"] == [1, 0, 0]
    examples = read_source(Source(path=str(folder / "test.jsonl"), kind="nli"), seed=0)
    assert [(example.query, example.positives) for example in examples] == [("p0", ("h0",))]


def test_an_unknown_label_of_nli_and_pairs_without_one(tmp_path: Path) -> None:
    with pytest.raises(
        EmbedforgeError, match=r"test\.jsonl, line 2: 'label' is 'true'; known are entailment"
    ):
        loaded(nli_file(tmp_path, ["entailment", "true"]))
    task = loaded(nli_file(tmp_path, [0, 1, -1, "-"]))
    assert task.dataset["test"]["labels"] == [1, 0]
    assert task.notes["pairs without a gold label, passed over"] == 2
    assert [what for what in task.notes if "0 is entailment" in what]


JUDGED = "query-id\tcorpus-id\tscore\nq0\td0\t2\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q0\tnone\t0", r"test\.tsv, line 3: there is no document 'none' in .*corpus\.jsonl"),
        ("none\td0\t1", r"test\.tsv, line 3: there is no query 'none' in .*queries\.jsonl"),
        ("q0\td0\t1", r"test\.tsv, line 3: query 'q0' and document 'd0' have grade 1 here and 2 further up"),
        ("q0\td1\thigh", r"test\.tsv, line 3: 'score' must be a number"),
        (
            "q0\td1\t99999999999999999999",
            r"test\.tsv, line 3: 'score' is 1e\+20; a grade is at most 1,000,000",
        ),
    ],
)
def test_judgements_are_checked_alike_for_every_verb(
    data: Path, tmp_path: Path, line: str, message: str
) -> None:
    folder = Path(shutil.copytree(data / "retrieval", tmp_path / "retrieval")) / "topics"
    (folder / "qrels" / "test.tsv").write_text(JUDGED + line + "\n")
    with pytest.raises(EmbedforgeError, match=message) as trained:
        read_source(Source(path=str(folder), kind="retrieval", split="test"), seed=0)
    with pytest.raises(EmbedforgeError, match=message) as scored:
        loaded(folder)
    assert str(trained.value) == str(scored.value)
    (task,) = find_evaluation_tasks([str(folder)])
    with pytest.raises(EmbedforgeError, match=message):
        [*task.queries(), *task.documents("relevant")]


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (
            "reranking",
            [{"query": "a", "positive": [], "negative": ["b"]}],
            "line 1: no positives for the query",
        ),
        (
            "reranking",
            [{"query": "a", "positive": ["b"], "negative": []}],
            "line 1: no negatives for the query",
        ),
        ("reranking", [{"query": "a", "positive": "b"}], "line 1: no negatives for the query"),
        (
            "reranking",
            [{"query": "a", "positive": "b", "negative": ["b"]}],
            "line 1: 'b' is a positive and a",
        ),
        ("clustering", [{"text": t, "label": "x"} for t in "abcd"], "all 4 records have the label 'x'"),
        ("clustering", [{"text": t, "label": t} for t in "abc"], "3 texts are too few to cluster"),
        ("classification", [{"text": "a", "label": "x"}], "its one text is no test"),
        ("classification", [{"text": "a", "label": "X"}], "line 1: label 'X' of test is not in train"),
        ("classification", [{"text": "a", "label": ["x"]}] * 2, "line 1: 'label' is a list of labels"),
        ("classification", [{"text": "a", "label": "['x', 'y']"}] * 2, "line 1: 'label' is a list of labels"),
        ("sts", [{"sentence1": "a", "sentence2": "b", "score": 1}], "every pair has the score 1"),
        ("sts", [{"sentence1": "a", "sentence2": "", "score": 1}], "line 1: 'sentence2' has no text"),
        ("bitext", [{"sentence1": "a", "sentence2": "b", "lang": "deu"}], "language 'deu' has one pair"),
        ("nli", [{"premise": "a", "hypothesis": "b", "label": 0}], "pairs with and without entailment"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path: Path, kind: str, rows: list[Any], message: str) -> None:
    train = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    write_jsonl(tmp_path / kind / "d" / "train.jsonl", train)
    write_jsonl(tmp_path / kind / "d" / "test.jsonl", rows)
    with pytest.raises(EmbedforgeError, match=message):
        loaded(tmp_path)


def test_candidates_have_every_form_of_documents(tmp_path: Path) -> None:
    """Also the text of a list in a CSV file, which used to be one document with brackets."""
    write_jsonl(
        tmp_path / "reranking" / "d" / "test.jsonl",
        [
            {"query": "a", "positives": [{"title": "T", "text": "b"}], "negative_1": "c", "negative_2": "d"},
            {"query": "a", "positive": "b", "negative": ["c", "d"]},
        ],
    )
    task = loaded(tmp_path)
    texts = [*task.dataset["default"]["test"]["corpus"]["text"]]
    assert texts == ["T b", "c", "d", "b", "c", "d"]
    (found,) = find_evaluation_tasks([str(tmp_path)])
    assert [*found.documents("all")] == texts
    file = tmp_path / "reranking" / "e" / "test.csv"
    file.parent.mkdir()
    file.write_text('query,positive,negative\na,b,"[""c"", ""d""]"\n')
    assert [*loaded(file.parent).dataset["default"]["test"]["corpus"]["text"]] == ["b", "c", "d"]


def test_what_is_passed_over_is_said_on_terminal_page_and_in_results(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data / "retrieval", tmp_path / "retrieval")) / "topics"
    clean = evaluate(["bm25"], str(folder), tmp_path / "clean")
    assert clean.notes == {}
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": 77, "title": "", "text": " "}\n{"_id": "null", "text": null}\n')
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": 8, "text": "unanswered"}\n{"_id": 9, "text": "empty"}\n')
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("8\td0\t-1\n9\t77\t2\nq0\t77\t1\nq0\td0\t2\n")
    found = evaluate(["bm25"], str(folder), tmp_path / "out")
    notes = {
        "judgements given twice, of which one counts": 1,
        "grades below 0, taken as 0": 1,
        "documents without a text, passed over": 2,
        "queries without a relevant document, passed over": 2,
    }
    assert found.score("bm25", "retrieval/topics") == clean.score("bm25", "retrieval/topics")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["notes"] == {"retrieval/topics": notes}
    sentence = (
        "retrieval/topics: judgements given twice, of which one counts: 1; grades below 0, taken as 0: 1; "
    )
    assert sentence in (tmp_path / "out" / "report.html").read_text()
    console = Console(width=300, record=True, file=(tmp_path / "terminal").open("w"))
    print_scores(tmp_path / "out", console)
    assert sentence in console.export_text()
    file = tmp_path / "out" / "tasks" / "bm25" / "retrieval__topics.json"  # as before there were these checks
    older = json.loads(file.read_text()) | {"score": 0.0}
    del older["inputs"]["reader"], older["notes"]
    file.write_text(json.dumps(older))
    again = evaluate(["bm25"], str(folder), tmp_path / "out")
    assert again.score("bm25", "retrieval/topics") == found.score("bm25", "retrieval/topics")
    assert again.notes == {"retrieval/topics": notes}


def test_white_space_makes_no_class(tmp_path: Path) -> None:
    """Else a text would be a negative of those of its own class."""
    file = tmp_path / "classification" / "d" / "test.csv"
    file.parent.mkdir(parents=True)
    file.write_text("text,label\na,x \nb,x\nc,y\nd, y\n")
    (file.parent / "train.csv").write_text("text,label\na,x\nb,y\n")
    assert loaded(file.parent).dataset["test"]["label"] == [0, 0, 1, 1]
    examples = read_source(Source(path=str(file), kind="labels"), seed=0)
    assert [example.positives for example in examples] == [("b",), ("a",), ("d",), ("c",)]


def test_what_is_left_out_of_a_folder_of_tasks_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"sentence1": "a", "sentence2": text, "score": score} for score, text in enumerate("bcd")]
    for name in ("sts/a/test", "sts/b/dev", "STS/c/test", "pairs/d/test", ".old/e/test", "pairs/f/notes"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    assert [task.metadata.name for task in find_tasks(str(tmp_path))] == ["sts/a"]
    assert "left out, without a split 'test': sts/b" in caplog.text
    assert "left out, in a folder of no known type: STS/c, pairs/d; types are: retrieval" in caplog.text
    (tmp_path / "sts" / "a" / "test.csv").write_text("sentence1,sentence2,score\na,b,3\nc,d,1\n")
    with pytest.raises(EmbedforgeError, match=r"test\.jsonl and test\.csv are the same split"):
        loaded(tmp_path / "sts" / "a")
