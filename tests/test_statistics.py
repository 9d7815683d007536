from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedforge import statistics as statistics_module
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.retrieval import per_query_metrics, v_measure
from embedforge.statistics import (
    bootstrap_interval,
    half_sample_difference,
    half_sample_interval,
    paired_difference,
    pairs_difference,
    pairs_interval,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- intervals and tests -------------------------------------------------------------------------


def test_bootstrap_interval_has_the_width_of_the_normal_theory():
    values = normal(400).astype(np.float64)
    interval = bootstrap_interval(values)
    margin = 1.96 * values.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert interval.high == pytest.approx(values.mean() + margin, abs=0.1 * margin)


def test_bootstrap_does_not_depend_on_how_memory_is_cut(monkeypatch):
    values = normal(50)
    whole = bootstrap_interval(values, resamples=300)
    monkeypatch.setattr(statistics_module, "_BLOCK_NUMBERS", 700)
    assert bootstrap_interval(values, resamples=300) == whole


def test_clusters_widen_an_interval_of_repeated_values():
    groups = normal(40)
    values = np.repeat(groups, 25)
    names = [f"paragraph {i // 25}" for i in range(1000)]
    independent = bootstrap_interval(values)
    clustered = bootstrap_interval(values, clusters=names)
    alone = bootstrap_interval(groups)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high), rel=1e-6)
    assert clustered.high - clustered.low > 4 * (independent.high - independent.low)


def test_clusters_of_unequal_size_keep_the_mean_over_values():
    interval = bootstrap_interval([1.0, 1.0, 1.0, 0.0], clusters=["a", "a", "a", "b"])
    assert interval.mean == 0.75
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_sign_flip_of_few_queries_is_exact():
    a, b = [0.0, 0.0, 0.0, 0.5], [0.3, 0.1, 0.2, 0.5]
    differences = np.array([0.3, 0.1, 0.2])
    flips = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=3)]
    expected = np.mean([flip >= 0.6 - 1e-9 for flip in flips])
    assert paired_difference(a, b).p_value == expected == 0.25


def test_a_real_improvement_is_found_and_a_shuffled_one_is_not():
    before = np.clip(0.5 + 0.3 * normal(200), 0, 1)
    better = paired_difference(before, before + 0.05 + 0.1 * normal(200, seed=1))
    noise = paired_difference(before, before + 0.1 * normal(200, seed=2))
    assert better.is_real
    assert better.p_value < 0.001
    assert 0.02 < better.low < better.difference < better.high < 0.08
    assert not noise.is_real


def test_paired_test_is_antisymmetric_in_its_difference():
    a, b = normal(30), normal(30, seed=1)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == pytest.approx(back.p_value, abs=0.02)


def test_p_values_are_uniform_when_nothing_differs():
    p_values = [
        paired_difference(normal(24, seed=i), normal(24, seed=1000 + i), resamples=400).p_value
        for i in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10


def test_equal_scores_and_single_queries_claim_nothing():
    same = paired_difference([0.2, 0.4], [0.2, 0.4])
    assert (same.difference, same.p_value, same.is_real) == (0.0, 1.0, False)
    single = paired_difference([0.0], [1.0])
    assert math.isnan(single.low)
    assert not single.is_real


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "list of scores"),
        (lambda: bootstrap_interval([0.1, math.nan]), "score 1 is nan"),
        (lambda: bootstrap_interval([0.1, 0.2], confidence=95), "between 0 and 1"),
        (lambda: bootstrap_interval([0.1, 0.2], clusters=["a"]), "1 names for 2 scores"),
        (lambda: paired_difference([0.1], [0.1, 0.2]), "1 and 2 scores"),
        (lambda: half_sample_difference([0.1], [0.1, 0.2]), "1 and 2"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(EmbedforgeError, match=message):
        call()


def test_half_samples_spread_like_whole_samples():
    """The claim the V-measure intervals rest on, checked on a statistic whose spread is known."""
    data = normal(500).astype(np.float64)
    rng = np.random.default_rng(0)
    halves = [data[rng.permutation(500)[:250]].mean() for _ in range(400)]
    interval = half_sample_interval(halves)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * data.std() / math.sqrt(500), rel=0.1)


