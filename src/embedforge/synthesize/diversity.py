"""How much texts differ from one another: the distance of each to its nearest, by runs of characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEATURES = 2**18
RUNS = (3, 5)
"""Shortest and longest run of characters that counts, within words."""
_BLOCK = 256


class NearestNeighbours(NamedTuple):
    """Every text's nearest neighbour among the others."""

    distances: NDArray[np.float64]
    """[texts], 1 - cosine, in [0, 1]."""
    neighbours: NDArray[np.int64]
    """[texts], the neighbour's index."""


def nearest(texts: Sequence[str]) -> NearestNeighbours:
    """Find each text's nearest neighbour by the cosine of counted runs of 3 to 5 characters.

    0 is a copy, 1 has nothing in common. Two texts at least.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # a second to import

    vectors = HashingVectorizer(
        analyzer="char_wb", ngram_range=RUNS, n_features=FEATURES, norm="l2", alternate_sign=False
    ).transform(texts)
    similarities = np.empty(len(texts))
    neighbours = np.empty(len(texts), dtype=np.int64)
    for start in range(0, len(texts), _BLOCK):
        block = (vectors[start : start + _BLOCK] @ vectors.T).toarray()
        rows = np.arange(len(block))
        block[rows, start + rows] = -1.0  # not its own neighbour
        neighbours[start : start + len(block)] = block.argmax(axis=1)
        similarities[start : start + len(block)] = block.max(axis=1)
    return NearestNeighbours(np.clip(1.0 - similarities, 0.0, 1.0), neighbours)
