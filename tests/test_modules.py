"""A model inside sentence-transformers: its prompts, its options, its own ways to load and save."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import embedding_model, load, save, to_sentence_transformer
from models_for_tests import TEXTS, embed, make


def test_query_and_document_prompts_come_from_the_contract(saved_latent: Path) -> None:
    st = load(str(saved_latent), "cpu")
    inner = embedding_model(st)
    contract = inner.contract
    np.testing.assert_allclose(
        st.encode_query(TEXTS), embed(inner, TEXTS, contract.query_prefix()), atol=1e-6
    )
    np.testing.assert_allclose(st.encode_document(TEXTS), embed(inner, TEXTS), atol=1e-6)
    songs = contract.query_prefix("Find songs")
    np.testing.assert_allclose(st.encode(TEXTS, prompt=songs), embed(inner, TEXTS, songs), atol=1e-6)
    assert np.abs(st.encode_query(TEXTS) - st.encode(TEXTS, prompt=songs)).max() > 0.01
    assert st.similarity_fn_name == "cosine"


def test_what_the_template_has_after_the_text_is_added_to_queries_only(tiny_base: Path) -> None:
    model = make(tiny_base, query_template="Instruct: {instruction}\nQuery: {text} [end]")
    st = to_sentence_transformer(model)
    plain = st.preprocess(["river"])["input_ids"]
    end = model.tokenizer(" [end]", add_special_tokens=False)["input_ids"]
    for features in (
        st.preprocess(["river"], prompt=model.contract.query_prefix(), task="query"),
        st.preprocess(["river"], prompt=model.contract.query_prefix("Find songs")),
    ):
        assert features["input_ids"][0, -1 - len(end) : -1].tolist() == end
    assert torch.equal(st.preprocess(["river"], prompt="", task="query")["input_ids"], plain)
    assert torch.equal(st.preprocess(["river"], task="document")["input_ids"], plain)


def test_options_of_encode_are_honoured_or_refused(saved_latent: Path) -> None:
    st = load(str(saved_latent), "cpu")
    assert st.encode(TEXTS, truncate_dim=8).shape == (4, 8)
    assert st.get_embedding_dimension() == 32
    st.max_seq_length = 16
    assert st.preprocess(TEXTS)["input_ids"].shape == (4, 16)
    with pytest.raises(EmbedforgeError, match="at most the contract's 64"):
        st.max_seq_length = 100
    for wrong in (3, None, ("one",), ("a", "b", "c"), {"title": "x"}, ("a", 3)):
        with pytest.raises(EmbedforgeError, match="a text to embed is a string"):
            st.preprocess([wrong])


def test_encode_accepts_what_sentence_transformers_accepts(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And gives the same vectors, with a warning, once, for what the contract does not know."""
    save(make(tiny_base), tmp_path / "model")
    ours = load(str(tmp_path / "model"), "cpu")
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    long = "bread and music " * 40
    pairs = [("how deep?", "the river"), ("x", long), (long, "y"), (long, long), ["a", "b"], "one"]
    calls = (
        (pairs, {}),
        ([{"text": "judo"}], {}),
        (TEXTS, {"prompt": "Represent this"}),
        (TEXTS, {"processing_kwargs": {"text": {"max_length": 9, "padding": True}, "common": {}}}),
        (TEXTS, {"task": "classification"}),
    )
    for texts, options in calls:
        np.testing.assert_allclose(
            ours.encode(texts, **options), plain.encode(texts, **options), atol=1e-6, err_msg=str(options)
        )
    np.testing.assert_allclose(ours.encode_query([("a", "b")]), plain.encode_query([("a", "b")]), atol=1e-6)
    for words in ("pairs of texts", "the prompt 'Represent this'", "without effect: ['common', 'padding']"):
        assert caplog.text.count(words) == 1
    ours.encode(TEXTS, prompt="Represent this")
    ours.preprocess(["judo"], other=3)
    assert caplog.text.count("'Represent this'") == 1
    assert "without effect: ['other']" in caplog.text


def test_a_prompt_of_another_template_leaves_the_whole_text_in_the_pool(tiny_base: Path) -> None:
    """Plain sentence-transformers counts the prompt's tokens, and leaves " judo" out behind "query: "."""
    model = make(tiny_base)
    st = to_sentence_transformer(model)
    features = st.preprocess(["judo"], prompt="query: ")
    pooled = features["input_ids"][0][features["pooling_mask"][0].bool()].tolist()
    assert model.tokenizer.decode(pooled).replace("</s>", "").strip() == "judo"


def test_worker_processes_can_take_the_model(saved_latent: Path) -> None:
    st = load(str(saved_latent), "cpu")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(st)).encode(TEXTS), st.encode(TEXTS))


def test_sentence_transformers_loads_our_modules_when_told_to_trust_them(saved_latent: Path) -> None:
    st = SentenceTransformer(str(saved_latent), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(
        st.encode_query(TEXTS), load(str(saved_latent), "cpu").encode_query(TEXTS), atol=1e-6
    )
    with pytest.raises(EmbedforgeError, match="processor_kwargs"):
        SentenceTransformer(
            str(saved_latent), trust_remote_code=True, processor_kwargs={"padding_side": "left"}
        )


def test_sentence_transformers_loads_our_modules_and_no_code_of_the_folder(saved: Path) -> None:
    """The flag is about classes of an installed package; whatever else it allows is not made use of."""
    expected = load(str(saved), "cpu").encode_query(TEXTS)
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(saved), device="cpu")  # When this works, the flag can go from the docs.
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modules.Config", "AutoModel": "modules.TextEncoder"}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "embedforge" / "model").mkdir(parents=True)
    for name in ("modules.py", "embedforge.py", "embedforge/__init__.py", "embedforge/model/modules.py"):
        (saved / name).write_text("raise SystemExit('the code ran')")
    for st in (
        load(str(saved), "cpu"),
        SentenceTransformer(str(saved), device="cpu", trust_remote_code=True),
    ):
        np.testing.assert_allclose(st.encode_query(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "latent"])
def test_saving_by_sentence_transformers_keeps_the_model(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    save(make(tiny_base, kind), tmp_path / "model")
    st = load(str(tmp_path / "model"), "cpu")
    with torch.no_grad():
        next(st.parameters()).mul_(1.5)  # as further training would
    st.save(str(tmp_path / "again"))
    again = load(str(tmp_path / "again"), "cpu")
    np.testing.assert_allclose(again.encode_query(TEXTS), st.encode_query(TEXTS), atol=1e-6)
