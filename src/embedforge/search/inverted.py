"""An inverted file: which words stand in which documents, for BM25 without reading the documents.

    words.npy    uint64 [words], the words' hashes, ascending
    starts.npy   int64 [words + 1]: the entries of word w are those from starts[w] up to starts[w + 1]
    rows.npy     int32 [entries], the document; ascending within a word
    counts.npy   uint16 [entries], how often the word stands there
    lengths.npy  int32 [documents], words of each document

It is read where it lies: a query touches the entries of its own words, so opening one takes no time.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.lexical import Collection, Postings, words_and_identifiers
from embedforge.ranking import Floats

_MOST_COUNTED = 2**16 - 1


def hash64(text: str) -> int:
    """Return a hash of 64 bits."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class InvertedFile:
    """The arrays named above, in memory while it is made, on disk afterwards."""

    words: NDArray[np.uint64]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.uint16]
    lengths: NDArray[np.int32]

    def write(self, folder: Path) -> None:
        """Write one file an array."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def read(cls, folder: Path) -> InvertedFile:
        """Open what `write` wrote; nothing is read yet."""
        return cls(*(open_array(folder / f"{field.name}.npy") for field in fields(cls)))

    def postings(self, words: Sequence[str], alive: NDArray[np.bool_] | None) -> Postings:
        """Return where these words stand, without documents that are not alive."""
        parts = [self._entries(word) for word in words]
        if alive is not None:
            parts = [(rows[alive[rows]], counts[alive[rows]]) for rows, counts in parts]
        starts = np.zeros(len(words) + 1, dtype=np.int64)
        np.cumsum([len(rows) for rows, _ in parts], out=starts[1:])
        rows = np.concatenate([rows for rows, _ in parts]) if parts else np.empty(0, np.int32)
        counts = np.concatenate([counts for _, counts in parts]) if parts else np.empty(0, np.uint16)
        return Postings(starts, rows, counts.astype(np.int32), self.lengths)

    def _entries(self, word: str) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
        wanted = np.uint64(hash64(word))
        place = int(np.searchsorted(self.words, wanted))
        if place == len(self.words) or self.words[place] != wanted:
            return self.rows[:0], self.counts[:0]
        entries = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return np.asarray(self.rows[entries]), np.asarray(self.counts[entries])


class InvertedFileBuilder:
    """Counts the words of document after document."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._terms, self._counts = array("i"), array("H")
        self._distinct, self._lengths = array("i"), array("i")

    def add(self, text: str) -> None:
        """Take in the next document."""
        tally = Counter(words_and_identifiers(text))
        numbers = self._numbers
        self._terms.extend(numbers.setdefault(word, len(numbers)) for word in tally)
        self._counts.extend(min(count, _MOST_COUNTED) for count in tally.values())
        self._distinct.append(len(tally))
        self._lengths.append(tally.total())

    def result(self) -> InvertedFile:
        """Return the inverted file of all documents so far."""
        hashes = np.fromiter(map(hash64, self._numbers), dtype=np.uint64, count=len(self._numbers))
        by_hash = np.argsort(hashes)
        place = np.empty(len(hashes), dtype=np.int32)
        place[by_hash] = np.arange(len(hashes), dtype=np.int32)
        terms = place[np.array(self._terms, dtype=np.int32)]
        order = np.argsort(terms, kind="stable")
        starts = np.zeros(len(hashes) + 1, dtype=np.int64)
        np.cumsum(np.bincount(terms, minlength=len(hashes)), out=starts[1:])
        rows = np.repeat(np.arange(len(self._distinct), dtype=np.int32), np.array(self._distinct))
        counts = np.array(self._counts, dtype=np.uint16)
        lengths = np.array(self._lengths, dtype=np.int32)
        return InvertedFile(hashes[by_hash], starts, rows[order], counts[order], lengths)


def bm25_scores(
    query: str, parts: Sequence[InvertedFile], alive: Sequence[NDArray[np.bool_] | None]
) -> list[Floats]:
    """Return every document's BM25 score, float32 [documents] for each part; 0 without a shared word.

    Frequencies and lengths are those of all parts together, without documents that are not alive: the scores
    do not depend on how a collection is split, and are those of `lexical.Bm25`.
    """
    times = Counter(words_and_identifiers(query))
    scores = [np.zeros(len(part.lengths), dtype=np.float32) for part in parts]
    postings = [part.postings(list(times), living) for part, living in zip(parts, alive, strict=True)]
    living = [
        part.lengths if mask is None else part.lengths[mask] for part, mask in zip(parts, alive, strict=True)
    ]
    length, documents = sum(int(one.sum(dtype=np.int64)) for one in living), sum(map(len, living))
    if not times or not length:
        return scores
    frequencies = np.sum([np.diff(part.starts) for part in postings], axis=0)
    collection = Collection(documents, length / documents, frequencies)
    for part, score in zip(postings, scores, strict=True):
        weights = collection.weights(part)
        for word, count in enumerate(times.values()):
            entries = slice(part.starts[word], part.starts[word + 1])
            score[part.rows[entries]] += count * weights[entries]
    return scores


def open_array(path: Path) -> NDArray[Any]:
    """Open a .npy file where it lies; NumPy cannot map one without numbers, so that is read."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        return np.load(path, allow_pickle=False)
