"""Half precision: the weights are rounded, the frequencies of the rotary positions are not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from embedforge.model.encoder import build, embedding_model, load, save
from embedforge.text.contract import Contract

POSITIONS = torch.arange(3990, 4000)[None]
CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "to the CPU as well": lambda model: model.to("cpu", torch.bfloat16),
    "there and back": lambda model: model.bfloat16().float().bfloat16(),
    "child of a wrapper": lambda model: nn.Sequential(model).bfloat16()[0],
}


def angles(decoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Cosines and sines at positions near 4,000, as float32."""
    cos, sin = decoder.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), POSITIONS)
    return cos.float(), sin.float()


@pytest.fixture(scope="module")
def expected(tiny_base: Path) -> tuple[Tensor, Tensor]:
    return angles(AutoModel.from_pretrained(tiny_base, dtype=torch.bfloat16))


def assert_same(decoder: nn.Module, expected: tuple[Tensor, Tensor]) -> None:
    assert decoder.dtype == torch.bfloat16
    for found, wanted in zip(angles(decoder), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_plain_cast_turns_the_angles(tiny_base: Path, expected: tuple[Tensor, Tensor]) -> None:
    rounded = AutoModel.from_pretrained(tiny_base, dtype=torch.float32).to(torch.bfloat16)
    assert max((a - b).abs().max() for a, b in zip(angles(rounded), expected, strict=True)) > 0.3


@pytest.mark.parametrize("cast", CASTS)
def test_casting_a_model_keeps_the_angles(
    tiny_base: Path, expected: tuple[Tensor, Tensor], cast: str
) -> None:
    model = build(base=str(tiny_base), contract=Contract(max_tokens=64))
    assert_same(CASTS[cast](model).decoder, expected)


@pytest.mark.parametrize("cast", CASTS)
def test_casting_a_loaded_sentence_transformer_keeps_the_angles(
    saved_latent: Path, expected: tuple[Tensor, Tensor], cast: str
) -> None:
    st = CASTS[cast](load(str(saved_latent), "cpu"))
    assert_same(embedding_model(st).decoder, expected)
    assert_same(copy.deepcopy(st)[0].decoder, expected)


def test_every_way_to_a_bfloat16_model_gives_the_same_angles(
    tiny_base: Path, saved_latent: Path, tmp_path: Path, expected: tuple[Tensor, Tensor]
) -> None:
    contract = Contract(max_tokens=64, dtype="bfloat16")
    built = build(base=str(tiny_base), contract=contract)
    assert_same(built.decoder, expected)
    assert_same(
        build(base=str(tiny_base), contract=Contract(max_tokens=64), dtype="bfloat16").decoder, expected
    )
    assert_same(embedding_model(load(str(saved_latent), "cpu", "bfloat16")).decoder, expected)
    save(built, tmp_path / "model")
    assert_same(embedding_model(load(str(tmp_path / "model"), "cpu", "bfloat16")).decoder, expected)


def test_an_official_checkpoint_in_bfloat16(official_folder: Path) -> None:
    cast = embedding_model(load(str(official_folder), "cpu")).bfloat16()
    loaded = embedding_model(load(str(official_folder), "cpu", "bfloat16"))
    assert_same(cast.decoder, angles(loaded.decoder))
    assert loaded.decoder.rotary_emb.inv_freq.dtype == torch.float32


def test_half_and_double_precision(tiny_base: Path) -> None:
    model = build(base=str(tiny_base), contract=Contract(max_tokens=64)).half()
    assert model.decoder.dtype == torch.float16
    assert model.decoder.rotary_emb.inv_freq.dtype == torch.float32
    assert model.double().decoder.rotary_emb.inv_freq.dtype == torch.float64
