"""Candidates for negatives: nearest by a teacher's vectors, best by BM25, or both rankings fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.lexical import Bm25
from embedforge.ranking import Indices, exact_search

FUSION_CONSTANT = 60
"""Added to a rank before it is inverted (Cormack et al., 2009): first places do not outweigh agreement."""
NOTHING = -1
"""Fills a ranking's row where there are fewer candidates."""


def dense_candidates(queries: NDArray[Any], documents: NDArray[Any], k: int) -> Indices:
    """Return the numbers of each query's `k` nearest documents, int64 [queries, k], nearest first."""
    return exact_search(queries, documents, k)[0]


def lexical_candidates(queries: Sequence[str], bm25: Bm25, k: int) -> Indices:
    """Return BM25's best `k`, int64 [queries, k]; `NOTHING` where no further document shares a word."""
    indices, scores = bm25.search(queries, k)
    return np.where(scores > 0, indices, NOTHING)


def fuse(rankings: Sequence[Indices]) -> list[Indices]:
    """Fuse rankings of the same queries by reciprocal rank; ties by document number.

    A document's fused score is the sum of 1 / (60 + rank) over the rankings that hold it.

    Args:
        rankings: each int64 [queries, its own k], best first, a document at most once a row.

    Returns:
        For each query the documents of all rankings, each once, best first.
    """
    fused = []
    for rows in zip(*rankings, strict=True):
        documents = np.concatenate(rows)
        weights = np.concatenate([1.0 / (FUSION_CONSTANT + 1 + np.arange(len(row))) for row in rows])
        unique, place = np.unique(documents[documents != NOTHING], return_inverse=True)
        totals = np.bincount(place, weights=weights[documents != NOTHING], minlength=len(unique))
        fused.append(unique[np.argsort(-totals, kind="stable")])
    return fused
