"""Interpolated modified Kneser-Ney n-grams in numpy: the baseline that a small decoder has to beat.

The estimate is that of Chen & Goodman, "An empirical study of smoothing techniques for language modeling"
(1999), as KenLM builds it (Heafield et al., 2013): raw counts for the longest n-grams, the number of distinct
tokens to the left for all shorter ones, three discounts per length, and a uniform distribution at the bottom.

Counting is exact: no hashing, no pruning. An n-gram is one unsigned 64-bit integer of 14 bits a token. Five
tokens have 70 bits, so the longest n-grams are counted in 64 parts, by 6 bits of their first token, and each
part needs only the other 64 bits. Sorted that way, the n-grams that share a context stand side by side, and
everything that the formula asks about a context is a difference of two cumulative sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOKEN_BITS = 14
LONGEST = 5
PARTS = 64
LAST_TOKEN = np.uint64(2**TOKEN_BITS - 1)


def kneser_ney(stream: np.ndarray, usable: np.ndarray, queries: np.ndarray, vocabulary: int) -> np.ndarray:
    """Return the probability [queries] float64 of each query's last token after the tokens before it.

    Args:
        stream: training tokens [tokens], unsigned integers.
        usable: bool [at most tokens - n + 1]; n-gram `stream[s : s + n]` is counted where `usable[s]`.
        queries: token ids [queries, n]; n from 2 to 5.
        vocabulary: how many ids there are, at most 2**14.
    """
    length = queries.shape[1]
    if not 2 <= length <= LONGEST or vocabulary > 2**TOKEN_BITS or len(usable) > len(stream) - length + 1:
        raise ValueError(f"n = {length}, {vocabulary} ids, {len(stream)} tokens, {len(usable)} n-grams")
    evidence, tally, grams = count_longest(stream, usable, queries)
    levels = [(evidence, discounts(tally))]
    for shorter in range(length - 1, 0, -1):
        types, counts = np.unique(grams, return_counts=True)
        columns = [queries[:, column] for column in range(length - shorter, length)]
        levels.append((look_up(types, counts, pack(columns)), discounts(tally_counts(counts))))
        grams = without_first(types, shorter)
    probability = np.full(len(queries), 1 / vocabulary)
    for evidence, discount in reversed(levels):
        probability = interpolate(evidence, discount, probability)
    return probability


def count_longest(
    stream: np.ndarray, usable: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the longest n-grams part by part.

    Returns the evidence [5, queries], how many n-grams were seen 1, 2, 3 and 4 times [4], and every distinct
    n-gram without its first token: as often as one stands there, so many distinct tokens came before it.
    """
    length = queries.shape[1]
    evidence = np.zeros((5, len(queries)), dtype=np.int64)
    tally = np.zeros(4, dtype=np.int64)
    shorter = []
    parts = (stream[: len(usable)] % PARTS).astype(np.uint8)
    for part in range(PARTS):
        starts = np.flatnonzero(usable & (parts == part))
        columns = [stream[starts + offset] for offset in range(length)]
        types, counts = np.unique(pack([columns[0] // PARTS, *columns[1:]]), return_counts=True)
        here = np.flatnonzero(queries[:, 0] % PARTS == part)
        columns = [queries[here, column] for column in range(length)]
        evidence[:, here] = look_up(types, counts, pack([columns[0] // PARTS, *columns[1:]]))
        tally += tally_counts(counts)
        shorter.append(without_first(types, length))
    return evidence, tally, np.concatenate(shorter)


def pack(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Write each row of token ids into one uint64, first token highest."""
    packed = columns[0].astype(np.uint64)
    for column in columns[1:]:
        packed = packed << np.uint64(TOKEN_BITS) | column.astype(np.uint64)
    return packed


def without_first(grams: np.ndarray, length: int) -> np.ndarray:
    """Drop the first of `length` tokens from packed n-grams."""
    return grams & np.uint64(2 ** (TOKEN_BITS * (length - 1)) - 1)


def look_up(types: np.ndarray, counts: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Find packed queries among sorted distinct n-grams; int64 [5, queries].

    Rows: the n-gram's count; the summed count of all n-grams with its context; how many of those were counted
    once, twice, and more often.
    """
    first = np.searchsorted(types, queries & ~LAST_TOKEN)
    end = np.searchsorted(types, queries | LAST_TOKEN, side="right")
    sums = running_sum(counts)
    count = sums[np.searchsorted(types, queries, side="right")] - sums[np.searchsorted(types, queries)]
    total = sums[end] - sums[first]
    once, twice = (sums[end] - sums[first] for sums in (running_sum(counts == 1), running_sum(counts == 2)))
    return np.stack([count, total, once, twice, end - first - once - twice])


def running_sum(values: np.ndarray) -> np.ndarray:
    """The sum of the first i values, for i = 0 ... n."""
    return np.concatenate([[0], np.cumsum(values)])


def tally_counts(counts: np.ndarray) -> np.ndarray:
    """How many of the counts are 1, 2, 3 and 4."""
    return np.bincount(np.minimum(counts, 5), minlength=6)[1:5]


def discounts(tally: np.ndarray) -> np.ndarray:
    """What is taken off counts of 0, 1, 2 and more [4], from how many n-grams have counts 1, 2, 3 and 4.

    Where a tally is empty or misleads (a small vocabulary has no single token that was seen once), the
    discounts are KenLM's fallback: 0.5, 1 and 1.5.
    """
    if tally.all():
        slope = tally[0] / (tally[0] + 2 * tally[1])
        steps = np.arange(1, 4)
        estimate = steps - (steps + 1) * slope * tally[1:] / tally[:-1]
        if (estimate >= 0).all():
            return np.array([0.0, *estimate])
    return np.array([0.0, 0.5, 1.0, 1.5])


def interpolate(evidence: np.ndarray, discount: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """Mix the discounted n-grams with the shorter ones' probability, which is all where a context is new."""
    count, total, *types = evidence
    kept = count - discount[np.minimum(count, 3)]
    freed = discount[1:] @ np.stack(types)
    return np.where(total > 0, (kept + freed * shorter) / np.maximum(total, 1), shorter)