def test_correlations_agree_with_scipy_and_their_intervals_with_fisher():
    from scipy.stats import spearmanr

    gold = np.round(normal(300) * 2)  # ties
    predicted = gold + 2 * normal(300, seed=1)
    interval = pairs_interval(predicted, gold)
    rho = spearmanr(predicted, gold)[0]
    fisher = np.tanh(np.arctanh(rho) + np.array([-1.96, 1.96]) * math.sqrt((1 + rho**2 / 2) / 297))
    assert interval.mean == pytest.approx(rho)
    assert (interval.low, interval.high) == pytest.approx(tuple(fisher), abs=0.03)


def test_correlation_difference_pairs_the_resamples():
    gold = normal(300)
    worse, better = gold + 1.5 * normal(300, seed=1), gold + normal(300, seed=2)
    test = pairs_difference(worse, better, gold)
    assert test.is_real
    assert test.low < test.difference < test.high
    same = pairs_difference(better, 2 * better + 1, gold)  # ranks are equal
    assert (same.difference, same.p_value, same.is_real) == (0.0, 1.0, False)


def test_average_precision_agrees_with_sklearn():
    from sklearn.metrics import average_precision_score

    gold = (normal(200) > 0.5).astype(float)
    predicted = np.round(gold + 2 * normal(200, seed=1), 1)  # ties
    interval = pairs_interval(predicted, gold, "average_precision")
    assert interval.mean == pytest.approx(average_precision_score(gold, predicted))
    assert 0.05 < interval.high - interval.low < 0.3
    better = pairs_difference(predicted, predicted + gold, gold, "average_precision")
    assert better.is_real
    assert better.low > 0


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_by_hand():
    scores = per_query_metrics([[5, 3, 9], [1, 2, 3]], [{3: 2, 9: 1, 4: 3, 5: 0}, {7: 1}], k=3)
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert scores["ndcg@3"][0] == pytest.approx((2 / math.log2(3) + 1 / 2) / ideal)
    assert scores["recall@3"][0] == pytest.approx(2 / 3)
    assert scores["mrr@3"][0] == pytest.approx(1 / 2)
    assert [scores[name][1] for name in scores] == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_metrics_agree_with_trec_eval(data):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranking = data.draw(st.permutations(range(15)))
    gains = data.draw(st.dictionaries(st.integers(0, 20), st.integers(0, 4), min_size=1))
    if not any(gains.values()):
        gains[0] = 1
    ours = per_query_metrics([ranking], [gains])
    evaluator = pytrec_eval.RelevanceEvaluator(
        {"q": {str(d): g for d, g in gains.items()}}, {"ndcg_cut.10", "recall.10", "recip_rank"}
    )
    theirs = evaluator.evaluate({"q": {str(d): float(-rank) for rank, d in enumerate(ranking)}})["q"]
    assert ours["ndcg@10"][0] == pytest.approx(theirs["ndcg_cut_10"])
    assert ours["recall@10"][0] == pytest.approx(theirs["recall_10"])
    first = theirs["recip_rank"]
    assert ours["mrr@10"][0] == pytest.approx(first if first >= 0.1 else 0.0)


def test_a_query_without_relevant_documents_is_refused():
    with pytest.raises(EmbedforgeError, match="query 1 has no relevant document"):
        per_query_metrics([[0], [0]], [{0: 1}, {0: 0}])


def test_v_measure_tells_clusters_from_noise():
    labels = [i % 4 for i in range(200)]
    vectors = normal(200, 8) * 0.1
    vectors[np.arange(200), labels] += 1
    good = v_measure(vectors, labels, repeats=5)
    bad = v_measure(normal(200, 8), labels, repeats=5)
    assert good.mean() > 0.95
    assert bad.mean() < 0.3
    assert (v_measure(vectors, labels, repeats=5) == good).all()
    assert half_sample_difference(bad, good).is_real
