"""Building, saving and loading an embedding model: the vectors stay what they were."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MistralForCausalLM,
    MistralModel,
    StableLmConfig,
    StableLmForCausalLM,
)

import embedforge
from conftest import GOLDEN, spread_weights
from embedforge.errors import EmbedforgeError
from embedforge.model import layout
from embedforge.model.encoder import build, embedding_model, load, save
from embedforge.runtime import fast_bfloat16
from embedforge.text.contract import Contract
from models_for_tests import KINDS, SHAPE, TEXTS, embed, make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"attention": "causal", "normalize": False}])
def test_a_saved_model_gives_the_same_vectors(
    tiny_base: Path, tmp_path: Path, kind: str, settings: dict
) -> None:
    model = make(tiny_base, kind, **settings)
    expected = embed(model, TEXTS, model.contract.query_prefix())
    assert expected.dtype == np.float32
    assert expected.shape == (len(TEXTS), 32)
    if model.contract.normalize:
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    save(model, tmp_path / "model")
    st = load(str(tmp_path / "model"), "cpu")
    np.testing.assert_allclose(st.encode_query(TEXTS, batch_size=2), expected, atol=1e-6, rtol=1e-6)
    inner = embedding_model(st)
    assert inner.contract.pooling == kind
    assert next(inner.decoder.parameters()) is next(st.parameters())
    np.testing.assert_array_equal(embed(inner, TEXTS), embed(embedding_model(st), TEXTS))


def test_the_model_inside_a_loaded_one_is_had_without_preparing_its_tokenizer_again(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes as long as to embed a thousand texts, and `encode` asks for the model at each call."""
    save(make(tiny_base, "mean"), tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    before = embed(embedding_model(loaded), TEXTS)
    monkeypatch.setattr("embedforge.text.render.contract_tokenizer", None)
    assert np.array_equal(embed(embedding_model(loaded), TEXTS), before)


def test_the_seed_decides_the_pooler_and_nothing_else(tiny_base: Path) -> None:
    state = torch.random.get_rng_state()
    contract = Contract(max_tokens=64)
    first, same, other = (
        build(base=str(tiny_base), contract=contract, pooling={"kind": "latent", **SHAPE}, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.pooler.latents, same.pooler.latents)
    assert not torch.equal(first.pooler.latents, other.pooler.latents)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_half_precision_is_saved_and_loaded_as_such(tiny_base: Path, tmp_path: Path) -> None:
    model = make(tiny_base, "latent", dtype="bfloat16")
    save(model, tmp_path / "model")
    assert Contract.load(tmp_path / "model").dtype == "bfloat16"
    assert load_file(tmp_path / "model" / "model.safetensors")["norm.weight"].dtype == torch.bfloat16
    slow = not fast_bfloat16(torch.device("cpu"))
    assert load(str(tmp_path / "model"), "cpu").dtype == (torch.float32 if slow else torch.bfloat16)
    st = load(str(tmp_path / "model"), "cpu", "bfloat16")
    assert st.dtype == torch.bfloat16
    assert st.encode(TEXTS).dtype == np.float32
    exact = load(str(tmp_path / "model"), "cpu", "float32")
    assert exact.dtype == torch.float32
    assert (st.encode(TEXTS) * exact.encode(TEXTS)).sum(axis=1).min() > 0.99


def test_a_model_keeps_the_dtype_of_its_base_unless_asked(
    tiny_base: Path, tmp_path: Path, tiny_tokenizer
) -> None:
    halves = MistralForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    halves.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    for asked, expected in ({}, torch.bfloat16), ({"dtype": "float32"}, torch.float32):
        model = make(tmp_path / "base", "latent", **asked)
        assert model.decoder.dtype == torch.float32  # in memory, to be trained
        save(model, tmp_path / "model")
        for file in ("model.safetensors", "1_Pool/model.safetensors"):
            assert {tensor.dtype for tensor in load_file(tmp_path / "model" / file).values()} == {expected}
        name = str(expected).removeprefix("torch.")
        assert Contract.load(tmp_path / "model").dtype == name
        assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == name
    save(model, tmp_path / "again", dtype="bfloat16")
    assert Contract.load(tmp_path / "again").dtype == "bfloat16"
    assert model.decoder.dtype == torch.float32


def test_the_side_of_the_padding_does_not_matter(tiny_base: Path, tmp_path: Path, tiny_tokenizer) -> None:
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    absolute = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), **size))
    spread_weights(absolute)
    absolute.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for base in (tiny_base, tmp_path):
        for kind in KINDS:
            model = make(base, kind)
            right, left = (embed(model, TEXTS, side=side) for side in ("right", "left"))
            np.testing.assert_allclose(right, left, atol=2e-6)
            np.testing.assert_allclose(embed(model, TEXTS[:1]), right[:1], atol=2e-6)


def test_left_padding_of_absolute_positions_needs_embedforge(
    tmp_path: Path, tiny_tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), **size))
    spread_weights(decoder)
    decoder.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    save(make(tmp_path / "base", padding_side="left"), tmp_path / "model")
    assert "away" in caplog.text
    assert not (tmp_path / "model" / "sentence_bert_config.json").exists()
    load(str(tmp_path / "model"), "cpu")


