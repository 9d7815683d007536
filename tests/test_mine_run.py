"""`mine` from a source to Examples, resumed and audited; and mining again with a model in training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedforge.data.convert import read_source
from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.lexical import Bm25
from embedforge.mine import KeepRule, run
from embedforge.mine import corpus as corpus_module
from embedforge.mine import lexical_ranker as lexical_module
from embedforge.mine import pipeline as pipeline_module
from embedforge.mine import teachers as teachers_module
from embedforge.mine.documents import read_documents
from embedforge.mine.embedder import Prompts
from embedforge.mine.pipeline import Selection
from embedforge.mine.refresh import refresh
from embedforge.mine.run import Teachers, finished, mine
from embedforge.mine.teachers import open_model
from embedforge.model.adapter import add_lora
from embedforge.model.encoder import EmbeddingModel
from embedforge.recipe import Source
from embedforge.text.same import stable_hash
from mining_for_tests import CHOICE, SHARD_ROWS, mine_by_word_hashes

INSTRUCTION = "Given a question, find the passage"


@pytest.fixture
def source(data: Path) -> Source:
    return Source(
        path=str(data / "retrieval" / "topics"), kind="retrieval", split="test", instruction=INSTRUCTION
    )


def mined(out: Path) -> list[Example]:
    examples = read_source(Source(path=str(out / "examples.jsonl")), seed=0)
    return [replace(example, source="topics") for example in examples]


def one_by_one(example: Example, documents: dict[str, str], rankings: list[np.ndarray]) -> list[str]:
    """Mine for one Example as the rule is written; texts differ, and no two Examples share a query."""
    names, weights = list(documents), dict.fromkeys(documents, 0.0)
    for scores in rankings:
        best = [row for row in np.argsort(-scores, kind="stable")[: CHOICE.candidates] if scores[row] != 0]
        for rank, row in enumerate(best, start=1):
            weights[names[row]] += 1 / (60 + rank)
    judge = dict(zip(names, rankings[0].tolist(), strict=True))
    limit = min(judge[name] for name in example.positive_ids)
    ranked = sorted((name for name in names if weights[name]), key=lambda name: -weights[name])
    kept = [name for name in ranked if name not in example.positive_ids and judge[name] < limit]
    return kept[: CHOICE.n_negatives]


# --- what comes out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("model",), ("bm25",), ("model", "bm25")], ids="+".join)
def test_mining_gives_what_the_definition_says(
    names: tuple[str, ...],
    source: Source,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(corpus_module, "SHARD_ROWS", 5)
    teachers = Teachers(tuple(str(model_folder) if name == "model" else name for name in names))
    facts = mine(source, tmp_path / "out", teachers, CHOICE, device="cpu")
    examples = read_source(source, seed=0)
    documents = dict(read_documents(Path(source.path)))
    rankings = []
    if "model" in names:
        teacher = open_model(str(model_folder), prompts=Prompts(), device="cpu")
        queries = teacher.queries([e.query for e in examples], [INSTRUCTION] * len(examples))
        rankings.append(queries @ teacher.documents(list(documents.values())).T)
    if "bm25" in names:
        bm25 = Bm25(list(documents.values()))
        rankings.append(np.array([bm25.scores(example.query) for example in examples]))
    expected = [
        one_by_one(example, documents, [scores[row] for scores in rankings])
        for row, example in enumerate(examples)
    ]
    found = mined(tmp_path / "out")
    assert [list(e.negative_ids) for e in found] == expected
    assert [e.negatives for e in found] == [tuple(documents[name] for name in row) for row in expected]
    assert facts["documents"] == 24
    assert facts["judge"] == teachers.names[0]
    assert finished(tmp_path / "out")


def test_scores_stand_line_by_line_beside_the_examples(source: Source, tmp_path: Path):
    out = tmp_path / "out"
    mine(source, out, Teachers(("bm25",)), CHOICE)
    bm25 = Bm25([text for _, text in read_documents(Path(source.path))])
    ids = [name for name, _ in read_documents(Path(source.path))]
    lines = (out / "scores.jsonl").read_text().splitlines()
    for example, line in zip(mined(out), map(json.loads, lines), strict=True):
        scores = bm25.scores(example.query)
        for kind, names in (("positives", example.positive_ids), ("negatives", example.negative_ids)):
            expected = [float(scores[ids.index(name)]) for name in names]
            assert line[kind] == pytest.approx(expected, rel=1e-5)
        assert all(score < min(line["positives"]) for score in line["negatives"])


def test_a_run_file_judges_only_what_it_lists(source: Source, tmp_path: Path):
    run = tmp_path / "run.trec"
    ranked = {"q0": "d0 d5 d1 d9", "q1": "d7 d1 d2 d8", "q2": "d9 d2"}  # q0: d0, d1; q1: d1, d2; q2: d2, d3
    run.write_text(
        "".join(
            f"{query} Q0 {document} {rank} {10 - rank} t\n"
            for query, names in ranked.items()
            for rank, document in enumerate(names.split())
        )
    )
    facts = mine(source, tmp_path / "out", Teachers((f"run:{run}",)), CHOICE)
    # The positive d3 of q2 is not listed, so it scores less than all that is; nothing is surely worse.
    assert [e.negative_ids for e in mined(tmp_path / "out")][:3] == [("d9",), ("d8",), ()]
    assert facts["fingerprints"][f"run:{run}"]["queries that it lacks"] == 9
    mine(source, tmp_path / "out", Teachers((f"run:{run}",)), replace(CHOICE, rule=KeepRule("top_k")))
    assert [e.negative_ids for e in mined(tmp_path / "out")][:3] == [("d5", "d9"), ("d7", "d8"), ("d9",)]


def test_a_corpus_file_is_mined_and_its_copies_of_the_positive_are_not(tmp_path: Path):
    pairs, corpus = tmp_path / "pairs.jsonl", tmp_path / "corpus.jsonl"
    pairs.write_text('{"query": "open sea", "positives": ["The open sea"]}\n')
    texts = ["THE  open sea", "the open window", "Open Sea", "sea", "the open  WINDOW"]
    corpus.write_text("".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts)))
    facts = mine(
        Source(path=str(pairs)),
        tmp_path / "out",
        Teachers(("bm25",)),
        Selection(rule=KeepRule("top_k")),
        corpus=corpus,
    )
    # The positive is document 0, document 2 is the query itself, document 4 says what 1 says.
    assert mined(tmp_path / "out")[0].negative_ids == ("3", "1")
    assert facts["positives added to the corpus"] == 0
    counts = facts["counts"]["pairs"]
    assert (counts["positive"], counts["query"], counts["copy"], counts["chosen"]) == (1, 1, 1, 2)


def test_faiss_finds_candidates_and_says_how_many_of_them(source: Source, model_folder: Path, tmp_path: Path):
    pytest.importorskip("faiss", reason="--index needs the package faiss-cpu")
    exact, out = tmp_path / "exact", tmp_path / "out"
    mine(source, exact, Teachers((str(model_folder),)), CHOICE, device="cpu")
    teachers = Teachers((str(model_folder),), index="Flat")
    for _ in range(2):  # built, then opened
        facts = mine(source, out, teachers, CHOICE, device="cpu", work=exact / "work")
        assert facts["fingerprints"][str(model_folder)]["recall of the index"] == 1.0
    assert mined(out) == mined(exact)
    with pytest.raises(EmbedforgeError, match="faiss does not know this index"):
        mine(source, out, replace(teachers, index="Nonsense7"), CHOICE, device="cpu")


# --- running again -----------------------------------------------------------------------------------


def test_another_rule_needs_no_vector_anew(
    source: Source, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, teachers = tmp_path / "out", Teachers((str(model_folder),))
    mine(source, out, teachers, CHOICE, device="cpu")
    first = mined(out)

    def fail(*_: object) -> None:
        raise AssertionError("a text was embedded again")

    monkeypatch.setattr(teachers_module, "encode", fail)
    mine(source, out, teachers, CHOICE, device="cpu")
    assert mined(out) == first
    mine(source, out, teachers, replace(CHOICE, rule=KeepRule("top_k")), device="cpu")
    assert mined(out) != first


def test_a_work_folder_of_another_equality_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Corpus, words and blocks of a version that took a decomposed copy for another text."""
    composed = "Crème brûlée is a dessert"
    pairs, passages, out = tmp_path / "pairs.jsonl", tmp_path / "passages.jsonl", tmp_path / "out"
    pairs.write_text(json.dumps({"query": "which dessert is it", "positives": [composed]}) + "\n")
    texts = [composed, unicodedata.normalize("NFD", composed), "Flan is a dessert"]
    passages.write_text("".join(json.dumps({"_id": str(n), "text": t}) + "\n" for n, t in enumerate(texts)))
    selection = Selection(rule=KeepRule("top_k"))
    with monkeypatch.context() as old:
        for module in (corpus_module, pipeline_module, lexical_module):
            old.setattr(module, "VERSION", corpus_module.VERSION - 1)
        for module in (corpus_module, pipeline_module):
            old.setattr(module, "text_key", lambda text: stable_hash(text))
        mine(Source(path=str(pairs)), out, Teachers(("bm25",)), selection, corpus=passages)
        assert sorted(mined(out)[0].negative_ids) == ["1", "2"]
    mine(Source(path=str(pairs)), out, Teachers(("bm25",)), selection, corpus=passages)
    assert mined(out)[0].negative_ids == ("2",)


