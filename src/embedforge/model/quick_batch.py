"""Where the tokens of a batch stand on the quick way (`model.quick`): packed, and as attention wants them.

All rows of a layer but those of attention are the tokens of all texts, one behind the other. Attention sees
groups of texts of like length; queries that share a key stand below each other, so that a group's scores are
one product. Both orders are known before the first layer, so that each layer brings its heads from one to the
other and back by one `index_select`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LONGEST_BY_PRODUCTS = 1024
"""Texts above that many tokens are left to torch's own attention, which holds no matrix of all scores."""
GROUP = 1024
"""Tokens of the texts whose attention is computed together; of more, scores would leave the cache."""


@dataclass(frozen=True)
class Group:
    """Texts whose attention is computed together."""

    rows: Tensor
    """[texts * width]: where each of their tokens stands among all; the last row, of no text, for padding."""
    lengths: Sequence[int]
    width: int
    start: int
    """Rows, padding included, of the groups before it."""

    @property
    def is_long(self) -> bool:
        """Tell whether a matrix of all scores would be too large."""
        return self.width > LONGEST_BY_PRODUCTS

    def of(self, heads: Tensor, count: int) -> Tensor:
        """Cut this group out of heads that `HeadRows` has ordered: [texts, heads, width, dim]."""
        rows = heads[self.start * count : (self.start + len(self.rows)) * count]
        return rows.view(len(self.lengths), count, self.width, -1)


@dataclass(frozen=True)
class HeadRows:
    """In which order attention sees heads: by text, key head, query head of it, token."""

    query: Tensor
    """[all groups' rows * heads] int64, among the packed heads [rows * heads, dim]."""
    key: Tensor
    """[all groups' rows * key heads], likewise."""
    back: Tensor
    """[rows * heads]: where the packed heads stand in that order; behind its end what is of no text."""


@dataclass(frozen=True)
class Batch:
    """Where the tokens of texts stand, and what attention needs to know of them."""

    real: Tensor
    """[texts, tokens] bool."""
    tokens: int
    rows: int
    """`tokens` and at least one more, rounded up."""
    cos: Tensor
    """[rows, 1, dim] float32, of each token's position."""
    sin: Tensor
    groups: Sequence[Group]
    causal: bool
    dtype: torch.dtype
    _orders: dict[tuple[int, int], HeadRows] = field(default_factory=dict)
    _rotary: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def packed(self, padded: Tensor) -> Tensor:
        """Bring [texts, tokens, ...] to [rows, ...], zero behind the last token."""
        packed = padded.new_zeros((self.rows, *padded.shape[2:]))
        packed[: self.tokens] = padded[self.real]
        return packed if packed.dtype == torch.int64 else packed.to(self.dtype)

    def rotary(self, scale: float) -> tuple[Tensor, Tensor]:
        """Return cosines and sines times `scale`, that of the scores for queries, in `dtype`."""
        if scale not in self._rotary:
            self._rotary[scale] = (self.cos * scale).to(self.dtype), (self.sin * scale).to(self.dtype)
        return self._rotary[scale]

    def head_rows(self, heads: int, kept: int) -> HeadRows:
        """Return the order of so many heads of queries and of keys, made once for all layers."""
        if (heads, kept) not in self._orders:
            none = torch.empty(0, dtype=torch.int64)  # texts may all be empty
            query = torch.cat([none, *(_ordered(group, heads) for group in self.groups)])
            key = torch.cat([none, *(_ordered(group, kept) for group in self.groups)])
            back = torch.full((self.rows * heads,), len(query))
            back[query] = torch.arange(len(query))
            back[self.tokens * heads :] = len(query)
            self._orders[heads, kept] = HeadRows(query, key, back)
        return self._orders[heads, kept]


def _ordered(group: Group, heads: int) -> Tensor:
    """Number the heads [rows * heads] in the order [texts, heads, tokens]."""
    rows = group.rows.view(len(group.lengths), 1, group.width)
    return (rows * heads + torch.arange(heads)[:, None]).flatten()


def batch_of(decoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Batch:
    """Lay the real tokens of [texts, tokens] out."""
    real = attention_mask.bool()
    lengths = real.sum(dim=1).tolist()
    tokens = sum(lengths)
    rows = rounded_rows(tokens + 1)
    positions = input_ids.new_zeros(rows)
    positions[:tokens] = (attention_mask.cumsum(dim=1) - 1)[real]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else decoder.dtype
    exact = torch.empty(0, dtype=torch.float32)
    cos, sin = (part[0, :, None] for part in decoder.rotary_emb(exact, positions[None]))
    groups = list(groups_of(lengths, rows - 1))
    return Batch(real, tokens, rows, cos, sin, groups, is_causal(decoder), dtype)


def is_causal(decoder: Any) -> bool:
    """Tell whether a decoder's tokens see none behind them."""
    return bool(getattr(decoder.config, "is_causal", True))


def groups_of(lengths: Sequence[int], spare: int) -> Iterator[Group]:
    """Put texts together by length; `spare` is the row that stands for padding."""
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    widths: dict[int, list[int]] = {}
    for text, length in enumerate(lengths):
        if length:
            widths.setdefault(rounded_width(length), []).append(text)
    start = 0
    for width, texts in sorted(widths.items()):
        while texts:  # by powers of two, so that there are few shapes of these products too
            together = min(len(texts), max(1, GROUP // width))
            together = 1 << (together.bit_length() - 1)
            some, texts = texts[:together], texts[together:]
            rows = torch.full((len(some), width), spare)
            for place, text in enumerate(some):
                rows[place, : lengths[text]] = torch.arange(starts[text], starts[text] + lengths[text])
            yield Group(rows.flatten(), [lengths[text] for text in some], width, start)
            start += rows.numel()


def rounded_rows(rows: int) -> int:
    """Round up the rows of a product: eight shapes for each doubling, and steps of 256 from 2,048 on."""
    step = min(256, max(16, 1 << max(0, rows.bit_length() - 4)))
    return -(-rows // step) * step


def rounded_width(tokens: int) -> int:
    """Round up the tokens of a text in attention: by 16 to 64, then by 32; exact where nothing is masked."""
    if tokens > LONGEST_BY_PRODUCTS:
        return tokens
    step = 16 if tokens <= 64 else 32
    return -(-tokens // step) * step
