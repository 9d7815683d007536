"""Edges of LLM2Vec's stages: too short texts, mask tokens that are none, bases that are embedding models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import embedforge
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.untrained import load_untrained
from embedforge.model.encoder import EmbeddingModel, build, embedding_model, save
from embedforge.prove.systems import as_it_came
from embedforge.recipe import parse_recipe
from embedforge.text.contract import Contract
from embedforge.train.run import train
from models_for_tests import SHAPE, TEXTS, embed, make, shape_of
from stages_for_tests import begin, mntp, recipe_of, simcse, write_texts


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.txt")


# --- texts and mask tokens -------------------------------------------------------------------------


def test_chunks_with_nothing_to_predict_are_left_out_and_counted(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BOS, a letter and EOS a text: of three chunks of two tokens only the one with BOS can predict it."""
    file = tmp_path / "short.txt"
    file.write_text("a\n" * 20)
    _, work = begin(recipe_of(tiny_base, mntp(file, objective={"chunk_tokens": 2})))
    assert (len(work.chunks[0]), work.chunks[0].dropped) == (10, 20)
    assert "source 'short': 20 of 30 chunks are left out" in caplog.text
    assert torch.isfinite(work.step(work.module, 0).loss)


def test_texts_with_nothing_to_predict_at_all_are_an_error(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("a\n" * 20)
    contract = {"add_bos": False, "add_eos": False, "max_tokens": 4}
    one = tmp_path / "one.txt"
    one.write_text("a\n")
    message = r"source 'one': there is nothing to predict in 1 texts of together 1 tokens"
    with pytest.raises(EmbedforgeError, match=message):
        begin(recipe_of(tiny_base, mntp(one, objective={"chunk_tokens": 4}), contract=contract))
    with pytest.raises(EmbedforgeError, match="give 4 chunks an epoch, a step takes 6: lower batch_queries"):
        begin(recipe_of(tiny_base, mntp(file)))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"mask_token": "<mask>"}, r"mask token '<mask>' is not in the vocabulary.*add_mask_token: true"),
        (
            {"mask_token": "hidden word"},
            r"'hidden word' is not in the vocabulary.* for which it is \d+ tokens",
        ),
        ({"mask_token": "word", "add_mask_token": True}, r"'word' cannot be added.*Put it in brackets"),
    ],
)
def test_a_mask_token_that_is_none_is_refused_before_the_first_step(
    objective: dict[str, Any], message: str, tiny_base: Path, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        train(recipe_of(tiny_base, mntp(texts, objective=objective)), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "log.jsonl").exists()


# --- a stage with a pooling of its own -------------------------------------------------------------


def test_a_stage_has_no_pooling_of_its_own(texts: Path) -> None:
    with pytest.raises(EmbedforgeError, match=r"stages\.0\.pooling: unknown key"):
        parse_recipe({"name": "r", "stages": [simcse(texts, pooling={"kind": "mean"})]}, "r.yaml")


# --- a base that is an embedding model already -----------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of each kind of pooling, whose pooler is not what a seed would give."""
    folders = {}
    for kind in ("mean", "latent", "self_attention"):
        model = make(tiny_base, kind)
        with torch.no_grad():
            for number, weight in enumerate(model.pooler.parameters()):
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        folders[kind] = tmp_path_factory.mktemp("trained") / kind
        save(model, folders[kind])
    return folders


def pooler_of(model: EmbeddingModel) -> dict[str, Tensor]:
    return model.pooler.state_dict()


@pytest.mark.parametrize("kind", ["latent", "self_attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pooler_of_the_same_kind_and_shape_is_taken_over(
    kind: str, dtype: torch.dtype, trained: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    saved = embedding_model(embedforge.load(str(trained[kind]), "cpu"))
    contract = Contract(max_tokens=64)
    found = build(
        base=str(trained[kind]), contract=contract, pooling={"kind": kind, **shape_of(kind)}, dtype=dtype
    )
    for name, weight in pooler_of(saved).items():
        assert torch.equal(pooler_of(found)[name], weight.to(dtype))
    if dtype == torch.float32:
        np.testing.assert_allclose(embed(found.eval(), TEXTS), embed(saved, TEXTS), rtol=0, atol=1e-6)
    assert not caplog.records


@pytest.mark.parametrize(
    ("before", "pooling", "words"),
    [
        ("latent", {"kind": "mean"}, ["'latent'", "'mean'", "left behind"]),
        (
            "latent",
            {"kind": "self_attention", **shape_of("self_attention")},
            ["'latent'", "'self_attention'", "left behind"],
        ),
        ("latent", {"kind": "latent", **SHAPE, "latents": 9}, ["'latent' of another shape", "left behind"]),
        (
            "latent",
            {"kind": "latent", **SHAPE, "heads": 4, "head_dim": 8},
            ["of another shape", "left behind"],
        ),
        ("mean", {"kind": "latent", **SHAPE}, ["'mean'", "'latent'"]),
        ("mean", {"kind": "last"}, ["'mean'", "'last'"]),
        ("mean", {"kind": "mean"}, []),
    ],
)
def test_another_pooling_is_said_and_starts_afresh(
    before: str,
    pooling: dict[str, Any],
    words: list[str],
    trained: dict[str, Path],
    tiny_base: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    contract = Contract(max_tokens=64)
    found = build(base=str(trained[before]), contract=contract, pooling=pooling, seed=3)
    fresh = build(base=str(tiny_base), contract=contract, pooling=pooling, seed=3)
    assert pooler_of(found).keys() == pooler_of(fresh).keys()
    assert all(torch.equal(weight, pooler_of(fresh)[name]) for name, weight in pooler_of(found).items())
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == bool(words)
    for word in [*words, str(trained[before])] if words else ():
        assert word in warned[0]


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_base_keeps_the_attention_that_it_was_trained_with(
    attention: str, tiny_base: Path, tmp_path: Path
) -> None:
    save(make(tiny_base, attention=attention), tmp_path / "trained")
    other = {"causal": "bidirectional", "bidirectional": "causal"}[attention]
    message = (
        f"trained with {attention} attention, and contract.attention is '{other}'.*set contract.attention"
    )
    with pytest.raises(EmbedforgeError, match=message):
        build(base=str(tmp_path / "trained"), contract=Contract(max_tokens=64, attention=other))
    same = build(base=str(tmp_path / "trained"), contract=Contract(max_tokens=64, attention=attention))
    plain = make(tiny_base, attention=attention)
    np.testing.assert_allclose(embed(same.eval(), TEXTS), embed(plain, TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_untrained_baselines_of_an_embedding_model_run_as_it_was_trained(
    attention: str, tiny_base: Path, tmp_path: Path
) -> None:
    save(make(tiny_base, attention=attention), tmp_path / "trained")
    baseline = embedding_model(load_untrained(f"{tmp_path / 'trained'}@mean", device="cpu"))
    assert baseline.contract.attention == attention
    assert embedding_model(load_untrained(f"{tiny_base}@mean", device="cpu")).contract.attention == "causal"
    recipe = recipe_of(tmp_path / "trained", mntp(tmp_path / "unused.txt"), contract={"attention": attention})
    assert as_it_came(recipe).contract.attention == attention
