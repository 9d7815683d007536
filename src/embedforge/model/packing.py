"""Texts one behind the other, for training without padding: which lie together, and the proof that they may.

In a packed batch the texts are one row of tokens, so that all of a decoder but its attention computes real
tokens only, many texts at once. Attention is by rectangles: texts of (nearly) one length, laid side by side.
`model.short_attention` is told where they lie by an argument that transformers hands down to it.

Layers that mix tokens in other ways (convolutions, recurrences) would mix texts: `packs` therefore measures,
once, that a packed batch gives the states of a padded one. A window shorter than the texts is not packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedforge.model.attention import UNLIMITED
from embedforge.model.short_attention import NAME

PACKED = "rectangles"
"""The key of a packed batch beside its ids and masks: int64 [parts, 2], texts and tokens of each."""
PART_COST = 8
"""What another rectangle costs, in tokens: a few small operations in each layer."""
_SHAPES = (1, 13), (3, 5)
_WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size")


def rectangles_of(lengths: Sequence[int], most: int, part_cost: float = PART_COST) -> list[list[int]]:
    """Put texts together so that padding and the number of rectangles are least; return the texts in each.

    Args:
        lengths: tokens of each text.
        most: tokens of a rectangle, padding included; a longer text stands alone.
        part_cost: what another rectangle costs, in tokens; 0 for no padding at all.

    >>> rectangles_of([30, 9, 30, 8, 30], most=100)
    [[0, 2, 4], [1, 3]]
    """
    given = np.asarray(lengths)
    order = np.argsort(-given, kind="stable")
    sizes, starts = np.unique(-given[order], return_index=True)
    sizes, starts = -sizes, np.append(starts, len(order))
    # The cheapest way to cover all texts from a size on, and where its first rectangle ends.
    cheapest = np.zeros(len(starts))
    ends = np.zeros(len(starts), dtype=np.int64)
    for first in range(len(sizes) - 1, -1, -1):
        costs = sizes[first] * (starts[first + 1 :] - starts[first]) + part_cost + cheapest[first + 1 :]
        best = int(costs.argmin())
        cheapest[first], ends[first] = costs[best], first + 1 + best
    bounds = [0]
    while bounds[-1] < len(sizes):
        bounds.append(int(ends[bounds[-1]]))
    found = []
    for first, end in pairwise(bounds):
        texts = order[starts[first] : starts[end]].tolist()
        room = max(1, most // int(sizes[first]))
        found += [texts[at : at + room] for at in range(0, len(texts), room)]
    return found


def micro_batches_of(
    lengths: Sequence[int], most: int, part_cost: float = PART_COST
) -> list[list[list[int]]]:
    """Fill micro-batches of at most `most` tokens with rectangles, the longest texts first.

    >>> micro_batches_of([30, 9, 30, 8, 30], most=100)
    [[[0, 2, 4]], [[1, 3]]]
    """
    batches: list[list[list[int]]] = []
    room = 0
    for texts in rectangles_of(lengths, most, part_cost):
        size = len(texts) * max(lengths[text] for text in texts)
        if not batches or size > room:
            batches.append([])
            room = most
        batches[-1].append(texts)
        room -= size
    return batches


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Make one packed batch of padded ones: [1, tokens] each, and `PACKED`."""
    shapes = [part["input_ids"].shape for part in parts]
    batch = {name: torch.cat([part[name].flatten() for part in parts])[None] for name in parts[0]}
    return batch | {PACKED: torch.tensor([tuple(shape) for shape in shapes])}


def split(states: Tensor, rectangles: Sequence[Sequence[int]]) -> list[Tensor]:
    """Cut values [1, tokens, ...] of a packed batch into its rectangles, [texts, tokens, ...] each."""
    parts = states[0].split([texts * tokens for texts, tokens in rectangles])
    return [part.unflatten(0, shape) for part, shape in zip(parts, rectangles, strict=True)]


def unpacked(states: Tensor, rectangles: Sequence[tuple[int, int]]) -> Tensor:
    """Lay values [1, tokens, ...] of a packed batch out as [texts, longest, ...]; zero where nothing was."""
    longest = max(tokens for _, tokens in rectangles)
    texts = sum(count for count, _ in rectangles)
    places, first = [], 0
    for count, tokens in rectangles:
        rows = torch.arange(first, first + count)[:, None] * longest
        places.append((rows + torch.arange(tokens)).flatten())
        first += count
    flat = states.new_zeros(texts * longest, *states.shape[2:])
    return flat.index_copy(0, torch.cat(places).to(states.device), states[0]).unflatten(0, (texts, longest))


@torch.no_grad()
def packs(model: Any) -> bool:
    """Measure whether packed texts have the states that they have when padded; the random state stays.

    Args:
        model: an `EmbeddingModel`, not in shards.
    """
    decoder = model.decoder
    base = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    if base.config._attn_implementation != NAME or _reach(base) < model.contract.max_tokens:
        return False
    was_training, size = model.training, base.get_input_embeddings().num_embeddings
    model.eval()
    try:
        return all(_is_same(model, size, padding) for padding in (2, 0))
    except TypeError:  # A family that does not hand arguments down to its attention.
        return False
    finally:
        model.train(was_training)


def _reach(decoder: Any) -> int:
    """Return the shortest window of a decoder's layers: within it a packed text is as a padded one."""
    parts = [decoder.config, *decoder.modules()]
    found = [getattr(part, name, None) for part in parts for name in _WINDOWS]
    return min((window for window in found if isinstance(window, int) and window > 0), default=UNLIMITED)


def _is_same(model: Any, size: int, padding: int) -> bool:
    """Compare the states of a few texts, of which the last has so much padding on the right."""
    parts = []
    for shape in _SHAPES:
        ids = (torch.arange(shape[0] * shape[1], device=model.device).view(shape) * 7919 + 13) % size
        parts.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    mask = parts[-1]["attention_mask"]
    mask[-1, mask.shape[1] - padding :] = 0
    alone = [model.token_states(part["input_ids"], part["attention_mask"]) for part in parts]
    batch = joined(parts)
    both = model.token_states(batch["input_ids"], batch["attention_mask"], batch[PACKED].tolist())
    expected = torch.cat([states.flatten(0, 1) for states in alone]).float()
    real = batch["attention_mask"][0].bool()
    change = (both[0].float() - expected)[real].norm() / expected[real].norm()
    low = torch.is_autocast_enabled(model.device.type) or both.dtype in (torch.bfloat16, torch.float16)
    return bool(change < (2e-2 if low else 1e-4))