def test_another_instruction_is_another_question(source: Source, model_folder: Path, tmp_path: Path):
    """The vectors are told apart by it, so the finished blocks have to be as well."""
    teachers = Teachers((str(model_folder),))
    other = source.model_copy(update={"instruction": "Name a dish of the French kitchen"})
    for spec, out in ((source, "again"), (other, "again"), (other, "fresh")):
        mine(spec, tmp_path / out, teachers, CHOICE, device="cpu", work=tmp_path / f"{out}-work")
    scores = [(tmp_path / out / "scores.jsonl").read_text() for out in ("again", "fresh")]
    assert scores[0] == scores[1]


def test_a_run_file_is_asked_by_the_queries_ids(tmp_path: Path):
    pairs, run_file = tmp_path / "pairs.jsonl", tmp_path / "run.trec"
    run_file.write_text("a Q0 near 1 2.0 t\nb Q0 far 1 2.0 t\n")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "near", "text": "a bay"}\n{"id": "far", "text": "a law"}\n')
    for name in ("a", "b"):
        pairs.write_text(json.dumps({"query": "sea", "query_id": name, "positives": ["the sea"]}) + "\n")
        choice = Selection(1, 2, KeepRule("top_k"))
        mine(Source(path=str(pairs)), tmp_path / "out", Teachers((f"run:{run_file}",)), choice, corpus=corpus)
        assert mined(tmp_path / "out")[0].negative_ids == (("near",) if name == "a" else ("far",))


