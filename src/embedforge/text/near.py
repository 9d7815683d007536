"""Near duplicates by MinHash (Broder, 1997): texts whose sets of shingles have much in common.

Candidates share a band of their MinHash signatures; the exact Jaccard similarity of their shingle sets
decides, which an LSH index alone does not look at. 16 bands of 4 rows find a pair of similarity 0.8 with
probability 1 - (1 - 0.8^4)^16 = 0.9998, one of 0.6 with 0.89.

Three ways to ask: a list of texts against references (`near_duplicates`), pairs of one long list among
themselves (`earlier_twins`), and one text after the other (`NearIndex`).
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedforge.text.same import stable_hash
from embedforge.text.words import words_and_symbols_of

Hashes = NDArray[np.uint64]
Unit = Literal["words", "characters"]

RUN: dict[Unit, int] = {"words": 3, "characters": 5}
"""Length of a shingle: words and symbols, or characters of a text as it is."""
BANDS = 16
ROWS = 4
SHINGLES_PER_BLOCK = 1_000_000
"""Bounds the memory; the result does not depend on it."""
MOST_COMPARED = 200
"""Kept texts of one bucket that `earlier_twins` compares: templates fill buckets with texts that differ."""
_REMEMBERED = 20_000
_HASHED_AT_ONCE = 1 << 18
_FACTOR = 0x9E3779B97F4A7C15
_SEEDS = np.array([(n + 1) * _FACTOR % 2**64 for n in range(BANDS * ROWS)], dtype=np.uint64)


class NgramHasher:
    """Turns a text's words into the hashes of their n-grams.

    A word is hashed once and remembered. An n-gram's hash is a polynomial in its words' hashes, modulo 2^64:
    among a billion n-grams there are two with one hash with a probability of about 3 %.
    """

    def __init__(self, words: int) -> None:
        self.words = words
        self._known: dict[str, int] = {}
        powers = [pow(_FACTOR, exponent, 2**64) for exponent in range(words)]
        self._powers = np.array(powers, dtype=np.uint64)

    def hashes(self, words: Sequence[str], length: int | None = None) -> Hashes:
        """Return the hash of every n-gram, in order: uint64 [max(0, words - n + 1)].

        Args:
            words: of one text, in order.
            length: a smaller n for this text.
        """
        length = self.words if length is None else length
        runs = len(words) - length + 1
        if runs <= 0 or not length:
            return np.empty(0, dtype=np.uint64)
        known = self._known
        for word in words:
            if word not in known:
                known[word] = stable_hash(word)
        ids = np.array([known[word] for word in words], dtype=np.uint64)
        total = np.zeros(runs, dtype=np.uint64)
        for offset in range(length):
            total += ids[offset : offset + runs] * self._powers[offset]
        return total


class Shingler:
    """Turns texts into sets of shingles; the latest are remembered.

    Args:
        unit: shingles of three words and symbols, a shorter text being one shingle; or of five characters,
            which see the change of a letter as a small one: better for texts of a line.
    """

    def __init__(self, unit: Unit = "words") -> None:
        self._ngrams = NgramHasher(RUN[unit])
        self._unit = unit
        self._remembered = functools.lru_cache(_REMEMBERED)(self.once)

    def once(self, text: str) -> Hashes:
        """Return a text's shingles, uint64, sorted, each once; none of a text without word or symbol."""
        units = words_and_symbols_of(text) if self._unit == "words" else text
        return np.unique(self._ngrams.hashes(units, min(self._ngrams.words, len(units))))

    def similarity(self, left: str, right: str) -> float:
        """Return the share of their shingles that two texts have in common; 0 where one has none."""
        one, other = self._remembered(left), self._remembered(right)
        if not len(one) or not len(other):
            return 0.0
        shared = len(np.intersect1d(one, other, assume_unique=True))
        return shared / (len(one) + len(other) - shared)

    def keys(self, texts: Sequence[str]) -> Hashes:
        """Return the bands of texts, uint64 [texts, BANDS]; zeros for a text without shingles."""
        keys = np.zeros((len(texts), BANDS), dtype=np.uint64)
        for first, sets in self._blocks(texts):
            keys[first : first + len(sets)] = band_keys(sets)
        return keys

    def _blocks(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Hashes]]]:
        first, size = 0, 0
        block: list[Hashes] = []
        for index, text in enumerate(texts):
            block.append(self.once(text))
            size += len(block[-1])
            if size >= SHINGLES_PER_BLOCK or index == len(texts) - 1:
                yield first, block
                first, size, block = index + 1, 0, []


