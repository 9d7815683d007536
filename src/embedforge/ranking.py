"""The best k of many scores, exactly and always in the same order; used by mining, search and baselines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

NOTHING = -1
"""Stands for a document where there are fewer than k."""


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
