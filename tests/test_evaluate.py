"""Scores of models on tasks: those of mteb's own search, and none computed twice."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

pytest.importorskip("mteb")

from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.evaluate import encoders, run
from embedforge.evaluate.retrieval import per_query_metrics
from embedforge.evaluate.run import evaluate, model_fingerprint
from embedforge.lexical import Bm25
from embedforge.nearest import exact_search


@pytest.fixture(scope="module")
def results(data, model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return evaluate([str(model_folder), "bm25"], str(data), out, device="cpu", dtype="float32")


def test_every_type_of_task_is_scored(results):
    types = {row["tiny"]["type"] for row in results.tasks.values()}
    assert types == {
        *(
            "Retrieval",
            "Reranking",
            "Classification",
            "Clustering",
            "STS",
            "PairClassification",
            "BitextMining",
        )
    }
    for row in results.tasks.values():
        assert -1 <= row["tiny"]["score"] <= 1
        assert row["tiny"]["settings"]["dtype"] == "float32"
        assert row["tiny"]["settings"]["autocast"] == "off"


def test_bm25_does_retrieval_and_reranking_only(results):
    done = {name for name, row in results.tasks.items() if row["bm25"] is not None}
    assert done == {"retrieval/topics", "reranking/topics"}
    assert results.score("bm25", "sts/topics") is None


def test_scores_of_units_add_up_to_the_score_of_the_task(results):
    kinds = {}
    for name, row in results.tasks.items():
        for result in filter(None, row.values()):
            units = result["units"]
            kinds[name] = units and units["kind"]
            if units and "pairs" not in units["kind"]:
                assert np.mean(units["values"]) == pytest.approx(result["score"], abs=5e-4)
    assert kinds == {
        "retrieval/topics": "queries",
        "reranking/topics": "queries",
        "classification/topics": "texts",
        "clustering/topics": "halves",
        "sts/topics": "scored pairs",
        "nli/topics": "labelled pairs",
        "bitext/topics": "texts",
    }


def read_retrieval(data):
    folder = data / "retrieval" / "topics"
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    queries = [json.loads(line)["text"] for line in (folder / "queries.jsonl").read_text().splitlines()]
    relevant = [{n: 2, (n + 1) % 24: 1} for n in range(12)]
    return [f"{d['title']} {d['text']}" for d in corpus], queries, relevant


def test_mteb_gives_the_numbers_of_our_own_search(results, data, model_folder):
    """The instruction on queries only, titles before texts, exact search: one number says it all."""
    from embedforge.model.encoder import embedding_model, load

    documents, queries, relevant = read_retrieval(data)
    model = embedding_model(load(str(model_folder), device="cpu", dtype="float32"))
    query_vectors = encode(model, queries, model.contract.query_prefix(), bfloat16=False)
    ranked, _ = exact_search(query_vectors, encode(model, documents, bfloat16=False), 10)
    expected = per_query_metrics(ranked, relevant)["ndcg@10"].mean()
    assert results.score("tiny", "retrieval/topics") == pytest.approx(expected, abs=1e-4)


def test_bm25_in_mteb_is_bm25(results, data):
    documents, queries, relevant = read_retrieval(data)
    index = Bm25(documents)
    ranked = []
    for query in queries:
        scores = index.scores(query)
        # trec_eval puts the later name first where scores are equal
        order = sorted(range(len(documents)), key=lambda d: (scores[d], f"d{d}"), reverse=True)
        ranked.append([d for d in order if scores[d] > 0])
    expected = per_query_metrics(ranked, relevant)["ndcg@10"].mean()
    assert results.score("bm25", "retrieval/topics") == pytest.approx(expected, abs=1e-4)


def test_results_and_report_are_written(results):
    summary = json.loads((results.folder / "results.json").read_text())
    assert summary["tasks"]["sts/topics"]["bm25"] is None
    assert summary["mean"]["bm25"] is None
    assert summary["mean"]["tiny"] == pytest.approx(
        np.mean([row["tiny"]["score"] for row in results.tasks.values()])
    )
    assert summary["by_type"]["Retrieval"]["bm25"] == results.score("bm25", "retrieval/topics")
    assert set(summary["differences"]["bm25"]) == {"retrieval/topics", "reranking/topics"}
    assert summary["versions"]["mteb"]
    assert set(summary["phases"]) == {"tiny", "bm25"}
    assert summary["phases"]["tiny"] > 0
    assert "units" not in summary["tasks"]["sts/topics"]["tiny"]
    report = (results.folder / "report.html").read_text()
    assert "bm25 against tiny" in report
    assert "Retrieve semantically similar text" in report


def test_a_second_run_computes_nothing(results, data, model_folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("loaded a model for results that are there")

    monkeypatch.setattr(encoders, "load", refuse)
    again = evaluate([str(model_folder), "bm25"], str(data), results.folder, device="cpu", dtype="float32")
    assert again.tasks == results.tasks


def test_another_instruction_or_other_data_is_run_anew(data, model_folder, results, tmp_path):
    shutil.copytree(data / "sts", tmp_path / "data" / "sts")
    shutil.copytree(results.folder, tmp_path / "out")

    def score(**settings):
        found = evaluate(
            [str(model_folder)],
            str(tmp_path / "data"),
            tmp_path / "out",
            device="cpu",
            dtype="float32",
            **settings,
        )
        return found.tasks["sts/topics"]["tiny"]

    before = score()
    assert before == results.tasks["sts/topics"]["tiny"]
    changed = score(instructions={"sts/topics": "Say something else entirely"})
    assert changed["instruction"] == "Say something else entirely"
    assert changed["score"] != before["score"]
    file = tmp_path / "data" / "sts" / "topics" / "test.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[5:]))
    assert len(score()["units"]["values"]) == len(before["units"]["values"]) - 5


def test_symmetric_tasks_put_the_instruction_on_every_text(data, model_folder, monkeypatch, tmp_path):
    prefixes = []

    def spy(model, texts, prefix, **settings):
        prefixes.append(prefix)
        return encode(model, texts, prefix, **settings)

    monkeypatch.setattr(encoders, "encode", spy)
    evaluate(
        [str(model_folder)], str(data / "nli"), tmp_path / "a", instructions={"PairClassification": "Compare"}
    )
    assert set(prefixes) == {"Instruct: Compare\nQuery: "}
    prefixes.clear()
    evaluate(
        [str(model_folder)],
        str(data / "reranking"),
        tmp_path / "b",
        instructions={"reranking/topics": "Find"},
    )
    assert sorted(set(prefixes)) == ["", "Instruct: Find\nQuery: "]


def test_texts_are_cut_to_max_tokens(data, model_folder, tmp_path):
    found = evaluate([str(model_folder)], str(data / "sts"), tmp_path, max_tokens=30)
    assert found.tasks["sts/topics"]["tiny"]["settings"]["max_tokens"] == 30
    more = evaluate([str(model_folder)], str(data / "sts"), tmp_path, max_tokens=1000)
    assert more.tasks["sts/topics"]["tiny"]["settings"]["max_tokens"] == 48


@pytest.fixture(scope="module")
def plain_folder(tiny_base, tmp_path_factory):
    """A sentence-transformers model that knows nothing of embedforge, with prompts of its own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    transformer = Transformer(str(tiny_base))
    prompts = {"query": "query: ", "document": "passage: "}
    model = SentenceTransformer(modules=[transformer, Pooling(32)], prompts=prompts, device="cpu")
    model.max_seq_length = 40
    folder = tmp_path_factory.mktemp("models") / "plain"
    model.save(str(folder))
    return folder


