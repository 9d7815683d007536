"""Text to vectors: the one path that mining, evaluation and search use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from embedforge.runtime import (
    at_once,
    bfloat16_autocast,
    empty_cache,
    fast_bfloat16,
    halved_budget,
    release_freed_memory,
    require_finite,
    side_by_side,
)
from embedforge.text.batching import micro_batches
from embedforge.text.render import Rendered, Renderer, texts_in_order

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

TOKENS_PER_BATCH = 8192
TOKENS_SIDE_BY_SIDE = 2048
"""Fewest tokens of a batch where several share the budget, each on some of a CPU's threads."""
TEXTS_PER_WINDOW = 4096
TEXTS_TO_RELEASE = 1024
"""After so many texts together the holes that batches of many sizes left are handed back to the system."""


class TextEmbedder(Protocol):
    """What `encode` needs of a model: `EmbeddingModel` has it, and so has any module with a renderer."""

    renderer: Renderer
    training: bool

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights; the device of the first is the model's."""

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on or off."""

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, pooling_mask: Tensor) -> Tensor:
        """Embed what the renderer made: three [texts, tokens] int64 to [texts, dim]."""


@torch.no_grad()
def encode(
    model: TextEmbedder | SentenceTransformer,
    texts: Iterable[str],
    prefix: str = "",
    *,
    suffix: str = "",
    max_tokens: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    bfloat16: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return the embeddings of `texts`, in their order: [texts, dim] float32 ([0, 0] without texts).

    They are of unit length if the contract says so. The same text under prefix and suffix has the vector
    that `encode_query` or `encode_document` of the loaded SentenceTransformer gives.

    Texts are sorted by length within windows and cut into batches of at most `tokens_per_batch` tokens,
    padding included, so that little is computed for padding.

    >>> import embedforge
    >>> model = embedforge.load("model", device="cpu")
    >>> embedforge.encode(model, ["git reset moves the branch", "git stash puts changes aside"]).shape
    (2, 384)

    Args:
        model: what `embedforge.load` gives of a folder that embedforge saved, an `EmbeddingModel`, or
            anything with its `renderer` and `forward`, on its device.
        texts: any number of texts: a list, an array, a column of a table.
        prefix: what stands before each text: `contract.query_prefix(...)` or `contract.document_prefix()`.
        suffix: what follows it, from the same template: `contract.query_suffix(...)` or
            `contract.document_suffix()`; "" for most.
        max_tokens: shorter than the contract's limit, if given.
        tokens_per_batch: tokens of one forward pass; halved, with a warning, where memory does not suffice.
        bfloat16: autocast matrix products; by default where the machine does them natively.
        progress: called with the number of texts finished since the last call.

    Raises:
        EmbedforgeError: one string in place of a list; a text that is no string or not valid Unicode; a
            single text that does not fit in memory; a vector that is not finite.
    """
    texts = texts_in_order(texts)
    if not hasattr(model, "renderer"):
        from embedforge.model.encoder import embedding_model  # sentence-transformers, if it is not here yet

        model = embedding_model(model)
    was_training = model.training
    model.train(False)
    device = next(model.parameters()).device
    use_bfloat16 = fast_bfloat16(device) if bfloat16 is None else bfloat16
    vectors: list[np.ndarray] = []
    try:
        for start in range(0, len(texts), TEXTS_PER_WINDOW):
            window = model.renderer.render(
                texts[start : start + TEXTS_PER_WINDOW], prefix, suffix=suffix, max_tokens=max_tokens
            )
            window_vectors, tokens_per_batch = encode_rendered(
                model, window, tokens_per_batch, bfloat16=use_bfloat16, progress=progress
            )
            require_finite(window_vectors, texts[start : start + TEXTS_PER_WINDOW])
            vectors.append(window_vectors)
            if len(window) >= TEXTS_TO_RELEASE:
                release_freed_memory()
    finally:
        model.train(was_training)
    return np.concatenate(vectors) if vectors else np.empty((0, 0), dtype=np.float32)


def encode_rendered(
    model: TextEmbedder,
    window: Sequence[Rendered],
    budget: int,
    *,
    bfloat16: bool,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, int]:
    """Return vectors of rendered texts, and the budget of tokens a batch that memory had room for.

    What `encode` does with a window, for a caller that keeps texts waiting as tokens (a server). Out of
    memory, the budget is halved and what is missing is embedded in smaller batches.

    Args:
        model: in evaluation mode, see `encode`.
        window: at least one text.
        budget: tokens of one forward pass, padding included; on a CPU of those side by side.
        bfloat16: autocast matrix products.
        progress: called with the number of texts finished since the last call.

    Returns:
        [texts, dim] float32 in their order, and `budget` or what is left of it.

    Raises:
        EmbedforgeError: a single text does not fit in memory.
    """
    device = next(model.parameters()).device
    beside = at_once() if device.type == "cpu" else 1

    def embed(rows: Sequence[int]) -> np.ndarray:
        batch = model.renderer.pad([window[row] for row in rows])
        with torch.no_grad(), bfloat16_autocast(device, bfloat16):
            output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
        return output.float().cpu().numpy()

    lengths = [len(text.input_ids) for text in window]
    vectors: dict[int, np.ndarray] = {}
    while left := [row for row in range(len(window)) if row not in vectors]:
        try:
            share = max(budget // beside, min(budget, TOKENS_SIDE_BY_SIDE))
            batches = [
                [left[index] for index in batch]
                for batch in micro_batches([lengths[row] for row in left], share)
            ]
            embedded = side_by_side(embed, batches) if beside > 1 else map(embed, batches)
            for rows, found in zip(batches, embedded, strict=True):
                vectors.update(zip(rows, found, strict=True))
                if progress is not None:
                    progress(len(rows))
            continue
        except Exception as error:  # the class differs by device and by version of torch
            longest = max(lengths[row] for row in left if row not in vectors)
            at_least = max(budget, beside * longest)  # tokens in memory
            smaller = halved_budget(
                error, at_least, longest, "use a lower limit of tokens (--max-tokens), or another device"
            )
        # Outside the except block: the exception's traceback would keep the failed batch alive.
        logger.warning("out of memory with %d tokens a batch; going on with %d", budget, smaller)
        budget, beside = smaller, 1  # a text that has all the memory to itself may fit
        empty_cache()
    return np.stack([vectors[row] for row in range(len(window))]), budget
