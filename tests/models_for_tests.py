"""A tiny embedding model of each pooling, and what it makes of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embedforge.model.encoder import EmbeddingModel, build
from embedforge.model.pooling import pooler_class
from embedforge.text.contract import Contract

SHAPE = {"latents": 8, "heads": 2, "head_dim": 16, "feed_forward_multiple": 2}

KINDS = ["last", "mean", "weighted_mean", "cls", "latent", "self_attention"]

needs_bytes = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="products of bytes are oneDNN's, for x86",
)

TEXTS = ["how deep is the river?", "", " odd\n🙂", "bread and music " * 40]


def shape_of(kind: str) -> dict[str, int]:
    """The settings of a kind of pooling."""
    return {name: SHAPE[name] for name in pooler_class(kind).settings()}


def make(base: Path, kind: str = "mean", **settings) -> EmbeddingModel:
    return build(
        base=str(base), contract=Contract(max_tokens=64, **settings), pooling={"kind": kind, **shape_of(kind)}
    ).eval()


@torch.no_grad()
def embed(model: EmbeddingModel, texts: list[str], prefix: str = "", side: str | None = None) -> np.ndarray:
    return model(**model.renderer.pad(model.renderer.render(texts, prefix), side=side)).numpy()
