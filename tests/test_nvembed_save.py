"""Models written in the official NV-Embed layout, and those that it cannot hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel
from embedforge.model.nvembed import is_nvembed, load_nvembed
from embedforge.model.nvembed_save import save_nvembed
from embedforge.model.pooling import build_pooler
from embedforge.model.shards import INDEX, WEIGHTS
from nvembed_for_tests import FACTS, GOLDEN, TEXTS, small_model


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000])
def test_saved_model_is_read_back_bit_for_bit(
    official_model: EmbeddingModel, tmp_path: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    model = small_model(official_model, max_tokens=100, normalize=False, default_instruction="Find it")
    for parameter in model.parameters():  # model.to(dtype) would round the rotary frequencies as well
        parameter.data = parameter.data.to(dtype)
    save_nvembed(model, tmp_path / "out", max_shard_bytes)
    assert is_nvembed(tmp_path / "out")
    assert (tmp_path / "out" / INDEX).exists() == (max_shard_bytes < 10**9)
    again = load_nvembed(tmp_path / "out")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before
    )
    assert again.contract == model.contract.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    tokens = model.renderer.batch(TEXTS, "Instruct: a\nQuery: ")
    assert all(
        torch.equal(tokens[key], other)
        for key, other in again.renderer.batch(TEXTS, "Instruct: a\nQuery: ").items()
    )
    assert torch.equal(model(**tokens), again(**tokens))


def test_saved_official_model_has_the_official_names_and_numbers(
    official_model: EmbeddingModel, tmp_path: Path
) -> None:
    save_nvembed(official_model, tmp_path / "out")
    assert sorted(load_file(tmp_path / "out" / WEIGHTS)) == FACTS["param_names"]
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = json.loads((GOLDEN / "config.json").read_text())
    assert ours["latent_attention_config"] == theirs["latent_attention_config"]
    ignored = {"_name_or_path", "sliding_window", "use_cache"}  # of no effect on a vector
    for key, value in theirs["text_config"].items():
        assert key in ignored or ours["text_config"][key] == value, key
    for key in ("model_type", "add_eos", "is_mask_instruction", "padding_side", "mask_type", "hidden_size"):
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({"isolate_prefix": True}, "isolate_prefix is True"),
        ({"eos_survives_truncation": True}, "eos_survives_truncation is True"),
        ({"pool_bos": "never"}, "pool_bos is 'never'"),
        ({"attention": "causal"}, "attention is 'causal'"),
    ],
)
def test_a_contract_the_layout_cannot_keep_is_refused(
    official_model: EmbeddingModel, tmp_path: Path, contract: dict[str, Any], message: str
) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        save_nvembed(small_model(official_model, **contract), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_the_layout_cannot_hold_are_refused(official_model: EmbeddingModel, tmp_path: Path) -> None:
    model = small_model(official_model)
    windowed = small_model(official_model)
    windowed.decoder.config.sliding_window = 8
    with pytest.raises(EmbedforgeError, match="sliding window of 8"):
        save_nvembed(windowed, tmp_path / "out")
    mixed = small_model(official_model)
    mixed.pooler.bfloat16()
    with pytest.raises(EmbedforgeError, match="one dtype"):
        save_nvembed(mixed, tmp_path / "out")
    model.pooler = build_pooler("mean", 64)
    with pytest.raises(EmbedforgeError, match="MistralModel with MeanPooler"):
        save_nvembed(model, tmp_path / "out")
