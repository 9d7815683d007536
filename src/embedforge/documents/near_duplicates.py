"""Near-duplicate texts by MinHash (Broder, 1997), to keep held-out text out of the training data.

Candidates share a band of their MinHash signatures; the exact Jaccard similarity of their shingle sets
decides. 16 bands of 4 rows find a pair of similarity 0.8 with probability 1 - (1 - 0.8^4)^16 = 0.9998.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedforge.text.words import words_and_symbols_of

Hashes = NDArray[np.uint64]

SHINGLE_TOKENS = 3
BANDS = 16
ROWS = 4
TEXTS_AT_ONCE = 4096
"""Bounds the memory; the result does not depend on it."""


def normalized(text: str) -> str:
    """Return the words and symbols of a text, one space between: equal for texts that differ in layout.

    A text without a word gives the empty string.
    """
    return " ".join(words_and_symbols_of(text))


def repeats(texts: Sequence[str], references: Sequence[str], threshold: float = 0.8) -> list[bool]:
    """Say for each text whether a reference text has the same words, or nearly the same shingles.

    Arguments as of `near_duplicates`; texts without a word repeat each other here.
    """
    exact = set(map(normalized, references))
    near = near_duplicates(texts, references, threshold)
    return [similar or normalized(text) in exact for text, similar in zip(texts, near, strict=True)]


def near_duplicates(texts: Sequence[str], references: Sequence[str], threshold: float = 0.8) -> list[bool]:
    """Say for each text whether some reference text nearly repeats it.

    Args:
        texts: the texts to judge.
        references: the texts they must not repeat.
        threshold: least Jaccard similarity of the sets of shingles of three words, in (0, 1].

    Returns:
        One flag a text. Texts without a word repeat nothing.
    """
    vocabulary: defaultdict[str, int] = defaultdict(itertools.count(1).__next__)
    known = [shingles_of(text, vocabulary) for text in references]
    buckets: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for number, keys in enumerate(band_keys(known)):
        for band in enumerate(keys.tolist()):
            buckets[band].append(number)
    flags: list[bool] = []
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        judged = [shingles_of(text, vocabulary) for text in texts[first : first + TEXTS_AT_ONCE]]
        for shingles, keys in zip(judged, band_keys(judged), strict=True):
            near = {number for band in enumerate(keys.tolist()) for number in buckets.get(band, ())}
            flags.append(any(jaccard(shingles, known[number]) >= threshold for number in near))
    return flags


def shingles_of(text: str, vocabulary: defaultdict[str, int]) -> Hashes:
    """Return the shingle set of a text: of every run of three words or symbols, or of all of a shorter text.

    Args:
        text: of any length.
        vocabulary: word -> number, which grows; sets made with one vocabulary can be compared.

    Returns:
        uint64 [shingles], sorted, each once; empty for a text without a word.
    """
    tokens = np.array([vocabulary[token] for token in words_and_symbols_of(text)], dtype=np.uint64)
    width = min(SHINGLE_TOKENS, len(tokens))
    if not width:
        return tokens
    runs = len(tokens) - width + 1
    mixed = np.zeros(runs, dtype=np.uint64)
    for place in range(width):
        mixed = _mix(mixed ^ tokens[place : place + runs])
    return np.unique(mixed)


def band_keys(sets: Sequence[Hashes]) -> Hashes:
    """Return the band keys of each shingle set: uint64 [sets, BANDS].

    Two sets are candidates if they have the same key in the same band. Empty sets have zeros.
    """
    lengths = np.array([len(shingles) for shingles in sets], dtype=np.int64)
    keys = np.zeros((len(sets), BANDS), dtype=np.uint64)
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return keys  # empty sets meet in a bucket, where their similarity is 0
    flat = np.concatenate(sets)
    starts = np.concatenate([[0], np.cumsum(lengths[filled])[:-1]])
    for band in range(BANDS):
        for row in range(ROWS):
            seed = np.uint64((band * ROWS + row + 1) * 0x9E3779B97F4A7C15 % 2**64)
            least = np.minimum.reduceat(_mix(flat ^ seed), starts)
            keys[filled, band] = _mix(keys[filled, band] ^ least)
    return keys


def _mix(values: Hashes) -> Hashes:
    """Scramble 64-bit integers (the finaliser of SplitMix64): every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def jaccard(left: Hashes, right: Hashes) -> float:
    """Return the share that two shingle sets have in common, from 0 to 1; 0 where one of them is empty."""
    if not len(left) or not len(right):
        return 0.0
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)
