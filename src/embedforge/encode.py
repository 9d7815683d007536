"""Text to vectors: the one path that mining, evaluation and search use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from embedforge.objectives.gradcache import micro_batches
from embedforge.runtime import bfloat16_autocast, fast_bfloat16
from embedforge.text.render import Renderer

TOKENS_PER_BATCH = 8192
TEXTS_PER_WINDOW = 4096


@torch.no_grad()
def encode(
    model: nn.Module,
    texts: Sequence[str],
    prefix: str = "",
    *,
    max_tokens: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    bfloat16: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return the embeddings of `texts`, in their order: [texts, dim] float32, unit length.

    Texts are sorted by length within windows and cut into batches of at most `tokens_per_batch` tokens,
    padding included, so that little is computed for padding.

    Args:
        model: an `EmbeddingModel` (or anything with its `renderer` and `forward`), on its device.
        texts: any number of texts.
        prefix: the rendered instruction (`contract.query_prefix(...)`), the same for all; "" for documents.
        max_tokens: shorter than the contract's limit, if given.
        tokens_per_batch: tokens of one forward pass.
        bfloat16: autocast matrix products; by default where the machine does them natively.
        progress: called with the number of texts finished since the last call.
    """
    renderer = cast(Renderer, model.renderer)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    use_bfloat16 = fast_bfloat16(device) if bfloat16 is None else bfloat16
    vectors: list[np.ndarray] = []
    try:
        for start in range(0, len(texts), TEXTS_PER_WINDOW):
            window = renderer.render(texts[start : start + TEXTS_PER_WINDOW], prefix, max_tokens=max_tokens)
            found: dict[int, np.ndarray] = {}
            for rows in micro_batches([len(text.input_ids) for text in window], tokens_per_batch):
                batch = renderer.pad([window[row] for row in rows])
                with bfloat16_autocast(device, use_bfloat16):
                    output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
                found.update(zip(rows, output.float().cpu().numpy(), strict=True))
                if progress is not None:
                    progress(len(rows))
            vectors.append(np.stack([found[row] for row in range(len(window))]))
    finally:
        model.train(was_training)
    return np.concatenate(vectors) if vectors else np.empty((0, 0), dtype=np.float32)
