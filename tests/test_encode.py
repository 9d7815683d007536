"""Text to vectors: order, batches, prefix and suffix, and agreement with the SentenceTransformer."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.untrained import load_untrained
from embedforge.model.encoder import EmbeddingModel, build, embedding_model, load, save
from embedforge.text.contract import Contract

TEXTS = [
    "how deep is the river?",
    "Two lines,\nand the second is a good deal longer than the first one was.",
    "",
    "日本語のテキスト",
    "a",
    "one more text of middling length",
]
CHAT = {
    "query_template": "<user> {instruction}\nText: {text} <end> <answer>",
    "document_template": "<passage> {text} <end>",
}


def exact(model: EmbeddingModel, texts: list[str], prefix: str = "", **options: Any) -> np.ndarray:
    return encode(model, texts, prefix, bfloat16=False, **options)


def test_vectors_come_in_the_order_of_the_texts_whatever_the_batches(
    tiny_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = np.concatenate([exact(tiny_model, [text]) for text in TEXTS])
    assert alone.shape == (len(TEXTS), tiny_model.dim)
    assert alone.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)
    for tokens in (1, 40, 10_000):
        np.testing.assert_allclose(exact(tiny_model, TEXTS, tokens_per_batch=tokens), alone, atol=1e-5)
    monkeypatch.setattr(sys.modules["embedforge.encode"], "TEXTS_PER_WINDOW", 2)
    np.testing.assert_allclose(exact(tiny_model, TEXTS), alone, atol=1e-5)


def test_batches_side_by_side_give_the_same_vectors(
    tiny_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    tiny_model.register_forward_pre_hook(lambda *_: seen.add(threading.get_ident()))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = exact(tiny_model, TEXTS * 9, tokens_per_batch=100)
        assert threading.get_ident() not in seen, "the batches had threads of their own"
        monkeypatch.setattr(sys.modules["embedforge.runtime"], "MOST_SIDE_BY_SIDE", 1)
        np.testing.assert_allclose(together, exact(tiny_model, TEXTS * 9, tokens_per_batch=100), atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_texts_that_do_not_fit_beside_each_other_are_embedded_alone(
    tiny_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, busy, threads = type(tiny_model).forward, threading.Lock(), torch.get_num_threads()

    def alone(self: EmbeddingModel, **batch: torch.Tensor) -> torch.Tensor:
        if not busy.acquire(blocking=False):
            raise torch.OutOfMemoryError("out of memory")
        with contextlib.ExitStack() as stack:
            stack.callback(busy.release)
            time.sleep(0.02)
            return own(self, **batch)

    alike = [f"a text of one length {number}" for number in range(8)]
    wanted = exact(tiny_model, alike)
    monkeypatch.setattr(type(tiny_model), "forward", alone)
    torch.set_num_threads(2)
    try:
        np.testing.assert_allclose(exact(tiny_model, alike, tokens_per_batch=1), wanted, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_batches_hold_at_most_so_many_tokens_and_no_graph(tiny_model: EmbeddingModel) -> None:
    sizes, graphs = [], []

    def watch(module: Any, inputs: Any, options: dict[str, torch.Tensor], output: torch.Tensor) -> None:
        sizes.append(options["input_ids"].numel())
        graphs.append(output.requires_grad)

    tiny_model.register_forward_hook(watch, with_kwargs=True)
    exact(tiny_model, TEXTS * 5, tokens_per_batch=128)
    assert len(sizes) > 1
    assert max(sizes) <= 128
    assert not any(graphs)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(tiny_model: EmbeddingModel, training: bool) -> None:
    tiny_model.train(training)
    exact(tiny_model, TEXTS)
    assert tiny_model.training is training
    with pytest.raises(EmbedforgeError):
        exact(tiny_model, ["\ud800"])
    assert tiny_model.training is training


def test_dropout_is_off(tiny_model: EmbeddingModel) -> None:
    tiny_model.decoder.layers[0].mlp.act_fn = torch.nn.Dropout(0.5)
    tiny_model.train()
    np.testing.assert_array_equal(exact(tiny_model, TEXTS), exact(tiny_model, TEXTS))


def test_progress_counts_every_text_once(tiny_model: EmbeddingModel) -> None:
    counts: list[int] = []
    exact(tiny_model, TEXTS, tokens_per_batch=64, progress=counts.append)
    assert sum(counts) == len(TEXTS)
    assert len(counts) > 1


def test_no_texts_are_no_vectors(tiny_model: EmbeddingModel) -> None:
    assert len(encode(tiny_model, [])) == 0


def test_fewer_tokens_cut_a_text(tiny_model: EmbeddingModel) -> None:
    long = "river stone " * 40
    cut = exact(tiny_model, [long], max_tokens=12)
    assert np.abs(cut - exact(tiny_model, [long])).max() > 1e-3
    np.testing.assert_array_equal(cut, exact(tiny_model, [long + " and more"], max_tokens=12))


def test_vectors_are_as_long_as_the_contract_says(tiny_base: Path) -> None:
    model = build(base=str(tiny_base), contract=Contract(max_tokens=64, normalize=False))
    assert np.abs(np.linalg.norm(exact(model, TEXTS), axis=1) - 1).max() > 0.1


def test_bfloat16_is_near_float32(tiny_model: EmbeddingModel) -> None:
    half = encode(tiny_model, TEXTS, bfloat16=True)
    full = encode(tiny_model, TEXTS, bfloat16=False)
    assert half.dtype == np.float32
    assert (half * full).sum(axis=1).min() > 0.99
    assert np.abs(half - full).max() > 0


@pytest.mark.parametrize("pooling", ["mean", "last", "latent"])
def test_a_contract_with_text_after_the_text_gives_the_vectors_of_sentence_transformers(
    tiny_base: Path, tmp_path: Path, pooling: str
) -> None:
    options = {"latents": 8, "heads": 2, "head_dim": 16} if pooling == "latent" else {}
    contract = Contract(max_tokens=64, pooling=pooling, **CHAT)
    save(build(base=str(tiny_base), contract=contract, pooling={"kind": pooling, **options}), tmp_path / "m")
    st = load(str(tmp_path / "m"), "cpu")
    model = embedding_model(st)
    contract = model.contract
    texts = [*TEXTS, "river stone " * 40]  # the last is cut, and keeps what follows it

    queries = exact(model, texts, contract.query_prefix(), suffix=contract.query_suffix())
    np.testing.assert_allclose(st.encode_query(texts), queries, atol=1e-5)
    documents = exact(model, texts, contract.document_prefix(), suffix=contract.document_suffix())
    np.testing.assert_allclose(st.encode_document(texts), documents, atol=1e-5)
    np.testing.assert_allclose(st.encode(texts, prompt_name="document"), documents, atol=1e-5)

    songs = contract.query_prefix("Find songs:\nold ones")
    named = exact(model, texts, songs, suffix=contract.query_suffix("Find songs:\nold ones"))
    np.testing.assert_allclose(st.encode(texts, prompt=songs), named, atol=1e-5)
    np.testing.assert_allclose(st.encode_query(texts, prompt=songs), named, atol=1e-5)
    bare = exact(model, texts, contract.query_prefix(""), suffix=contract.query_suffix(""))
    np.testing.assert_allclose(st.encode_query(texts, prompt=""), bare, atol=1e-5)

    for other in (documents, named, bare, exact(model, texts, contract.query_prefix())):
        assert np.abs(queries - other).max() > 1e-3


def test_each_text_may_have_its_own_suffix(tiny_base: Path) -> None:
    model = build(base=str(tiny_base), contract=Contract(max_tokens=64, **CHAT))
    contract, renderer = model.contract, model.renderer
    frames = [
        (contract.query_prefix(), contract.query_suffix()),
        (contract.document_prefix(), contract.document_suffix()),
        (contract.document_prefix("Find songs"), contract.document_suffix("Find songs")),
    ]
    assert frames[2] == (contract.query_prefix("Find songs"), contract.query_suffix())
    together = renderer.render(["text"] * 3, [p for p, _ in frames], suffix=[s for _, s in frames])
    assert together == [renderer.render(["text"], p, suffix=s)[0] for p, s in frames]
    with pytest.raises(EmbedforgeError, match="1 texts were given 2 suffixes"):
        renderer.render(["text"], suffix=["a", "b"])


def test_an_untrained_baseline_is_encoded_without_a_frame(tiny_base: Path) -> None:
    st = load_untrained(f"{tiny_base}@last", device="cpu")
    vectors = exact(embedding_model(st), TEXTS)
    np.testing.assert_allclose(st.encode(TEXTS), vectors, atol=1e-5)


def test_an_untrained_baseline_of_an_unknown_decoder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "quen3"}')
    with pytest.raises(EmbedforgeError, match="quen3"):
        load_untrained(f"{tmp_path}@mean", device="cpu")


def test_out_of_memory_halves_the_budget_for_good_and_says_so(
    tiny_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"river {number:02} and stone" for number in range(40)]
    expected = exact(tiny_model, texts)
    honest, sizes = EmbeddingModel.forward, []

    def small(self: EmbeddingModel, input_ids: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        sizes.append(input_ids.numel())
        if input_ids.numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, input_ids, **rest)

    monkeypatch.setattr(EmbeddingModel, "forward", small)
    monkeypatch.setattr(sys.modules["embedforge.encode"], "TEXTS_PER_WINDOW", 20)
    counts: list[int] = []
    found = exact(tiny_model, texts, tokens_per_batch=280, progress=counts.append)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(counts) == len(texts)
    assert "out of memory with 280 tokens a batch; going on with 140" in caplog.text
    assert sizes[0] > 150
    assert max(sizes[1:]) <= 150  # the second window begins with what worked for the first


def test_one_text_that_does_not_fit_in_memory_is_an_error(
    tiny_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(EmbeddingModel, "forward", full)
    with pytest.raises(EmbedforgeError, match=r"out of memory with one text of \d+ tokens.*--max-tokens"):
        exact(tiny_model, TEXTS)
    monkeypatch.setattr(EmbeddingModel, "forward", lambda *_, **__: torch.zeros(1) @ torch.zeros(2))
    with pytest.raises(RuntimeError, match="size"):
        exact(tiny_model, TEXTS)
