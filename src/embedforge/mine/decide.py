"""From scored candidates to negatives: what each candidate is, for many queries at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedforge.mine.keep import KeepRule, choose, keep
from embedforge.ranking import NOTHING, Floats, Indices

Decisions = NDArray[np.uint8]


class Decision(IntEnum):
    """What a candidate of a query is."""

    CHOSEN = 0
    """A negative."""
    SPARE = 1
    """Could be one, but there are enough."""
    POSITIVE = 2
    """A positive of the query, in this or another Example, or a copy of one under another id."""
    QUERY = 3
    """The query's own text."""
    GIVEN = 4
    """A negative that the Example has already."""
    COPY = 5
    """The text of a better candidate."""
    REJECTED = 6
    """Too near to the positive, says the rule."""
    UNKNOWN = 7
    """Without a score of the teacher that judges."""
    NOTHING = 8
    """No candidate: there are fewer."""


JUDGED = (Decision.CHOSEN, Decision.SPARE, Decision.REJECTED)
"""What a rule decides about; the others are no negatives whatever the rule."""


class Candidates(NamedTuple):
    """Documents of queries, [queries, k] each, in the order of their ranks."""

    rows: Indices
    """Numbers of documents; `NOTHING` where there are fewer."""
    keys: NDArray[Any]
    """Whole numbers that documents of equal text share."""
    scores: Floats
    """The judge's; NaN where it knows none."""


class Pairs(NamedTuple):
    """Texts of queries: [P] positions of queries and [P] keys."""

    query: Indices
    keys: NDArray[Any]


def decide(
    rule: KeepRule,
    candidates: Candidates,
    positive: Floats,
    excluded: Mapping[Decision, Pairs],
    *,
    n_negatives: int,
    seed: int = 0,
    first: int = 0,
) -> Decisions:
    """Say what each candidate is, uint8 [queries, k].

    Args:
        rule: which candidates survive, and how the negatives are chosen from them.
        candidates: of all queries.
        positive: [queries], each query's lowest score of a positive.
        excluded: keys of texts that are no negatives of a query, by reason; the first that fits is given.
        n_negatives: most negatives of a query.
        seed: for rules that draw; a query's draw depends on the seed and its number alone.
        first: number of the first query.
    """
    rows, keys, scores = candidates
    decisions = np.full(rows.shape, Decision.REJECTED, dtype=np.uint8)
    own = _per_query(np.arange(len(rows))[:, None], keys)
    copies = np.ones(rows.size, dtype=bool)
    copies[np.unique(own, return_index=True)[1]] = False
    decisions[np.isnan(scores)] = Decision.UNKNOWN
    decisions[copies.reshape(rows.shape)] = Decision.COPY
    for reason, pairs in reversed(list(excluded.items())):
        decisions[np.isin(own, _per_query(pairs.query, pairs.keys))] = reason
    decisions[rows == NOTHING] = Decision.NOTHING
    admissible = decisions == Decision.REJECTED
    ranks = np.cumsum(admissible, axis=1) - 1
    survivors = admissible & keep(rule, scores, positive[:, None], ranks)
    decisions[survivors] = Decision.SPARE
    decisions[_chosen(rule, scores, survivors, n_negatives, seed, first)] = Decision.CHOSEN
    return decisions


def _chosen(
    rule: KeepRule, scores: Floats, survivors: NDArray[np.bool_], n: int, seed: int, first: int
) -> NDArray[np.bool_]:
    if rule.sample_from is None:
        return survivors & (np.cumsum(survivors, axis=1) <= n)
    chosen = np.zeros_like(survivors)
    for query, row in enumerate(survivors):
        positions = np.flatnonzero(row)
        random = np.random.default_rng([seed, first + query])
        chosen[query, positions[choose(rule, scores[query, positions], n, random)]] = True
    return chosen


def _per_query(query: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.uint64]:
    """Mix a query's position into keys, so that one sorted search compares each query with its own only."""
    odd, other = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
    mixed = (keys.astype(np.uint64) ^ (query.astype(np.uint64) * odd)) * other
    return np.asarray(mixed ^ (mixed >> np.uint64(32)))


def as_pairs(keys: Sequence[Collection[int]]) -> Pairs:
    """Return the keys of each query as pairs."""
    counts = [len(own) for own in keys]
    # As Python's own numbers first: hashes do not fit in int64.
    flat = np.array([key for own in keys for key in own], dtype=np.uint64)
    return Pairs(np.repeat(np.arange(len(keys)), counts), flat)
