"""Faults that users of other projects reported, tried here; docs/reports.md names the threads."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from transformers import PreTrainedTokenizerFast

import embedforge
from conftest import Run
from embedforge.data.convert import read_source
from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import build, save
from embedforge.quantize import quantize
from embedforge.recipe import Source, parse_recipe
from embedforge.search.filters import parse_filters
from embedforge.text.contract import Contract
from embedforge.text.render import Renderer
from embedforge.train.run import train
from models_for_tests import make
from training_for_tests import logged, tiny_recipe, write_pairs

TEXTS = ["how deep is the river?", "bread and music", "a stone"]


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Any:
    return embedforge.load(model_folder, device="cpu")


# --- what is given to encode ----------------------------------------------------------------------


class Column:
    """What a pandas Series is to us: rows under labels that are not 0, 1, 2, and a method that lists them."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __getitem__(self, label: object) -> str:
        raise KeyError(label)

    def __iter__(self) -> Any:
        return iter(self.texts)

    def to_list(self) -> list[str]:
        return list(self.texts)


def test_columns_and_arrays_of_texts_are_lists(loaded: Any) -> None:
    """sentence-transformers 3371 and 3721."""
    wanted = loaded.encode(TEXTS)
    for given in (Column(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), tuple(TEXTS)):
        np.testing.assert_allclose(loaded.encode(given), wanted, atol=1e-6)
        np.testing.assert_allclose(loaded.encode(inputs=given), wanted, atol=1e-6)
        np.testing.assert_allclose(encode(loaded, given, bfloat16=False), wanted, atol=1e-6)
    np.testing.assert_allclose(loaded.encode_document(Column(TEXTS)), wanted, atol=1e-6)


@pytest.mark.parametrize("given", ["river", {"a": "river"}, {"river"}])
def test_one_text_is_not_taken_for_its_letters(loaded: Any, given: Any) -> None:
    """sentence-transformers 288, whose neighbours are all places that take a list."""
    for asked in (lambda: encode(loaded, given), lambda: loaded[0].renderer.render(given)):
        with pytest.raises(EmbedforgeError, match=r"texts are a list of strings, not a .*write \[text\]"):
            asked()


@pytest.mark.parametrize("given", [None, float("nan"), 3, ["river"]])
def test_what_is_no_text_is_named_with_its_place(loaded: Any, given: Any) -> None:
    """The empty cell of a table."""
    with pytest.raises(EmbedforgeError, match=r"text 1 is a .*, not a string"):
        encode(loaded, ["river", given])


def test_a_text_is_no_list_of_documents() -> None:
    for name in ("positives", "negatives"):
        given: Any = {"query": "a", "positives": ("b",)} | {name: "bcd"}
        with pytest.raises(EmbedforgeError, match=rf"{name} are a tuple of texts.*\('bcd',\)"):
            embedforge.Example(**given)
    assert parse_filters("lang=en", ["lang"]) == parse_filters(["lang=en"], ["lang"])


def test_features_of_a_bare_tokenizer_are_refused_in_words(loaded: Any) -> None:
    with pytest.raises(EmbedforgeError, match=r"no pooling_mask.*model\.encode.*model\.preprocess"):
        loaded(dict(loaded.tokenizer(["river"], return_tensors="pt")))


# --- vectors --------------------------------------------------------------------------------------


def test_a_cut_vector_is_of_unit_length(loaded: Any) -> None:
    """text-embeddings-inference 676, sentence-transformers 2573; the server and `encode --dim` do so."""
    whole = loaded.encode_query(TEXTS)
    wanted = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.encode_query(TEXTS, truncate_dim=8), wanted, atol=1e-6)
    with loaded.truncate_sentence_embeddings(8):
        np.testing.assert_allclose(loaded.encode_query(TEXTS), wanted, atol=1e-6)
        np.testing.assert_allclose(loaded.encode_query(TEXTS[0]), wanted[0], atol=1e-6)


