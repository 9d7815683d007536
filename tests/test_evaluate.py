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
from embedforge.evaluate.instructions import instruction_of, instructs_documents
from embedforge.evaluate.retrieval import per_query_metrics
from embedforge.evaluate.run import evaluate, model_fingerprint, model_labels
from embedforge.evaluate.tasks import find_tasks
from embedforge.lexical import Bm25
from embedforge.model.encoder import save
from embedforge.ranking import exact_search

TOPICS = {
    "bread": ["yeast", "flour", "dough", "oven", "crust", "loaf", "baker", "knead"],
    "sea": ["wave", "salt", "tide", "ship", "harbour", "sailor", "coral", "fish"],
    "law": ["court", "judge", "statute", "appeal", "verdict", "lawyer", "clause", "contract"],
}


def sentence(topic, i):
    words = TOPICS[topic]
    return " ".join(words[(i * k + k) % len(words)] for k in range(1, 5)) + f" number {i}"


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def labelled(start, stop):
    return [{"text": sentence(topic, i), "label": topic} for i in range(start, stop) for topic in TOPICS]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every type of dataset in small, in the layout of the documentation."""
    folder = tmp_path_factory.mktemp("data")
    documents = [(topic, i) for topic in TOPICS for i in range(8)]
    pairs = [(a, b) for a in documents[::3] for b in documents[::5] if a != b]
    retrieval = folder / "retrieval" / "topics"
    write_jsonl(
        retrieval / "corpus.jsonl",
        [
            {"_id": f"d{n}", "title": topic, "text": sentence(topic, i)}
            for n, (topic, i) in enumerate(documents)
        ],
    )
    write_jsonl(
        retrieval / "queries.jsonl",
        [{"_id": f"q{n}", "text": f"{sentence(t, i)[:14]} {i}"} for n, (t, i) in enumerate(documents[:12])],
    )
    (retrieval / "qrels").mkdir()
    judgements = "".join(f"q{n}\td{n}\t2\nq{n}\td{(n + 1) % 24}\t1\n" for n in range(12))
    (retrieval / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judgements)
    write_jsonl(
        folder / "reranking" / "topics" / "test.jsonl",
        [
            {
                "query": sentence(t, 9),
                "positive": [sentence(t, 1)],
                "negative": [sentence(o, 2) for o in TOPICS if o != t],
            }
            for t in TOPICS
        ],
    )
    for split, rows in (("train", labelled(0, 10)), ("test", labelled(10, 16))):
        write_jsonl(folder / "classification" / "topics" / f"{split}.jsonl", rows)
    write_jsonl(folder / "clustering" / "topics" / "test.jsonl", labelled(0, 8))
    write_jsonl(
        folder / "sts" / "topics" / "test.jsonl",
        [
            {
                "sentence1": sentence(*a),
                "sentence2": sentence(*b),
                "score": 5 - abs(a[1] - b[1]) % 4 if a[0] == b[0] else 1,
            }
            for a, b in pairs
        ],
    )
    write_jsonl(
        folder / "nli" / "topics" / "test.jsonl",
        [
            {
                "premise": sentence(*a),
                "hypothesis": sentence(*b),
                "label": "entailment" if a[0] == b[0] else "neutral",
            }
            for a, b in pairs
        ],
    )
    write_jsonl(
        folder / "bitext" / "topics" / "test.jsonl",
        [
            {"sentence1": sentence(t, i), "sentence2": sentence(t, i).upper(), "lang": lang}
            for lang, stop in (("deu", 3), ("fra", 5))
            for t in TOPICS
            for i in range(stop)
        ],
    )
    return folder


@pytest.fixture(scope="module")
def model_folder(tiny_base, tmp_path_factory):
    from embedforge.model.encoder import build
    from embedforge.text.contract import Contract

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(build(base=str(tiny_base), contract=Contract(max_tokens=48)), folder)
    return folder


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


def test_folders_of_one_type_or_one_dataset_are_tasks_too(data):
    assert [t.metadata.name for t in find_tasks(str(data / "sts"))] == ["sts/topics"]
    assert [t.metadata.name for t in find_tasks([str(data / "nli" / "topics")])] == ["nli/topics"]
    assert [t.metadata.name for t in find_tasks(str(data), split="train")] == ["classification/topics"]


def test_names_of_mteb_pass_through():
    assert [t.metadata.name for t in find_tasks("SciFact, STS12")] == ["SciFact", "STS12"]
    assert len(find_tasks("MTEB(eng, v2)")) > 30


@pytest.mark.parametrize(
    ("tasks", "message"),
    [("SciFakt", "Did you mean 'SciFact'"), ("SciFact,SciFact", "named twice")],
)
def test_wrong_task_names_are_explained(tasks, message):
    with pytest.raises(EmbedforgeError, match=message):
        find_tasks(tasks)


def test_wrong_folders_splits_and_labels_are_explained(data, tmp_path):
    with pytest.raises(EmbedforgeError, match="has a split 'dev'"):
        find_tasks(str(data), split="dev")
    with pytest.raises(EmbedforgeError, match="no datasets"):
        find_tasks(str(tmp_path))
    write_jsonl(tmp_path / "classification" / "x" / "train.jsonl", [{"text": "a", "label": "1"}])
    write_jsonl(tmp_path / "classification" / "x" / "test.jsonl", [{"text": "a", "label": "new"}])
    with pytest.raises(EmbedforgeError, match="label 'new' of test is not in train"):
        find_tasks(str(tmp_path))[0].load_data()
    write_jsonl(
        tmp_path / "reranking" / "y" / "test.jsonl", [{"query": "a", "positive": "b", "negative": []}]
    )
    with pytest.raises(EmbedforgeError, match=r"test\.jsonl, line 1: 'positive' must be a list"):
        find_tasks(str(tmp_path / "reranking"))[0].load_data()


def test_an_instruction_for_nothing_is_refused(data, model_folder, tmp_path):
    with pytest.raises(EmbedforgeError, match="Did you mean 'sts/topics'"):
        evaluate([str(model_folder)], str(data / "sts"), tmp_path, instructions={"sts/topic": "x"})


def test_a_failing_task_keeps_the_finished_ones(data, model_folder, tmp_path):
    for kind in ("sts", "reranking"):
        shutil.copytree(data / kind, tmp_path / "data" / kind)
    write_jsonl(tmp_path / "data" / "sts" / "topics" / "test.jsonl", [{"sentence1": "a", "score": 1}])
    with pytest.raises(EmbedforgeError, match=r"line 1: there is no 'sentence2'"):
        evaluate([str(model_folder)], str(tmp_path / "data"), tmp_path / "out")
    assert (tmp_path / "out" / "tasks" / "tiny" / "reranking__topics.json").exists()
    assert not (tmp_path / "out" / "results.json").exists()


def test_instructions_come_from_caller_table_task_and_type_in_this_order():
    assert (
        instruction_of("SciFact", "Retrieval", {"SciFact": "mine", "Retrieval": "ours"}, "theirs") == "mine"
    )
    assert instruction_of("SciFact", "Retrieval", {"Retrieval": "ours"}, "theirs") == "ours"
    assert instruction_of("Touche2020.v3", "Retrieval") == instruction_of("Touche2020", "Retrieval")
    assert instruction_of("Unknown", "Retrieval", {}, "theirs") == "theirs"
    assert instruction_of("Unknown", "STS") == "Retrieve semantically similar text"
    assert instruction_of("Unknown", "Retrieval") is None
    assert instructs_documents("QuoraRetrieval")
    assert not instructs_documents("SciFact")


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


def test_a_model_that_can_do_none_of_the_tasks_still_gives_a_report(data, tmp_path):
    found = evaluate(["bm25"], str(data / "sts"), tmp_path)
    assert found.score("bm25", "sts/topics") is None
    assert "bm25 can do 0 of the 1 tasks" in (tmp_path / "report.html").read_text()


def test_a_plain_model_takes_no_instruction(data, plain_folder, tmp_path):
    with pytest.raises(EmbedforgeError, match="no embedding contract"):
        evaluate([str(plain_folder)], str(data / "sts"), tmp_path, instructions={"sts/topics": "x"})


def test_labels_are_the_shortest_that_differ():
    assert model_labels(["a/b/model", "a/c/model", "x/e5", "bm25"]) == ("b/model", "c/model", "e5", "bm25")
    assert model_labels(["model", "runs/model/"]) == ("model", "runs/model")
    with pytest.raises(EmbedforgeError, match="each once"):
        model_labels(["m", "m"])


def test_the_fingerprint_of_a_model_changes_with_any_of_its_files(model_folder, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    assert model_fingerprint(str(copy)) == model_fingerprint(str(model_folder))
    (copy / "contract.json").write_text("{}")
    assert model_fingerprint(str(copy)) != model_fingerprint(str(model_folder))
    monkeypatch.setattr(run, "_HASHED_WHOLE", 0)
    assert not math.isnan(int(model_fingerprint(str(copy)), 16))
    assert model_fingerprint("owner/a") != model_fingerprint("owner/b")
