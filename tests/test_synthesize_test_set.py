"""`synthesize --test`: held-out passages become a retrieval test set that `evaluate` reads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the extra 'synthesize' is not installed")

from typer.testing import CliRunner

from embedforge.cli import app
from embedforge.data.beir import read_corpus, read_qrels, read_queries
from embedforge.data.task_folder import find_datasets, task_name
from embedforge.errors import EmbedforgeError
from embedforge.synthesize.run import SynthesisSettings, read_documents, synthesize
from embedforge.synthesize.test_set import TestSet
from endpoint_for_tests import Act, sentence, serve


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Thirty files of three headed passages each, no two alike."""
    folder = tmp_path / "my docs"
    folder.mkdir()
    for number in range(30):
        draw = random.Random(number)
        parts = [f"# Part {part} of {number}\n\n{sentence(draw, 150)} file{number}." for part in range(3)]
        (folder / f"{number:02}.md").write_text("\n\n".join(parts))
    return folder


def asked_passage(number: int, body: dict[str, Any]) -> Act:
    passage = body["messages"][0]["content"].split("<passage>\n")[1].split("\n</passage>")[0]
    words = random.Random(body["seed"]).sample(passage.split(), 6)
    return Act(text=json.dumps({"query": " ".join(words)}))


def run_verb(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["synthesize", "--model", "tiny", *arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_held_out_passages_are_asked_about_and_searched_among_all(tmp_path, documents):
    with serve(asked_passage) as server:
        train = run_verb(
            *("--endpoint", server.url, "--corpus", str(documents), "--examples", "200"),
            *("--out", str(tmp_path / "train")),
        )
        trained_on = len(server.bodies)
        test = run_verb(
            *("--endpoint", server.url, "--corpus", str(documents), "--examples", "20", "--test"),
            *("--out", str(tmp_path / "test")),
        )
        assert len(server.bodies) == trained_on + 20
    assert "passages.jsonl, for embedforge mine" in train
    assert "embedforge evaluate MODEL bm25 --tasks" in test

    (dataset,) = find_datasets(tmp_path / "test")
    assert task_name(dataset) == "retrieval/my-docs"
    texts, queries = dict(read_corpus(dataset)), dict(read_queries(dataset))
    judged = list(read_qrels(dataset, "test"))
    assert len(queries) == len(judged) > 10
    for judgement in judged:
        words = set(queries[judgement.query_id].split())
        assert words <= set(texts[judgement.document_id].split())

    rows = [json.loads(line) for line in (tmp_path / "train" / "examples.jsonl").read_text().splitlines()]
    passages = (tmp_path / "train" / "passages.jsonl").read_text().splitlines()
    known = {json.loads(line)["_id"] for line in passages}
    right = {judgement.document_id for judgement in judged}
    assert {row["positives"][0]["id"] for row in rows} <= known < set(texts)
    assert right.isdisjoint(known)  # no query is written for a passage that training sees
    assert not (tmp_path / "test" / "examples.jsonl").exists()


def test_a_test_set_and_training_data_do_not_share_a_folder(tmp_path, documents):
    found = read_documents(documents, seed=0)
    test = TestSet("docs", found.train)
    with serve(asked_passage) as server:
        settings = SynthesisSettings(server.url, "tiny", examples=4)
        synthesize(tmp_path / "one", settings, passages=found.train)
        synthesize(tmp_path / "other", settings, passages=found.held_out, test=test)
        asked = len(server.bodies)
        with pytest.raises(EmbedforgeError, match=r"examples.jsonl: this folder holds training data.*--out"):
            synthesize(tmp_path / "one", settings, passages=found.held_out, test=test)
        with pytest.raises(EmbedforgeError, match=r"retrieval: this folder holds a test set.*--out"):
            synthesize(tmp_path / "other", settings, passages=found.train)
        assert len(server.bodies) == asked
    report = json.loads((tmp_path / "other" / "report.json").read_text())
    assert report["groups"]["corpus"]["without a hard negative"] == 0
    assert all("negative" not in sample for sample in report["samples"]["kept"]["corpus"])


def test_the_dataset_is_named_as_a_folder_may_be():
    assert TestSet("Müller & Söhne", ()).folder == "retrieval/M-ller-S-hne"
    assert TestSet("..", ()).folder == "retrieval/documents"


def test_without_documents_nothing_can_be_held_out(tmp_path):
    out = str(tmp_path / "out")
    result = CliRunner().invoke(
        app, ["synthesize", "--endpoint", "http://127.0.0.1:9/v1", "--model", "x", "--test", "--out", out]
    )
    assert result.exit_code != 0
    assert "--corpus" in str(result.exception or result.output)
