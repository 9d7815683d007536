"""The best k of many scores, exactly and always in the same order; used by mining, search and baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

QUERIES_PER_BLOCK = 1024
DOCUMENTS_PER_BLOCK = 16_384


def top_k(scores: Floats, k: int) -> tuple[Indices, Floats]:
    """Return the columns and values of each row's `k` highest scores, best first.

    Equal scores stand in the order of their columns, at the cut as well, so a ranking never depends on
    how a partial sort happens to place ties.

    Args:
        scores: [rows, columns].
        k: at least 1; all columns are returned where there are fewer.

    Returns:
        Columns, int64 [rows, min(k, columns)], and their scores, float32 of the same shape.

    Raises:
        EmbedforgeError: a score is not a number.
    """
    if np.isnan(scores).any():
        raise EmbedforgeError("a score is not a number (NaN); the vectors it was computed from are broken")
    rows, columns = scores.shape
    k = min(k, columns)
    best = np.empty((rows, k), dtype=np.int64)
    if k:
        kth = np.partition(scores, columns - k, axis=1)[:, columns - k]
        for row, (values, least) in enumerate(zip(scores, kth, strict=True)):
            candidates = np.flatnonzero(values >= least)
            best[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return best, np.take_along_axis(scores, best, axis=1)


def exact_search(queries: NDArray[Any], documents: NDArray[Any], k: int) -> tuple[Indices, Floats]:
    """Return each query's `k` documents of highest inner product, best first, ties by document number.

    Works in blocks: besides its arguments it holds one [1024, 16384] block of scores at a time, so
    `documents` may be a memory map larger than memory.

    Args:
        queries: [n, dimensions], any float dtype; of unit length for cosine similarity.
        documents: [m, dimensions].
        k: at least 1.

    Returns:
        Document numbers, int64 [n, min(k, m)], and inner products, float32 of the same shape.
    """
    width = min(k, len(documents))
    indices = np.empty((len(queries), width), dtype=np.int64)
    scores = np.empty((len(queries), width), dtype=np.float32)
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        rows = slice(start, start + QUERIES_PER_BLOCK)
        indices[rows], scores[rows] = _search_block(np.asarray(queries[rows], dtype=np.float32), documents, k)
    return indices, scores


def _search_block(queries: Floats, documents: NDArray[Any], k: int) -> tuple[Indices, Floats]:
    """Keep a running best k over blocks of documents; earlier documents stand first, so ties keep order."""
    indices = np.empty((len(queries), 0), dtype=np.int64)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    for start in range(0, len(documents), DOCUMENTS_PER_BLOCK):
        block = np.asarray(documents[start : start + DOCUMENTS_PER_BLOCK], dtype=np.float32)
        columns, values = top_k(queries @ block.T, k)
        indices = np.concatenate([indices, columns + start], axis=1)
        scores = np.concatenate([scores, values], axis=1)
        chosen, scores = top_k(scores, k)
        indices = np.take_along_axis(indices, chosen, axis=1)
    return indices, scores
