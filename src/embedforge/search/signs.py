"""A bit a number: the first pass over vectors that are too many to be looked at one by one.

    rotation.npy  float32 [dimensions, dimensions], orthogonal, random
    signs.npy     uint64 [words, documents]: which of a rotated vector's numbers are positive, 64 to a word

Two vectors are the more alike the fewer of these bits differ, whatever their model: the rotation spreads
what a model has put into a few of its numbers over all of them (RaBitQ, arXiv 2405.12497, has the theory).
The bits only choose; what is chosen is scored exactly. They are 1/32 of the vectors, so an index that does
not fit in memory is searched by what does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.ranking import Floats
from embedforge.search.inverted import open_array

SIGNS_FROM = 200_000
"""Vectors of a segment from which they are worth their room: fewer are scored exactly in as little time."""
CHOSEN = 8_192
"""Documents, at least, that are scored exactly; docs/search.md has the recall."""
_CHOSEN_PER_HIT = 40
_ROWS_AT_ONCE = 16_384

FARTHEST = 2**16 - 1
"""Distance of what is not to be chosen."""

Distances = NDArray[np.uint16]


class Signs:
    """The bits of a segment, read where they lie."""

    def __init__(self, rotation: Floats, bits: NDArray[np.uint64]) -> None:
        self.rotation, self.bits = rotation, bits

    @classmethod
    def read(cls, folder: Path) -> Signs | None:
        """Open what `write_signs` wrote; None for a segment without."""
        if not (folder / "signs.npy").exists():
            return None
        return cls(open_array(folder / "rotation.npy"), open_array(folder / "signs.npy"))

    def distances(self, query: Floats) -> Distances:
        """Return in how many bits each document differs from `query`, [documents]."""
        asked = _packed((query @ self.rotation)[None])[0]
        documents = self.bits.shape[1]
        distances = np.empty(documents, dtype=np.uint16)
        for start in range(0, documents, _ROWS_AT_ONCE):  # what is counted stays in the processor's cache
            part = self.bits[:, start : start + _ROWS_AT_ONCE]
            counted = np.zeros(part.shape[1], dtype=np.uint16)
            for word, wanted in zip(part, asked, strict=True):
                counted += np.bitwise_count(word ^ wanted)
            distances[start : start + len(counted)] = counted
        return distances


def write_signs(folder: Path, vectors: NDArray[Any]) -> None:
    """Write the bits of a segment's vectors, [documents, dimensions], into its folder."""
    documents, dimensions = vectors.shape
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.standard_normal((dimensions, dimensions)))[0].astype(np.float32)
    bits = np.empty(((dimensions + 63) // 64, documents), dtype="<u8")
    for start in range(0, documents, _ROWS_AT_ONCE):
        block = np.asarray(vectors[start : start + _ROWS_AT_ONCE], dtype=np.float32)
        bits[:, start : start + len(block)] = _packed(block @ rotation).T
    np.save(folder / "rotation.npy", rotation, allow_pickle=False)
    np.save(folder / "signs.npy", bits, allow_pickle=False)


def farthest_chosen(distances: Sequence[Distances], k: int) -> int:
    """Return the distance up to which documents are to be scored, for the best `k` to be among them."""
    wanted = max(CHOSEN, _CHOSEN_PER_HIT * k)
    counts = np.zeros(FARTHEST, dtype=np.int64)
    for each in distances:
        counts += np.bincount(each, minlength=FARTHEST)[:FARTHEST]
    return min(int(np.searchsorted(np.cumsum(counts), wanted)), FARTHEST - 1)


def _packed(numbers: Floats) -> NDArray[np.uint64]:
    """Return which numbers are positive, 64 to a word: [rows, dimensions] to [rows, words]."""
    bytes_ = np.packbits(numbers > 0, axis=1)
    return np.pad(bytes_, [(0, 0), (0, -bytes_.shape[1] % 8)]).view("<u8")
