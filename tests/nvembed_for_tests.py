"""The official code's numbers for a tiny NV-Embed checkpoint, and ways to change the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MistralConfig, MistralModel

from embedforge.model.encoder import EmbeddingModel
from embedforge.model.latent import LatentAttention
from embedforge.model.shards import INDEX, WEIGHTS

GOLDEN = Path(__file__).parent / "golden" / "nvembed_tiny"

FACTS = json.loads((GOLDEN / "golden.json").read_text())

TEXTS: list[str] = FACTS["texts"]

CASES = ["plain", "instr", "instr_nospace", "plain_trunc12", "instr_trunc32"]


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def shard(folder: Path, count: int) -> list[Path]:
    """Cut model.safetensors into `count` shards, tensors dealt out in turn."""
    tensors = load_file(folder / WEIGHTS)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    where = {key: names[i % count] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if where[key] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / WEIGHTS).unlink()
    return [folder / name for name in names]


def batch(golden: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    return {
        "input_ids": golden[f"{case}.input_ids"].long(),
        "attention_mask": golden[f"{case}.attention_mask"].long(),
        "pooling_mask": golden[f"{case}.pool_mask"].long(),
    }


def small_model(
    official: EmbeddingModel, hidden: int = 64, layers: int = 1, **contract: Any
) -> EmbeddingModel:
    """An NV-Embed of other shapes: wide heads in the decoder, few latents, three narrow latent heads."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        sliding_window=None,
        is_causal=False,
    )
    return EmbeddingModel(
        MistralModel(config).eval(),
        LatentAttention(hidden, latents=4, heads=3, head_dim=8).eval(),
        official.tokenizer,
        official.contract.model_copy(update=contract),
        {"latents": 4, "heads": 3, "head_dim": 8, "feed_forward_multiple": 4},
    )
