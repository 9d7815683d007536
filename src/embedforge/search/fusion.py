"""Two rankings of one query made one: by meaning and by words (BM25).

The sides are measured in different units, and a rank hides by how much a document leads. So each side's
scores are brought to 0 to 1, and a document's score is their weighted mean: a convex combination, which
keeps more of both than reciprocal rank fusion does (Bruch, Gai and Ingber, "An Analysis of Fusion Functions
for Hybrid Retrieval", TOIS 2023; docs/search.md has our own figures).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

CANDIDATES = 100
"""Documents of each side that are fused; more where more hits are asked for."""

Named = TypeVar("Named", bound=Hashable)
Found = Sequence[tuple[Named, float]]
"""Documents and their scores, best first."""


def fuse(
    dense: Sequence[tuple[Named, float]], lexical: Sequence[tuple[Named, float]], dense_share: float
) -> list[tuple[Named, float]]:
    """Return all documents of both sides with scores from 0 to 1, best first, ties in the order met.

    By meaning, 1 is the best document and 0 the last of the `CANDIDATES`: a cosine has no zero that would
    mean "nothing in common", and models differ in where theirs lie. By words, 1 is the best and 0 a document
    without any of the query's words. A side that did not find a document gives it 0.

    Args:
        dense: what was found by meaning, best first, with inner products.
        lexical: what was found by words, best first, with BM25 scores above 0.
        dense_share: weight of meaning, from 0 to 1; words have the rest.

    >>> [key for key, _ in fuse([("a", 0.9), ("b", 0.8), ("c", 0.2)], [("b", 7.0), ("c", 6.0)], 0.5)]
    ['b', 'a', 'c']
    """
    floor = dense[:CANDIDATES][-1][1] if len(dense) > 1 else float("-inf")
    scores: dict[Named, float] = {}
    for side, floor_of, weight in ((dense, floor, dense_share), (lexical, 0.0, 1 - dense_share)):
        for key, score in side:
            scores[key] = scores.get(key, 0.0) + weight * _scaled(score, floor_of, side[0][1])
    return sorted(scores.items(), key=lambda item: -item[1])


def _scaled(score: float, floor: float, top: float) -> float:
    """Bring a score to 0 at the floor and below, and to 1 at the top; all are 1 where they are equal."""
    span = top - floor
    if span <= 0 or span == float("inf"):
        return 1.0
    return max(0.0, (score - floor) / span)
