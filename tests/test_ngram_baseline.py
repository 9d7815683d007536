"""The n-gram baseline of the bundled decoder: a distribution, and the textbook's numbers."""

import importlib.util
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

_spec = importlib.util.spec_from_file_location(
    "kneser_ney", Path(__file__).parent.parent / "scripts" / "kneser_ney.py"
)
ngrams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ngrams)


def text(tokens, vocabulary, seed=0):
    """A stream with structure: each token depends on the two before it, with a long tail of the rest."""
    random = np.random.default_rng(seed)
    rare = np.minimum(random.zipf(1.3, tokens), vocabulary) - 1
    stream = [0, 0]
    for i in range(2, tokens):
        follow = (3 * stream[-1] + 5 * stream[-2] + 1) % vocabulary
        stream.append(follow if random.random() < 0.5 else int(rare[i]))
    return np.array(stream, dtype=np.uint16)


def textbook(stream, usable, query, vocabulary):
    """Modified Kneser-Ney for one n-gram, straight from the recursion, with dictionaries."""
    length = len(query)
    grams = [tuple(stream[s : s + length].tolist()) for s in np.flatnonzero(usable)]
    counts = {length: Counter(grams)}
    for n in range(length - 1, 0, -1):
        left = defaultdict(set)
        for gram in counts[n + 1]:
            left[gram[1:]].add(gram[0])
        counts[n] = Counter({gram: len(tokens) for gram, tokens in left.items()})

    def probability(gram):
        if not gram:
            return 1 / vocabulary
        level = counts[len(gram)]
        same = [c for other, c in level.items() if other[:-1] == gram[:-1]]
        if not same:
            return probability(gram[1:])
        tally = [sum(c == k for c in level.values()) for k in (1, 2, 3, 4)]
        discount = [0, *ngrams.discounts(np.array(tally))[1:]]
        freed = sum(discount[min(c, 3)] for c in same)
        kept = max(level[gram] - discount[min(level[gram], 3)], 0)
        return (kept + freed * probability(gram[1:])) / sum(same)

    return probability(tuple(query))


@pytest.mark.parametrize("length", [2, 3, 5])
@pytest.mark.parametrize("vocabulary", [50, 2**14])
def test_sums_to_one_over_the_vocabulary(length, vocabulary):
    stream = text(20_000, vocabulary)
    usable = np.ones(len(stream) - length + 1, dtype=bool)
    random = np.random.default_rng(1)
    places = random.integers(len(stream) - length, size=3)
    seen = [stream[p : p + length - 1] for p in places]
    unseen = [random.integers(vocabulary, size=length - 1) for _ in range(2)]
    top = [np.full(length - 1, vocabulary - 1)]
    for context in [*seen, *unseen, *top]:
        queries = np.column_stack([np.tile(context, (vocabulary, 1)), np.arange(vocabulary)])
        probability = ngrams.kneser_ney(stream, usable, queries, vocabulary)
        assert probability.min() > 0
        assert probability.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_agrees_with_the_textbook_recursion(length):
    vocabulary = 300
    stream = text(2_000, vocabulary)
    usable = np.random.default_rng(2).random(len(stream) - length + 1) < 0.8
    held_out = text(60, vocabulary, seed=3)
    windows = np.lib.stride_tricks.sliding_window_view
    queries = np.concatenate([windows(stream[:60], length), windows(held_out, length)])
    expected = [textbook(stream, usable, query.tolist(), vocabulary) for query in queries]
    assert ngrams.kneser_ney(stream, usable, queries, vocabulary) == pytest.approx(
        np.array(expected), rel=1e-9
    )


def test_the_highest_ids_are_told_apart():
    """The largest keys use all 64 bits; a carry or a lost bit would mix them up."""
    top = 2**14 - 1
    stream = np.array([top, top, top, top, 7] * 3 + [top - 64, top, top, top, 8], dtype=np.uint16)
    usable = np.zeros(len(stream) - 4, dtype=bool)
    usable[[0, 5, 10, 15]] = True
    queries = np.array([[first, top, top, top, last] for first in (top, top - 64) for last in (7, 8)])
    seen, crossed, crossed_back, other = ngrams.kneser_ney(stream, usable, queries, 2**14)
    assert seen > 3 * crossed
    assert other > crossed_back


def test_discounts_follow_the_closed_form_and_fall_back():
    # Y = 100 / (100 + 2 * 40); D1 = 1 - 2Y 40/100, D2 = 2 - 3Y 20/40, D3+ = 3 - 4Y 12/20
    y = 100 / 180
    assert ngrams.discounts(np.array([100, 40, 20, 12])) == pytest.approx(
        [0, 1 - 0.8 * y, 2 - 1.5 * y, 3 - 2.4 * y]
    )
    assert ngrams.discounts(np.array([0, 3, 2, 1])).tolist() == [0, 0.5, 1, 1.5]
    assert ngrams.discounts(np.array([10, 20, 90, 1])).tolist() == [0, 0.5, 1, 1.5]


def test_more_than_five_tokens_or_fourteen_bits_are_refused():
    stream = np.zeros(20, dtype=np.uint16)
    with pytest.raises(ValueError, match="n = 6"):
        ngrams.kneser_ney(stream, np.ones(10, dtype=bool), np.zeros((1, 6), dtype=int), 10)
    with pytest.raises(ValueError, match="16385 ids"):
        ngrams.kneser_ney(stream, np.ones(10, dtype=bool), np.zeros((1, 5), dtype=int), 2**14 + 1)
