"""Candidates for negatives: what a teacher has to say, and how several rankings become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from embedforge.data.example import Example
from embedforge.ranking import NOTHING, Floats, Indices

FUSION_CONSTANT = 60
"""Added to a rank before it is inverted (Cormack et al., 2009): first ranks do not outweigh agreement."""


class QueryBlock(NamedTuple):
    """Some of the Examples, mined together."""

    first: int
    """The first one's number."""
    examples: Sequence[Example]
    key: str
    """Fingerprint of the queries and their instructions."""


class Ranker(Protocol):
    """A teacher over a corpus: which documents come first for a query, and their scores."""

    @property
    def name(self) -> str:
        """As the user wrote it."""

    @property
    def kind(self) -> Literal["vectors", "words", "list"]:
        """What its scores are: of vectors, of words, or of a list, which knows its own documents only."""

    @property
    def key(self) -> str:
        """Fingerprint of what decides about the ranking, besides queries and documents."""

    def candidates(self, block: QueryBlock) -> tuple[Indices, Floats]:
        """Return each query's best documents, int64 [queries, k], and scores, float32, best first.

        Where there are fewer than k the rest are `NOTHING`.
        """

    def scores(self, block: QueryBlock, query: Indices, document: Indices) -> Floats:
        """Score pairs, [P] indices in the block and [P] documents: float32 [P], NaN where not known."""


def fuse(rankings: Sequence[Indices]) -> Indices:
    """Fuse rankings of the same queries by reciprocal rank; ties by document number.

    A document's fused score is the sum of 1 / (60 + rank) over the rankings that hold it.

    Args:
        rankings: each int64 [queries, its own k], best first, a document at most once a row.

    Returns:
        int64 [queries, longest], each query's documents of all rankings, each once, best first, and then
        `NOTHING`.
    """
    every = np.concatenate(rankings, axis=1)
    ranks = np.concatenate([np.arange(1, ranking.shape[1] + 1) for ranking in rankings])
    fused = np.full(every.shape, NOTHING, dtype=np.int64)
    longest = 0
    for query, documents in enumerate(every):
        real = documents != NOTHING
        unique, number = np.unique(documents[real], return_inverse=True)
        totals = np.bincount(number, 1.0 / (FUSION_CONSTANT + ranks[real]), minlength=len(unique))
        fused[query, : len(unique)] = unique[np.argsort(-totals, kind="stable")]
        longest = max(longest, len(unique))
    return fused[:, :longest]