def test_a_plain_model_keeps_its_own_prompts(data, plain_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(plain_folder), device="cpu")
    documents, queries, relevant = read_retrieval(data)
    options = {"normalize_embeddings": True, "convert_to_numpy": True}
    ranked, _ = exact_search(
        model.encode_query(queries, **options), model.encode_document(documents, **options), 10
    )
    expected = per_query_metrics(ranked, relevant)["ndcg@10"].mean()
    found = evaluate([str(plain_folder)], str(data / "retrieval"), tmp_path, device="cpu")
    assert found.score("plain", "retrieval/topics") == pytest.approx(expected, abs=1e-4)
    assert found.tasks["retrieval/topics"]["plain"]["settings"]["prompts"] == "the model's own"
    assert found.tasks["retrieval/topics"]["plain"]["settings"]["max_tokens"] == 40


def test_a_plain_model_takes_no_instruction(data, plain_folder, tmp_path):
    with pytest.raises(EmbedforgeError, match="no embedding contract"):
        evaluate([str(plain_folder)], str(data / "sts"), tmp_path, instructions={"sts/topics": "x"})


def test_the_fingerprint_of_a_model_changes_with_any_of_its_files(model_folder, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    assert model_fingerprint(str(copy)) == model_fingerprint(str(model_folder))
    (copy / "contract.json").write_text("{}")
    assert model_fingerprint(str(copy)) != model_fingerprint(str(model_folder))
    monkeypatch.setattr(run, "_HASHED_WHOLE", 0)
    assert not math.isnan(int(model_fingerprint(str(copy)), 16))
    assert model_fingerprint("owner/a") != model_fingerprint("owner/b")
