"""Exact search: the documents of highest inner product, for any number of them, in little memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedforge.errors import EmbedforgeError
from embedforge.ranking import NOTHING, Floats, Indices
from embedforge.runtime import fast_bfloat16, keep_freed_memory

QUERIES_PER_BLOCK = 2048
QUERIES_WITHOUT_LIMIT = 512
"""Queries whose products with a whole block are held at once, to find a limit in them."""
_TILE = 1024
"""Documents whose products with a block of queries are computed together, so that they stay in the cache."""
DOCUMENTS_PER_BLOCK = 8192
FEWEST_FOR_BFLOAT16 = 32
"""Queries below which rounding the documents costs more than the faster product saves."""
_GROUP = 16
"""Columns whose maximum is compared first: all but a few hundredths of the scores are seen only once."""
_PAIRS_AT_ONCE = 1024


def exact_search(
    queries: NDArray[Any], documents: NDArray[Any], k: int, *, device: str | torch.device = "cpu"
) -> tuple[Indices, Floats]:
    """Return each query's `k` documents of highest inner product, best first, ties by document number.

    Works in blocks (see `Nearest`), so `documents` may be a memory map larger than memory.

    Args:
        queries: [n, dimensions], any float dtype; of unit length for cosine similarity.
        documents: [m, dimensions].
        k: at least 1.
        device: where the products are computed.

    Returns:
        Document numbers, int64 [n, min(k, m)], and inner products, float32 of the same shape.

    Raises:
        EmbedforgeError: a vector is not finite.
    """
    nearest = Nearest(queries, min(k, len(documents)), device=device)
    for start in range(0, len(documents), DOCUMENTS_PER_BLOCK):
        nearest.add(documents[start : start + DOCUMENTS_PER_BLOCK])
    return nearest.result()


class Nearest:
    """The `k` nearest documents of each query, exactly, while documents come in block after block.

    Products are first computed in bfloat16, where the machine does that natively, four times as fast as in
    float32. They are off by no more than a bound that Cauchy and Schwarz give from the lengths of what
    rounding cut off, so every document that could be among the best is known; these few are scored again
    in float32, pair by pair. Ranking and scores are therefore those of float32, and a score depends on its
    two vectors only, not on the blocks.

    Args:
        queries: [n, dimensions], any float dtype.
        k: how many to keep; at least 1.
        device: where the products are computed.
        bfloat16: filter in bfloat16; None does so where it is native and the queries are not few.

    Raises:
        EmbedforgeError: a query's vector is not finite.
    """

    def __init__(
        self,
        queries: NDArray[Any],
        k: int,
        *,
        device: str | torch.device = "cpu",
        bfloat16: bool | None = None,
    ) -> None:
        self.device = torch.device(device)
        keep_freed_memory()  # of a block's products, for the next one's
        if bfloat16 is None:
            bfloat16 = len(queries) >= FEWEST_FOR_BFLOAT16 and fast_bfloat16(self.device)
        self._queries = _finite(queries, self.device)
        self._lengths = self._queries.norm(dim=1)
        self._rounded = self._queries.to(torch.bfloat16 if bfloat16 else torch.float32)
        self._lost = (self._queries - self._rounded.float()).norm(dim=1)
        self._scores = torch.full((len(queries), k), -torch.inf, device=self.device)
        self._indices = torch.full((len(queries), k), NOTHING, device=self.device)
        self.seen = 0
        """Documents so far."""

    def result(self) -> tuple[Indices, Floats]:
        """Return document numbers, int64 [n, k], and inner products, float32 [n, k], best first.

        Documents are numbered from 0 in the order they came, and of equal scores the earlier one is
        better. Of fewer than `k` documents the rest are `NOTHING` with the score -inf.
        """
        return self._indices.cpu().numpy(), self._scores.cpu().numpy()

    def restore(self, indices: Indices, scores: Floats, seen: int) -> None:
        """Go on from an earlier `result`, after `seen` documents."""
        self._indices = torch.as_tensor(indices).to(self.device)
        self._scores = torch.as_tensor(scores).to(self.device)
        self.seen = seen

    def add(self, documents: NDArray[Any]) -> None:
        """Take in the next documents, [any number, dimensions] of any float dtype.

        Some thousands at once are best. The memory used grows with their number: about four float32 copies
        of them, and [512, number] products.

        Raises:
            EmbedforgeError: a vector is not finite, or has another number of dimensions than the queries.
        """
        block = _Block(_finite(documents, self.device), self._rounded.dtype)
        if block.vectors.shape[1] != self._queries.shape[1]:
            raise EmbedforgeError(
                f"documents have {block.vectors.shape[1]} dimensions, queries {self._queries.shape[1]}; "
                "they must come from one model"
            )
        with _full_accumulation():
            for start in range(0, len(self._queries), QUERIES_PER_BLOCK):
                self._add(slice(start, start + QUERIES_PER_BLOCK), block)
        self.seen += len(block.vectors)

    def _add(self, rows: slice, block: _Block) -> None:
        """Take a block in for some queries; shapes below: Q queries, B documents, P pairs of them."""
        error = block.error(self._lengths[rows], self._lost[rows])
        limit = self._scores[rows, -1] - self._queries[rows] @ block.centre - error
        pairs = self._not_below(rows, block, limit)
        if pairs is not None:
            self._take(rows, block, *pairs)
            return
        for start in range(0, len(limit), QUERIES_WITHOUT_LIMIT):
            some = slice(start, min(start + QUERIES_WITHOUT_LIMIT, len(limit)))
            part = slice(rows.start + start, rows.start + some.stop)
            products = self._rounded[part] @ block.rounded.T
            self._take(part, block, *self._best_of(products, block, limit[some], error[some]))

    def _not_below(self, rows: slice, block: _Block, limit: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return pairs of some queries with a block that are not below the limits [Q]; None if they are many.

        Tile by tile: [2048, 8192] products would be written to memory, and read again.
        """
        most = 4 * self._scores.shape[1] * len(limit)
        found: list[tuple[Tensor, Tensor]] = []
        if limit.isneginf().any():
            return None
        for start in range(0, len(block.rounded), _TILE):
            row, column = _at_least(self._rounded[rows] @ block.rounded[start : start + _TILE].T, limit)
            found.append((row, column + start))
            most -= len(row)
            if most < 0 and len(block.vectors) > self._scores.shape[1]:
                return None
        return torch.cat([row for row, _ in found]), torch.cat([column for _, column in found])

    def _best_of(
        self, products: Tensor, block: _Block, limit: Tensor, error: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return pairs where nothing is there to compare with so far, or all of it is worse than a block.

        The block's own k-th best is a better limit then.
        """
        k = self._scores.shape[1]
        if len(block.vectors) > k:
            kth = products[:, : len(block.vectors)].topk(k, dim=1).values[:, -1].float()
            kth -= kth.abs() * 2**-8  # what rounding the product itself may have added
            limit = torch.maximum(limit, kth - 2 * error)
        return _at_least(products, limit)

    def _take(self, rows: slice, block: _Block, row: Tensor, column: Tensor) -> None:
        """Score pairs exactly, and keep the best; those of padding are left out."""
        queries, least = self._queries[rows], self._scores[rows, -1]
        inside = column < len(block.vectors)
        row, column = row[inside], column[inside]
        scores = _pair_scores(queries, block.vectors, row, column)
        better = scores > least[row]
        self._merge(rows, row[better], column[better] + self.seen, scores[better])

    def _merge(self, rows: slice, row: Tensor, document: Tensor, score: Tensor) -> None:
        """Insert pairs, each [P], into the best of some queries; several rounds where one has very many."""
        k = self._scores.shape[1]
        order = torch.argsort(row * (int(document.max()) + 1) + document) if len(row) else row
        row, document, score = row[order], document[order], score[order]
        counts = torch.bincount(row, minlength=len(self._scores[rows]))
        slot = torch.arange(len(row), device=self.device) - (counts.cumsum(0) - counts)[row]
        width = max(k, 64)
        for start in range(0, int(counts.max()), width):
            now = (slot >= start) & (slot < start + width)
            span = min(width, int(counts.max()) - start)
            new_scores = torch.full((len(counts), span), -torch.inf, device=self.device)
            new_indices = torch.full((len(counts), span), NOTHING, device=self.device)
            new_scores[row[now], slot[now] - start] = score[now]
            new_indices[row[now], slot[now] - start] = document[now]
            scores = torch.cat([self._scores[rows], new_scores], dim=1)
            indices = torch.cat([self._indices[rows], new_indices], dim=1)
            # Stable, and earlier documents stand first: ties stay in the order of their numbers.
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            self._scores[rows] = scores[:, :k]
            self._indices[rows] = indices.gather(1, order[:, :k])


class _Block:
    """Documents with what the filter needs of them.

    For bfloat16 their mean is taken out first: that shifts all of a query's scores alike, and what is
    rounded gets shorter, much so where all vectors point the same way.
    """

    def __init__(self, vectors: Tensor, dtype: torch.dtype) -> None:
        self.vectors = vectors
        self.centre = torch.zeros_like(vectors[0])
        moved = vectors
        if dtype == torch.bfloat16:
            self.centre = vectors.mean(dim=0)
            moved = vectors - self.centre
        self.rounded = torch.nn.functional.pad(moved.to(dtype), (0, 0, 0, -len(moved) % _GROUP))
        self._lost = (moved - self.rounded[: len(moved)].float()).norm(dim=1).max()
        self._length = moved.norm(dim=1).max()
        # Sums of D float32 products: here, in `_pair_scores`, in the shift, and in the limits.
        relative = 2.0**-22 * (vectors.shape[1] + 16) + (0 if _exact_float32_products() else 2.0**-7)
        self._slack = relative * vectors.norm(dim=1).max()

    def error(self, lengths: Tensor, lost: Tensor) -> Tensor:
        """Bound how far a product may lie from the score, [Q].

        |q.d - q'.d'| <= |q - q'| |d| + |q'| |d - d'|, and what float32 sums lose.
        """
        return lost * self._length + (lengths + lost) * self._lost + lengths * self._slack


def _at_least(products: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns, each [P], of the products [Q, B] that are not below their row's limit [Q].

    The limit is rounded as the products were. Rounding keeps order: what was not below the limit before is
    not below it now. B is a multiple of the group.
    """
    limits = limits.to(products.dtype)[:, None]
    width = products.shape[1] // _GROUP
    groups = products.view(len(products), _GROUP, width)
    row, group = (groups.amax(dim=1) >= limits).nonzero(as_tuple=True)
    hit, member = (groups[row, :, group] >= limits[row]).nonzero(as_tuple=True)
    return row[hit], member * width + group[hit]


def _pair_scores(queries: Tensor, documents: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the inner products of pairs, [P] float32; few at a time, so that they stay in the cache."""
    scores = torch.empty(len(row), device=queries.device)
    for start in range(0, len(row), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        left = queries.index_select(0, row[part])
        scores[part] = left.mul_(documents.index_select(0, column[part])).sum(dim=1)
    return scores


def _finite(vectors: NDArray[Any], device: torch.device) -> Tensor:
    """Copy vectors to float32 on the device; NaN and infinity would spoil comparisons without a word."""
    tensor = torch.from_numpy(np.array(vectors, dtype=np.float32)).to(device)
    if not torch.isfinite(tensor.sum()):
        raise EmbedforgeError("a vector holds what is not a number (NaN) or infinite; the vectors are broken")
    return tensor


def _exact_float32_products() -> bool:
    """Say whether float32 products are computed as such; TF32 and its like round their factors."""
    return torch.get_float32_matmul_precision() == "highest"


@contextlib.contextmanager
def _full_accumulation() -> Iterator[None]:
    """Sum bfloat16 products in float32; cuBLAS is otherwise free to add partial sums in bfloat16."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_bf16_reduced_precision_reduction = before