def test_a_run_that_fails_leaves_an_earlier_ones_results_and_what_is_said_of_them(
    source: Source, tmp_path: Path
):
    out = tmp_path / "out"
    facts = mine(source, out, Teachers(("bm25",)), CHOICE)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(EmbedforgeError, match="no such file"):
        mine(source, out, Teachers(("bm25",)), CHOICE, corpus=Path("none.jsonl"))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert json.loads((out / "mine.json").read_text())["counts"] == facts["counts"]
    assert set(facts["phases"]) == {"reading", "ranking", "choosing"}
    assert {"versions", "machine", "date"} <= set(facts)


def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed once among the vectors, and once in the search."""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    script = Path(__file__).with_name("mining_for_tests.py")
    for sign in ("work/vectors/*/[!q.]*.npy", "work/vectors/*/nearest-*.npz"):
        command = [sys.executable, script, source.model_dump_json(), out, "0.1"]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while not list(out.glob(sign)) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (out / "examples.jsonl").exists()
        assert not finished(out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("work/vectors/*/*.npy")}
    monkeypatch.setattr(run, "_open", run._open)  # both are put back after the test
    monkeypatch.setattr(corpus_module, "SHARD_ROWS", SHARD_ROWS)
    mine_by_word_hashes(source, out)
    mine_by_word_hashes(source, whole)
    for name in ("examples.jsonl", "scores.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert len(kept) == 9  # 24 documents in threes, and the queries
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


# --- the audit page ----------------------------------------------------------------------------------


def test_the_audit_page_shows_scores_reasons_rules_and_suspects(
    source: Source, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline_module, "_BYTES_PER_QUERY", 10**12)
    mine(source, tmp_path / "out", Teachers((str(model_folder),)), CHOICE, device="cpu")
    page = (tmp_path / "out" / "audit.html").read_text()
    for text in (
        "What became of the candidates, by source",
        "What each rule would keep",
        "margin (used)",
        "rejected by the rule",
        "does a kept document answer the query?",
        "an answer, or a good hard negative?",
    ):
        assert text in page
    assert page.count("<svg") == 1
    assert "http://" not in page.replace("http://www.w3.org", "")


# --- mining again between stages ---------------------------------------------------------------------


def examples_with_old_negatives(source: Source) -> list[Example]:
    return [replace(e, negatives=("old negative",)) for e in read_source(source, seed=0)]


@pytest.mark.parametrize("adapter", [False, True])
def test_a_refresh_takes_what_the_model_itself_finds(
    adapter: bool, source: Source, tiny_model: EmbeddingModel, tmp_path: Path
):
    if adapter:
        tiny_model.decoder = add_lora(tiny_model.decoder, rank=2, alpha=4)
    tiny_model.train()
    examples = examples_with_old_negatives(source)
    corpus = Path(source.path)
    found = refresh(tiny_model, examples, tmp_path, CHOICE, corpus=corpus)
    assert tiny_model.training
    assert any(example.negatives != ("old negative",) for example in found)
    for old, new in zip(examples, found, strict=True):
        assert replace(new, negatives=old.negatives, negative_ids=()) == old
        assert "old negative" not in new.negatives or new == old
        assert not set(new.negatives) & set(old.positives)
    assert refresh(tiny_model, examples, tmp_path, CHOICE, corpus=corpus) == found


def test_a_refresh_follows_the_weights(source: Source, tiny_model: EmbeddingModel, tmp_path: Path):
    examples = examples_with_old_negatives(source)
    options = {"corpus": Path(source.path)}
    before = refresh(tiny_model, examples, tmp_path, CHOICE, **options)
    for parameter in tiny_model.parameters():
        parameter.data += 0.3 * np.random.default_rng(0).standard_normal()
    after = refresh(tiny_model, examples, tmp_path, CHOICE, **options)
    assert before != after
    assert len(list((tmp_path / "vectors").iterdir())) == 2


def test_a_refresh_leaves_classes_alone(tiny_model: EmbeddingModel, tmp_path: Path):
    closed = Example("a", ("b",), ("c",), in_batch_negatives=False)
    examples = [closed, Example("river", ("water",), ("stone",)), Example("oven", ("bread",), ("ship",))]
    found = refresh(tiny_model, examples, tmp_path, Selection(rule=KeepRule("top_k")))
    assert found[0] == closed
    assert set(found[1].negatives) == {"stone", "bread", "ship"}
    with pytest.raises(EmbedforgeError, match="no Example to mine again for"):
        refresh(tiny_model, [closed], tmp_path, CHOICE)
