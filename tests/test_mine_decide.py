"""What each candidate is: against one query at a time, in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedforge.mine.decide import Candidates, Decision, as_pairs, decide
from embedforge.mine.keep import KeepRule, keep
from embedforge.ranking import NOTHING

RULES = [
    KeepRule("top_k"),
    KeepRule("shifted", 2),
    KeepRule("absolute", 0.3),
    KeepRule("margin", 0.1),
    KeepRule("percentage", 0.9),
]


def one_by_one(rule, rows, keys, scores, positive, excluded, n):
    decisions, seen, rank, kept = [], set(), 0, 0
    for row, key, score in zip(rows, keys, scores, strict=True):
        reason = next((reason for reason, own in excluded.items() if key in own), None)
        if row == NOTHING:
            decisions.append(Decision.NOTHING)
        elif reason is not None:
            decisions.append(reason)
        elif key in seen:
            decisions.append(Decision.COPY)
        elif np.isnan(score):
            decisions.append(Decision.UNKNOWN)
        else:
            survives = rank >= rule.threshold if rule.kind == "shifted" else keep(rule, score[None], positive)
            rank += 1
            kept += bool(survives)
            decisions.append(
                Decision.REJECTED if not survives else Decision.CHOSEN if kept <= n else Decision.SPARE
            )
        seen.add(key)
    return decisions


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RULES), st.integers(0, 10_000), st.integers(0, 5))
def test_many_queries_at_once_are_decided_as_one_by_one(rule: KeepRule, seed: int, n: int):
    random = np.random.default_rng(seed)
    shape = (6, 9)
    rows = random.integers(NOTHING, 20, shape)
    rows.sort(axis=1)
    rows = rows[:, ::-1].copy()  # nothing stands at the end
    keys = random.integers(1, 12, 20).astype(np.uint64)[rows] * np.uint64(2**60 + 7)
    keys[rows == NOTHING] = 0
    scores = -np.sort(-random.uniform(-1, 1, shape)).astype(np.float32)
    scores[random.random(shape) < 0.1] = np.nan
    positive = random.uniform(-1, 1, 6).astype(np.float32)
    excluded = {
        reason: [set(random.choice(keys.ravel(), 2).tolist()) - {0} for _ in range(6)]
        for reason in (Decision.POSITIVE, Decision.QUERY, Decision.GIVEN)
    }
    found = decide(
        rule,
        Candidates(rows, keys, scores),
        positive,
        {reason: as_pairs(own) for reason, own in excluded.items()},
        n_negatives=n,
    )
    for query in range(6):
        own = {reason: sets[query] for reason, sets in excluded.items()}
        expected = one_by_one(rule, rows[query], keys[query], scores[query], positive[query], own, n)
        assert found[query].tolist() == expected


def test_a_draw_depends_on_the_seed_and_the_querys_number_only():
    rows = np.tile(np.arange(12), (4, 1))
    candidates = Candidates(rows, rows + 1, np.tile(np.linspace(0.5, 0.1, 12, dtype=np.float32), (4, 1)))
    rule = KeepRule("top_k", sample_from=10)
    arguments = {"n_negatives": 3, "seed": 5}
    whole = decide(rule, candidates, np.ones(4, dtype=np.float32), {}, **arguments)
    part = Candidates(*(values[2:] for values in candidates))
    np.testing.assert_array_equal(
        decide(rule, part, np.ones(2, dtype=np.float32), {}, first=2, **arguments), whole[2:]
    )
    assert ((whole == Decision.CHOSEN).sum(axis=1) == 3).all()
    assert not (whole[:, 10:] == Decision.CHOSEN).any()
    assert len({tuple(row) for row in whole.tolist()}) > 1


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_shifted_counts_only_what_could_be_a_negative(value: float):
    rows = np.arange(8)[None]
    found = decide(
        KeepRule("shifted", value),
        Candidates(rows, rows + 1, np.ones((1, 8), dtype=np.float32)),
        np.zeros(1, dtype=np.float32),
        {Decision.POSITIVE: as_pairs([[1, 3]])},
        n_negatives=2,
    )
    expected = [2, 0, 2, 0, 1, 1, 1, 1] if value == 0 else [2, 6, 2, 6, 6, 0, 0, 1]
    assert found[0].tolist() == expected