def band_keys(sets: Sequence[Hashes]) -> Hashes:
    """Return the band keys of each shingle set: uint64 [sets, BANDS].

    Two sets are candidates if they share a key; keys of different bands differ. Empty sets have zeros.
    """
    lengths = np.array([len(shingles) for shingles in sets], dtype=np.int64)
    keys = np.zeros((len(sets), BANDS), dtype=np.uint64)
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return keys
    flat = np.concatenate(sets)
    starts = np.concatenate([[0], np.cumsum(lengths[filled])[:-1]])
    least = np.empty((BANDS * ROWS, len(filled)), dtype=np.uint64)
    step = max(1, _HASHED_AT_ONCE // len(flat))
    for first in range(0, len(_SEEDS), step):
        mixed = _mix(flat ^ _SEEDS[first : first + step, None])
        least[first : first + step] = np.minimum.reduceat(mixed, starts, axis=1)
    rows = least.reshape(BANDS, ROWS, len(filled))
    bands = np.zeros((BANDS, len(filled)), dtype=np.uint64)
    for row in range(ROWS):
        bands = _mix(bands ^ rows[:, row])
    keys[filled] = bands.T
    return keys


def _mix(values: Hashes) -> Hashes:
    """Scramble 64-bit integers (the finaliser of SplitMix64): every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class NearIndex:
    """Numbers of texts by the bands they lie in; about 2 KB a text."""

    def __init__(self) -> None:
        self._buckets: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, number: int, keys: Hashes) -> None:
        """Add a text by its `Shingler.keys`, uint64 [bands]; zeros are none."""
        for key in keys.tolist():
            if key:
                self._buckets[key].append(number)

    def buckets(self, keys: Hashes) -> list[list[int]]:
        """Return the numbers of texts that share a band, by band."""
        return [self._buckets[key] for key in keys.tolist() if key in self._buckets]

    def candidates(self, keys: Hashes) -> list[int]:
        """Return the numbers of texts that share a band, ascending, each once."""
        return sorted(set(itertools.chain.from_iterable(self.buckets(keys))))


def near_duplicates(texts: Sequence[str], references: Sequence[str], threshold: float = 0.8) -> list[bool]:
    """Say for each text whether some reference text nearly repeats it.

    Args:
        texts: the texts to judge.
        references: the texts they must not repeat.
        threshold: least Jaccard similarity of the sets of shingles of three words, in (0, 1].

    Returns:
        One flag a text. Texts without word or symbol repeat nothing.
    """
    shingler, index = Shingler(), NearIndex()
    for number, keys in enumerate(shingler.keys(references)):
        index.add(number, keys)
    return [
        any(shingler.similarity(text, references[number]) >= threshold for number in index.candidates(keys))
        for text, keys in zip(texts, shingler.keys(texts), strict=True)
    ]


def earlier_twins(
    queries: Sequence[str],
    documents: Sequence[Sequence[str]] | None,
    same: Callable[[int, int], bool],
    shingler: Shingler,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> list[int | None]:
    """Return for each pair the number of an earlier kept one that `same` accepts, None for a pair to keep.

    A pair is compared with those that share a band of its query or one of its documents, whichever are
    fewer: a thousand answers to one question have few in common, as have a thousand questions about one text.

    Args:
        queries: one a pair.
        documents: of each pair; None where only the queries count.
        same: decides about two pairs, the later one first; asked about candidates only.
        shingler: makes the sets.
        progress: called with the number of pairs done since the last call.
    """
    by_query = _shared(shingler.keys(queries))
    left = np.flatnonzero(by_query.any(axis=1)).tolist()
    progress(len(queries) - len(left))
    sides: list[dict[int, Hashes]] = [{pair: by_query[pair] for pair in left}]
    if documents is not None:
        keys = _shared(shingler.keys([text for pair in left for text in documents[pair]]))
        parts = np.split(keys, np.cumsum([len(documents[pair]) for pair in left])[:-1])
        sides.append({pair: np.unique(part) for pair, part in zip(left, parts, strict=False)})
    kept = [NearIndex() for _ in sides]
    twins: list[int | None] = [None] * len(queries)
    for pair in left:
        matches = [index.buckets(side[pair]) for side, index in zip(sides, kept, strict=True)]
        fewest = min(matches, key=lambda buckets: sum(map(len, buckets)))
        candidates = sorted({early for bucket in fewest for early in bucket[-MOST_COMPARED:]})
        twins[pair] = next((early for early in candidates if same(pair, early)), None)
        if twins[pair] is None:
            for side, index in zip(sides, kept, strict=True):
                index.add(pair, side[pair])
        progress(1)
    return twins


def _shared(keys: Hashes) -> Hashes:
    """Set the keys to 0 that a text has to itself: it is no candidate of any by them."""
    for band in keys.T:
        _, inverse, counts = np.unique(band, return_inverse=True, return_counts=True)
        band[counts[inverse] == 1] = 0
    return keys