def test_a_family_that_needs_module_flags_needs_embedforge(
    tmp_path: Path, tiny_tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    decoder = StableLmForCausalLM(StableLmConfig(vocab_size=len(tiny_tokenizer), **size, **heads))
    spread_weights(decoder)
    decoder.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    model = make(tmp_path / "base")
    save(model, tmp_path / "model")
    assert "causal again" in caplog.text
    st = load(str(tmp_path / "model"), "cpu")
    for text in TEXTS:
        np.testing.assert_allclose(st.encode([text]), embed(model, [text]), atol=1e-6)


@pytest.mark.parametrize("sliding_window", ["off", "keep"])
def test_a_window_stays_as_it_was_trained(tiny_base: Path, tmp_path: Path, sliding_window: str) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 3}))
    contract = Contract(max_tokens=64)
    model = build(base=str(folder), contract=contract, sliding_window=sliding_window).eval()
    unlimited = embed(make(tiny_base), TEXTS)
    assert (np.abs(embed(model, TEXTS) - unlimited).max() < 1e-6) == (sliding_window == "off")
    save(model, tmp_path / "model")
    np.testing.assert_allclose(
        load(str(tmp_path / "model"), "cpu").encode(TEXTS), embed(model, TEXTS), atol=1e-6
    )
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(plain.encode(TEXTS), embed(model, TEXTS), atol=1e-6)


def test_an_adapter_runs_is_not_saved_and_is_saved_when_merged(tiny_base: Path, tmp_path: Path) -> None:
    model = make(tiny_base)
    bare = embed(model, TEXTS)
    model.decoder = get_peft_model(model.decoder, LoraConfig(r=4, target_modules="all-linear"))
    spread_weights(model.decoder, seed=1)
    adapted = embed(model.eval(), TEXTS)
    assert np.abs(adapted - bare).max() > 0.01
    np.testing.assert_allclose(embed(model, TEXTS, side="left"), adapted, atol=2e-6)
    with pytest.raises(EmbedforgeError, match="merge"):
        save(model, tmp_path / "model")
    model.decoder = model.decoder.merge_and_unload()
    save(model, tmp_path / "model")
    np.testing.assert_allclose(load(str(tmp_path / "model"), "cpu").encode(TEXTS), adapted, atol=1e-5)


def test_saving_leaves_the_model_in_memory_as_it_was(tiny_base: Path, tmp_path: Path) -> None:
    model = make(tiny_base, "latent", dtype="bfloat16").train()
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict().items()}
    save(model, tmp_path / "model")
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.data_ptr() == before[name][1]


def test_saving_holds_one_copy_of_the_model_at_a_time(tiny_base: Path, tmp_path: Path, monkeypatch) -> None:
    """Beside the model being saved there is either the copy for the goldens or sentence-transformers' own."""
    model = make(tiny_base)
    compare = layout.difference_of_stock
    decoders = []

    def spy(folder: Path, contract: Contract) -> str | None:
        decoders.extend(found for found in gc.get_objects() if isinstance(found, MistralModel))
        return compare(folder, contract)

    others = {id(found) for found in gc.get_objects() if isinstance(found, MistralModel)}
    monkeypatch.setattr(layout, "difference_of_stock", spy)
    gc.disable()  # What only the collector would find is too late.
    try:
        save(model, tmp_path / "model")
    finally:
        gc.enable()
    assert {id(found) for found in decoders} <= others
    assert any(found is model.decoder for found in decoders)


def test_the_folder_says_what_it_is(saved_latent: Path, tiny_base: Path) -> None:
    card = (saved_latent / "README.md").read_text()
    assert "recipe 'tiny'" in card
    assert tiny_base.name in card
    assert str(tiny_base.parent) not in card
    assert json.loads((saved_latent / "recipe.json").read_text())["name"] == "tiny"
    contract = Contract.load(saved_latent)
    assert contract.goldens
    assert all(len(golden.vector) == 16 for golden in contract.goldens)
    for file in saved_latent.rglob("*.json"):
        assert ".partial" not in file.read_text()


def test_load_takes_other_models_as_they_are_and_refuses_bare_decoders(
    tiny_base: Path, tmp_path: Path, tiny_tokenizer
) -> None:
    with pytest.raises(EmbedforgeError, match="embedforge train"):
        load(str(tiny_base), "cpu")
    bert = BertModel(
        BertConfig(
            vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )
    bert.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    logging.disable(logging.WARNING)
    SentenceTransformer(str(tmp_path), device="cpu").save(str(tmp_path / "st"))
    other = load(str(tmp_path / "st"), "cpu")
    logging.disable(logging.NOTSET)
    assert other.encode(["text"]).shape == (1, 16)
    with pytest.raises(EmbedforgeError, match="Transformer, Pooling"):
        embedding_model(other)


def test_load_is_a_public_name(saved_latent: Path) -> None:
    assert embedforge.load is load
    assert embedforge.load(str(saved_latent)).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_official_nv_embed_folder(tmp_path: Path) -> None:
    folder = GOLDEN / "nvembed_tiny"
    facts = json.loads((folder / "golden.json").read_text())
    expected = load_file(folder / "golden.safetensors")
    st = load(str(folder), "cpu")
    texts = facts["texts"]
    np.testing.assert_allclose(st.encode(texts), expected["plain.embeddings"].numpy(), atol=1e-5)
    instruction = facts["cases"]["instr"]["instruction"]
    np.testing.assert_allclose(
        st.encode(texts, prompt=instruction), expected["instr.embeddings"].numpy(), atol=1e-5
    )
    save(embedding_model(st), tmp_path / "model")
    again = load(str(tmp_path / "model"), "cpu")
    np.testing.assert_allclose(again.encode(texts), expected["plain.embeddings"].numpy(), atol=1e-5)
