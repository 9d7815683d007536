"""Stages that run fewer layers: a static embedder first, then layers that come in without an effect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel, load
from embedforge.train.run import stage_folder, train
from embedforge.train.stages import begin_stage, model_after
from stages_for_tests import LORA, crash_in, recipe_of, simcse, supervised, write_texts
from training_for_tests import assert_same_weights, weights, write_pairs

TEXTS = ["a river bends", "a bends river", "something else"]


def vectors(model: EmbeddingModel) -> np.ndarray:
    batch = model.renderer.batch(TEXTS)
    with torch.no_grad():
        return model.eval()(**batch).numpy()


def test_layers_come_in_without_an_effect_and_are_trained(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    static = supervised(tmp_path / "pairs.jsonl", layers=0) | {"name": "static"}
    recipe = recipe_of(tiny_base, static, supervised(tmp_path / "pairs.jsonl") | {"name": "whole"})
    whole = train(recipe, tmp_path / "whole", quiet=True, own_test=True, device="cpu")

    before = model_after(recipe, [stage_folder(tmp_path / "whole", recipe, 0) / "done.safetensors"], "cpu")
    alone = vectors(before)
    assert not np.allclose(alone[0], alone[2], atol=1e-3)
    np.testing.assert_allclose(alone[0], alone[1], atol=1e-6)  # A bag of tokens has no order.
    begin_stage(before, recipe, recipe.stages[1])
    np.testing.assert_array_equal(vectors(before), alone)
    of_base = load_file(tiny_base / "model.safetensors")
    layer = before.decoder.layers[1]
    assert not torch.equal(layer.self_attn.q_proj.weight, of_base["model.layers.1.self_attn.q_proj.weight"])
    assert layer.input_layernorm.weight.eq(1).all()
    assert 0.01 < layer.mlp.gate_proj.weight.std() < 0.03

    after = load(str(whole), "cpu").encode_document(TEXTS)
    assert not np.allclose(after[0], after[1], atol=1e-6)
    assert json.loads((whole / "config.json").read_text())["num_hidden_layers"] == 2
    np.testing.assert_allclose(SentenceTransformer(str(whole)).encode(TEXTS), after, atol=1e-6)

    for stage in ("static", "whole"):
        with crash_in(monkeypatch, stage, 3):
            train(recipe, tmp_path / "cut", resume=True, quiet=True, own_test=True, device="cpu")
    cut = train(recipe, tmp_path / "cut", resume=True, quiet=True, own_test=True, device="cpu")
    assert_same_weights(whole, cut)


def test_a_static_embedder_may_be_the_result(tiny_base: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    recipe = recipe_of(tiny_base, supervised(tmp_path / "pairs.jsonl", layers=0))
    model = train(recipe, tmp_path / "run", quiet=True, own_test=True, device="cpu")
    assert not [name for name in weights(model) if "layers." in name]
    np.testing.assert_allclose(
        SentenceTransformer(str(model)).encode(TEXTS),
        load(str(model), "cpu").encode_document(TEXTS),
        atol=1e-6,
    )


def test_what_cannot_be_honoured_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.txt")
    with pytest.raises(EmbedforgeError, match=r"layers is 9, and the decoder has 2"):
        train(recipe_of(tiny_base, simcse(texts, layers=9)), tmp_path / "run", quiet=True, device="cpu")
    with pytest.raises(EmbedforgeError, match=r"stages.simcse.layers \(1\) cannot be had with model.adapter"):
        recipe_of(tiny_base, simcse(texts, layers=1), adapter=LORA)