@pytest.mark.parametrize("dim", [0, -1, 33, 1.5, True])
def test_no_other_number_of_dimensions_is_taken(loaded: Any, dim: Any) -> None:
    with pytest.raises(EmbedforgeError, match="the model's vectors have 32 dimensions"):
        loaded.encode(TEXTS, truncate_dim=dim)


def test_int8_of_one_vector_is_that_of_many() -> None:
    """sentence-transformers 2837 (all zeros for one text) and 2865 (numbers that wrap round)."""
    vectors = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    vectors[3] *= 100
    numbers, scale = quantize(vectors, "int8")
    assert scale is not None
    assert abs(numbers).max(axis=1).tolist() == [127] * 5
    np.testing.assert_allclose(numbers * scale[:, None], vectors, atol=float(scale.max()))
    for row in range(5):
        assert quantize(vectors[row : row + 1], "int8")[0].tolist() == [numbers[row].tolist()]


@pytest.fixture(scope="module")
def overflowing(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives NaN for one letter, which no golden has."""
    model = make(tiny_base, "mean")
    (letter,) = model.tokenizer("Z", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.decoder.get_input_embeddings().weight[letter] = float("inf")
    save(model, folder := tmp_path_factory.mktemp("models") / "overflowing")
    return folder


def test_a_vector_that_is_no_number_is_refused(overflowing: Path, run: Run, tmp_path: Path) -> None:
    """llm2vec 152, text by text and verb by verb."""
    model = embedforge.load(overflowing, device="cpu")
    for asked in (
        lambda: model.encode("Z"),
        lambda: model.encode(["river", "Z"]),
        lambda: model.encode_query(["river", "Z"], convert_to_tensor=True),
        lambda: model.encode(["river", "Z"], precision="int8"),
        lambda: model.encode(["river", "Z"], precision="ubinary"),
        lambda: encode(model, ["river", "Z"]),
    ):
        with pytest.raises(EmbedforgeError, match=r"not finite.*'Z'.*float32"):
            asked()
    assert np.isfinite(model.encode(["river"])).all()
    (tmp_path / "texts.jsonl").write_text('{"text": "river"}\n{"text": "Z"}\n')
    for verb in (("encode", overflowing, tmp_path / "texts.jsonl"), ("index", tmp_path / "texts.jsonl")):
        more = ("--model", overflowing) if verb[0] == "index" else ()
        code, _, err = run(*verb, *more, "--out", tmp_path / verb[0], "--device", "cpu")
        assert code == 1
        assert "not finite (NaN or infinity): 'Z'" in err


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_rounded_vectors_are_those_of_sentence_transformers(model_folder: Path, precision: str) -> None:
    ours, texts = embedforge.load(model_folder, device="cpu"), ["river", "a mountain", "two words"]
    encode_plain = sentence_transformers.SentenceTransformer.encode
    for asked in (
        {},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"normalize_embeddings": True},
    ):
        found = ours.encode(texts, precision=precision, **asked)
        wanted = encode_plain(ours, texts, precision=precision, **asked)
        assert type(found) is type(wanted)
        assert type(found[0]) is type(wanted[0])
        np.testing.assert_array_equal([np.asarray(row) for row in found], [np.asarray(row) for row in wanted])
    if precision.endswith("binary"):
        np.testing.assert_array_equal(
            ours.encode("river", precision=precision), ours.encode(["river"], precision=precision)[0]
        )


def test_the_server_refuses_it_and_goes_on(overflowing: Path) -> None:
    from starlette.testclient import TestClient

    from embedforge.serve.app import create_app
    from embedforge.serve.service import Service

    with TestClient(create_app(Service.load(str(overflowing), device="cpu"))) as client:
        for precision in ("float32", "int8", "binary"):
            answer = client.post("/v1/embeddings", json={"input": ["river", "Z"], "precision": precision})
            assert answer.status_code == 422
            assert "'Z'" in answer.json()["error"]["message"]
        assert client.post("/v1/embeddings", json={"input": ["river"]}).status_code == 200


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_on_the_left_changes_nothing(tiny_base: Path, attention: Any, implementation: str) -> None:
    """transformers 31035: a row of padding attends to nothing, and 0 * NaN is NaN."""
    contract = Contract(max_tokens=64, padding_side="left", attention=attention)
    options: dict[str, Any] = {"attention_implementation": implementation, "pooling": {"kind": "last"}}
    model = build(base=str(tiny_base), contract=contract, **options).eval()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)):
        model.to(dtype)
        texts = ["river", "", "bread and music " * 10]
        together = encode(model, texts, bfloat16=False)
        alone = np.concatenate([encode(model, [text], bfloat16=False) for text in texts])
        np.testing.assert_allclose(together, alone, atol=tolerance)


def test_eos_is_there_however_short_the_limit(loaded: Any) -> None:
    """mteb 3217: pooling of the last token needs it."""
    eos = loaded.tokenizer.eos_token_id
    for tokens in (4, 9, 48):
        ids = loaded[0].preprocess(["bread and music " * 40], max_length=tokens)["input_ids"]
        assert ids.shape == (1, tokens)
        assert ids[0, -1] == eos


def test_words_beside_brackets_are_pooled_whatever_stands_before(loaded: Any) -> None:
    """llm2vec 80: what was cut into tokens twice did not fit."""
    renderer: Renderer = loaded[0].renderer
    prefix = renderer.contract.query_prefix("Find the document")
    for text in ("Buddhism (religion/philosophy)", "((a", "/x", "\u00a0(é)", "🙂!", "!@#$%^&*()"):
        (alone,), (after,) = renderer.render([text]), renderer.render([text], prefix)
        pooled = [i for i, take in zip(after.input_ids, after.pooling_mask, strict=True) if take]
        assert pooled == alone.input_ids[1:]  # without BOS


def test_many_threads_share_a_model(loaded: Any) -> None:
    """sentence-transformers 910, FlagEmbedding 703: "Already borrowed"."""
    texts = ["river " * n for n in range(1, 30)]
    wanted, failed = (loaded.encode(texts), loaded.encode_query(texts)), []

    def work(number: int) -> None:
        try:
            for _ in range(3):
                found = (loaded.encode, loaded.encode_query)[number % 2](texts, batch_size=5 + number)
                np.testing.assert_allclose(found, wanted[number % 2], atol=1e-5)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# --- training -------------------------------------------------------------------------------------


def test_a_token_without_an_embedding_is_refused(
    tiny_base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """peft 1457: tokens that were added, and the embeddings not."""
    shutil.copytree(tiny_base, base := tmp_path / "base")
    grown = copy.deepcopy(tiny_tokenizer)
    grown.add_tokens(["<one>", "<two>"])
    grown.save_pretrained(base)
    with pytest.raises(EmbedforgeError, match=r"2 tokens.*'<one>' \(id 600, of 600.*resize_token"):
        build(base=str(base), contract=Contract(max_tokens=48))
    padded = copy.deepcopy(tiny_tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    padded.save_pretrained(base)
    assert len(encode(build(base=str(base), contract=Contract(max_tokens=48)), TEXTS)) == 3


def test_checkpointed_gradients_of_lora_are_the_same(tiny_base: Path, tmp_path: Path) -> None:
    """transformers 42489, peft 1142: no gradient at all, or another."""
    write_pairs(tmp_path / "pairs.jsonl", rows=16)
    values = tiny_recipe(tiny_base, tmp_path / "pairs.jsonl").model_dump(mode="json")
    values["stages"] = [values["stages"][0] | {"steps": 3}]
    values["model"] |= {"adapter": {"rank": 2}, "pooling": {"kind": "mean"}}
    values["contract"]["pooling"] = "mean"
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        values["training"]["gradient_checkpointing"] = checkpointed
        train(parse_recipe(values, "t"), tmp_path / name, quiet=True)
    for key in ("loss", "grad_norm"):
        figures = logged(tmp_path / "plain", key)
        assert all(figures)
        np.testing.assert_allclose(logged(tmp_path / "checkpointed", key), figures, rtol=1e-5)


def test_matryoshkas_lengths_may_stand_in_any_order(tiny_base: Path, tmp_path: Path) -> None:
    """sentence-transformers 2719: the first had to be the largest."""
    write_pairs(tmp_path / "pairs.jsonl", rows=16)
    values = tiny_recipe(tiny_base, tmp_path / "pairs.jsonl").model_dump(mode="json")
    values["model"]["pooling"], values["contract"]["pooling"] = {"kind": "mean"}, "mean"
    for name, dims in (("up", [4, 16]), ("down", [16, 4])):
        objective = {"kind": "matryoshka", "dims": dims, "objective": {"kind": "contrastive"}}
        values["stages"] = [values["stages"][0] | {"steps": 2, "objective": objective}]
        train(parse_recipe(values, "t"), tmp_path / name, quiet=True)
    np.testing.assert_allclose(logged(tmp_path / "up", "loss"), logged(tmp_path / "down", "loss"), rtol=1e-5)


def test_the_trainer_of_sentence_transformers_trains_our_models(model_folder: Path, tmp_path: Path) -> None:
    """sentence-transformers 2964: with prompts; what it saves is a model of ours, its contract kept."""
    datasets = pytest.importorskip("datasets")
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = embedforge.load(model_folder, device="cpu")
    before = model.encode_query(TEXTS)
    rows = {"anchor": ["river", "cloud", "letter"], "positive": ["a river", "the cloud", "one letter"]}
    settings = {
        "max_steps": 1,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
    }
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), prompts={"anchor": model.prompts["query"]}, **settings
    )
    loss = MultipleNegativesRankingLoss(model)
    data = datasets.Dataset.from_dict(rows)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    after = model.encode_query(TEXTS)
    assert np.abs(after - before).max() > 1e-3
    model.save_pretrained(str(tmp_path / "saved"))
    np.testing.assert_allclose(embedforge.load(tmp_path / "saved").encode_query(TEXTS), after, atol=1e-5)


# --- data, mining, evaluation ---------------------------------------------------------------------


def examples_of(file: Path, text: str) -> list[embedforge.Example]:
    file.write_text(text)
    return read_source(Source(path=str(file), name="s"), seed=0)


def test_columns_are_known_by_their_names(tmp_path: Path) -> None:
    """sentence-transformers 2791: answers taken for questions, by the order of the columns."""
    (one,) = examples_of(tmp_path / "a.csv", "anchor,positive,negative\nq,p,n\n")
    (other,) = examples_of(tmp_path / "b.csv", "negative,positive,anchor\nn,p,q\n")
    assert one == other
    assert (one.query, one.positives, one.negatives) == ("q", ("p",), ("n",))


def test_what_is_no_text_among_documents_is_named(tmp_path: Path) -> None:
    """FlagEmbedding 732: a number among the positives, which another step fell over."""
    row = '{"query": "a", "positives": ["b"]}\n'
    with pytest.raises(EmbedforgeError, match=r"line 2: 'positives\[1\]' must be text, found 3"):
        examples_of(tmp_path / "a.jsonl", row + '{"query": "a", "positives": ["b", 3]}\n')


@pytest.mark.skipif(shutil.which("jq") is None, reason="the message names a command of jq")
@pytest.mark.parametrize(
    "row",
    [
        {"query": "a", "pos": ["b"], "neg": ["c"]},
        {
            "query_id": "7",
            "query": "a",
            "positive_passages": [{"docid": "1", "title": "", "text": "b"}],
            "negative_passages": [{"docid": "2", "title": "", "text": "c"}],
        },
    ],
)
def test_files_of_other_projects_are_refused_with_a_cure(row: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    with pytest.raises(EmbedforgeError, match="jq -c") as refused:
        examples_of(file, json.dumps(row) + "\n")
    form = str(refused.value).split("jq -c '")[1].split("' FILE")[0]
    ours = subprocess.run(["jq", "-c", form, str(file)], check=True, capture_output=True, text=True).stdout
    (example,) = examples_of(tmp_path / "ours.jsonl", ours)
    assert (example.query, example.positives, example.negatives) == ("a", ("b",), ("c",))


def test_mined_negatives_are_no_answers_and_not_twice(model_folder: Path, run: Run, tmp_path: Path) -> None:
    """FlagEmbedding 464, sentence-transformers 2818: an answer, its copy, that of the same question."""
    rows = [
        ("capital of France?", "Paris"),
        ("capital of Germany?", "Berlin"),
        ("first name of Hilton?", "Paris"),
        ("Capital of  france?", "Lutetia"),
    ]
    lines = [json.dumps({"query": query, "positives": [text]}) + "\n" for query, text in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    corpus = ["Paris", "paris ", "Berlin", "Rome", "Rome", "capital of France?", "Lutetia", "Madrid", "Oslo"]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus))
    line = (
        "mine",
        tmp_path / "pairs.jsonl",
        "--corpus",
        tmp_path / "corpus.jsonl",
        "--teacher",
        model_folder,
    )
    more = ("--negatives", 9, "--rule", "top_k", "--device", "cpu", "--out", tmp_path / "out")
    code, _, err = run(*line, *more)
    assert code == 0, err
    mined = read_source(Source(path=str(tmp_path / "out" / "examples.jsonl"), name="m"), seed=0)
    assert [len(example.negatives) > 2 for example in mined] == [True] * 4
    for example in mined:
        kept = [text.strip().lower() for text in example.negatives]
        assert len(kept) == len(set(kept))
        assert not {text.strip().lower() for text in example.positives} & set(kept)
        assert " ".join(example.query.lower().split()) not in kept
    assert not {"paris", "lutetia"} & {
        text.strip().lower() for text in mined[0].negatives + mined[3].negatives
    }


def test_a_query_and_a_document_may_have_one_id(run: Run, tmp_path: Path) -> None:
    """mteb 978: the right document was left out, as if it were the query."""
    folder = tmp_path / "tasks" / "retrieval" / "ids"
    (folder / "qrels").mkdir(parents=True)
    texts = ["river stone", "cloud engine", "letter garden"]
    for name, words in (("corpus", texts), ("queries", [text.split()[0] for text in texts])):
        lines = [json.dumps({"_id": str(number), "text": text}) + "\n" for number, text in enumerate(words)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    judged = "".join(f"{number}\t{number}\t1\n" for number in range(3))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    code, _, err = run("evaluate", "bm25", "--tasks", tmp_path / "tasks", "--out", tmp_path / "out")
    assert code == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tasks"]["retrieval/ids"]["bm25"]["score"] == 1.0


@pytest.mark.slow
def test_processes_of_a_pool_give_the_same_vectors(model_folder: Path, tmp_path: Path) -> None:
    """sentence-transformers 2955, with a prompt and fewer dimensions. In a script: workers import it."""
    script = tmp_path / "pool.py"
    script.write_text(
        "import sys, numpy as np, embedforge\n"
        "if __name__ == '__main__':\n"
        "    model = embedforge.load(sys.argv[1], device='cpu')\n"
        "    texts = ['river ' * n for n in range(1, 9)]\n"
        "    one = model.encode_query(texts, truncate_dim=8)\n"
        "    two = model.encode_query(texts, truncate_dim=8, device=['cpu', 'cpu'], chunk_size=3)\n"
        "    np.testing.assert_allclose(one, two, atol=1e-5)\n"
    )
    subprocess.run([sys.executable, str(script), str(model_folder)], check=True)
