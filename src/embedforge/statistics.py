"""Is a difference between two models real? Intervals and paired tests over queries, texts or clusters.

What is resampled is what was drawn at random when the test set was made: queries, mostly, or groups of
queries that were drawn together (all questions about one paragraph), which are then resampled as
wholes (`clusters`). Methods: the percentile bootstrap (Efron 1979) and the sign-flip permutation test
(Fisher 1935), as surveyed for retrieval by Smucker, Allan & Carterette (CIKM 2007).

V-measure is not a mean over points, and a bootstrap over points is wrong for it: a point drawn twice
always falls into one cluster with itself, which lifts the score. Its intervals come from random halves
drawn without replacement instead (`half_sample_interval`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedforge.errors import EmbedforgeError

Floats = NDArray[np.float64]
PairMetric = Literal["spearman", "average_precision"]
_BLOCK_NUMBERS = 4_000_000
"""Random numbers held at once (32 MB of int64); it bounds memory whatever the number of queries."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its confidence interval; `low` and `high` are NaN where one value gives no interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Mean of b - a over the same `n` units, its interval, and the chance to see it if a and b were equal."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    is_real: bool
    """The interval leaves out zero and the p-value is below 1 - confidence."""


def as_dict(value: Interval | PairedTest) -> dict[str, Any]:
    """Return the record as plain values, for JSON."""
    return {name: getattr(value, name) for name in value.__slots__}


def bootstrap_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    clusters: Sequence[object] | None = None,
) -> Interval:
    """Percentile bootstrap of the mean of `values` [n].

    `clusters` [n] names the group each value was drawn with; whole groups are then resampled. NaN or
    an empty input is an `EmbedforgeError`; a single unit gives NaN bounds.
    """
    sums, counts = _by_cluster(_checked(values, "values"), clusters)
    mean = float(sums.sum() / counts.sum())
    low, high = _percentiles(sums, counts, confidence, resamples, seed)
    return Interval(mean, low, high)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    clusters: Sequence[object] | None = None,
) -> PairedTest:
    """Is `b` better than `a`? Both are [n], one score per query, in the same order.

    The interval is a paired bootstrap of mean(b - a). The two-sided p-value flips the sign of each
    query's difference (of each cluster's, with `clusters`): exact by enumeration where there are no
    more sign patterns than `resamples`, otherwise (1 + hits) / (1 + resamples).
    """
    before, after = _checked(a, "a"), _checked(b, "b")
    if before.shape != after.shape:
        raise EmbedforgeError(
            f"a paired test needs the same queries on both sides, got {len(before)} and {len(after)} scores"
        )
    sums, counts = _by_cluster(after - before, clusters)
    difference = float(sums.sum() / counts.sum())
    low, high = _percentiles(sums, counts, confidence, resamples, seed)
    p_value = _sign_flip(sums, resamples, seed + 1)
    is_real = p_value < 1 - confidence and (low > 0 or high < 0)
    return PairedTest(difference, low, high, p_value, len(before), is_real)


def half_sample_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Interval of a statistic from its values [repeats] on random halves of the data.

    Halves drawn without replacement spread exactly as much as whole samples drawn from the population:
    the factor n_half / (n - n_half) of subsampling (Politis & Romano 1994) is 1 at one half. The
    interval is therefore mean +- t * standard deviation, *not* divided by the root of `repeats`.
    """
    scores = _checked(values, "values")
    mean = float(scores.mean())
    if len(scores) < 2:
        return Interval(mean, math.nan, math.nan)
    from scipy.special import stdtrit

    margin = float(stdtrit(len(scores) - 1, 0.5 + confidence / 2) * scores.std(ddof=1))
    return Interval(mean, mean - margin, mean + margin)


def half_sample_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> PairedTest:
    """Compare two models by values [repeats] on the *same* random halves; `n` is the number of halves.

    The p-value is that of the t statistic mean / standard deviation (see `half_sample_interval`).
    """
    before, after = _checked(a, "a"), _checked(b, "b")
    if before.shape != after.shape:
        raise EmbedforgeError(f"the halves must be the same on both sides: {len(before)} and {len(after)}")
    interval = half_sample_interval(after - before, confidence=confidence)
    p_value = _t_p_value(after - before)
    is_real = p_value < 1 - confidence
    return PairedTest(interval.mean, interval.low, interval.high, p_value, len(before), is_real)


def pairs_interval(
    predicted: ArrayLike,
    gold: ArrayLike,
    metric: PairMetric = "spearman",
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over pairs of how well `predicted` follows `gold`, both [n].

    `spearman` is the rank correlation; `average_precision` takes `gold` of 0 and 1.
    """
    x, y = _checked(predicted, "predicted"), _checked(gold, "gold")
    (replicates,) = _resampled_pairs(x[None], y, metric, resamples, seed)
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(_PAIR_METRICS[metric](x[None], y[None])[0]), float(low), float(high))


def pairs_difference(
    a: ArrayLike,
    b: ArrayLike,
    gold: ArrayLike,
    metric: PairMetric = "spearman",
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> PairedTest:
    """Does `b` follow `gold` better than `a`? All are [n]; both are scored on the same resampled pairs.

    The p-value is that of the interval: twice the share of resamples on the other side of zero.
    """
    both, y = np.stack([_checked(a, "a"), _checked(b, "b")]), _checked(gold, "gold")
    before, after = _resampled_pairs(both, y, metric, resamples, seed)
    change = after - before
    low, high = np.quantile(change, [(1 - confidence) / 2, (1 + confidence) / 2])
    observed = _PAIR_METRICS[metric](both, np.stack([y, y]))
    sides = min(int((change <= 0).sum()), int((change >= 0).sum()))
    p_value = min(1.0, 2 * (1 + sides) / (1 + resamples))
    is_real = p_value < 1 - confidence and bool(low > 0 or high < 0)
    return PairedTest(float(observed[1] - observed[0]), float(low), float(high), p_value, len(y), is_real)


def resampled_scores(
    values: ArrayLike,
    how: Literal["mean", "halves", "spearman", "average_precision"],
    gold: ArrayLike = (),
    *,
    resamples: int = 2_000,
    seed: int = 0,
) -> Floats:
    """Return the scores of several models on the same resamples of the units: [models, resamples].

    Args:
        values: [models, n], of every model the values of the same n units.
        how: a score is their mean; of `halves`, which are samples already, one of them; else how well they
            follow `gold`.
        gold: [n], of the last two.
        resamples: how many.
        seed: of the draw; the same for all models.
    """
    scores = np.asarray(values, dtype=np.float64)
    if how in ("spearman", "average_precision"):
        return _resampled_pairs(scores, _checked(gold, "gold"), how, resamples, seed)
    rng, units = np.random.default_rng(seed), scores.shape[1]
    if how == "halves":
        return scores[:, rng.integers(units, size=resamples)]
    found = np.empty((len(scores), resamples))
    block = max(1, _BLOCK_NUMBERS // units)
    for start in range(0, resamples, block):
        rows = rng.integers(units, size=(min(block, resamples - start), units))
        for row, one in zip(found, scores, strict=True):
            row[start : start + len(rows)] = one[rows].mean(axis=1)
    return found


def _resampled_pairs(
    predictions: Floats, gold: Floats, metric: PairMetric, resamples: int, seed: int
) -> Floats:
    """Score each row of `predictions` [m, n] against `gold` [n] on the same resamples: [m, resamples]."""
    if predictions.shape[1] != len(gold):
        raise EmbedforgeError(f"{predictions.shape[1]} predictions for {len(gold)} gold scores")
    rng = np.random.default_rng(seed)
    scores = np.empty((len(predictions), resamples))
    block = max(1, _BLOCK_NUMBERS // (8 * len(gold)))
    for start in range(0, resamples, block):
        rows = rng.integers(len(gold), size=(min(block, resamples - start), len(gold)))
        for row, prediction in zip(scores, predictions, strict=True):
            row[start : start + len(rows)] = _PAIR_METRICS[metric](prediction[rows], gold[rows])
    return scores


def _spearman(x: Floats, y: Floats) -> Floats:
    """Row-wise Spearman correlation of [r, n] with [r, n]; 0 where one side is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (x, y)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))


def _average_precision(x: Floats, y: Floats) -> Floats:
    """Row-wise average precision of scores [r, n] for labels 0 and 1 [r, n]; 0 without any 1.

    Equal scores are found together, as scikit-learn has it, so their order does not matter.
    """
    order = np.argsort(-x, axis=1, kind="stable")
    scores, hits = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
    ranks = np.arange(x.shape[1])
    is_last = np.diff(scores, axis=1, append=-np.inf) != 0
    last_of_ties = np.minimum.accumulate(np.where(is_last, ranks, len(ranks))[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(np.cumsum(hits, axis=1) / (ranks + 1), last_of_ties, axis=1)
    return np.asarray((precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1))


_PAIR_METRICS = {"spearman": _spearman, "average_precision": _average_precision}


def _t_p_value(differences: Floats) -> float:
    from scipy.special import stdtr

    if len(differences) < 2 or not differences.any():
        return 1.0
    spread = float(differences.std(ddof=1))
    if spread == 0:
        return 0.0
    return float(2 * stdtr(len(differences) - 1, -abs(float(differences.mean())) / spread))


def _checked(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise EmbedforgeError(f"{name}: expected a list of scores, got an array of shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise EmbedforgeError(f"{name}: score {bad[0]} is {array[bad[0]]}, not a number to average")
    return array


def _by_cluster(values: Floats, clusters: Sequence[object] | None) -> tuple[Floats, Floats]:
    """Sum and count of the values of each unit that is resampled."""
    if clusters is None:
        return values, np.ones_like(values)
    if len(clusters) != len(values):
        raise EmbedforgeError(f"clusters: {len(clusters)} names for {len(values)} scores")
    numbers: dict[object, int] = {}
    ids = np.array([numbers.setdefault(name, len(numbers)) for name in clusters])
    sums, counts = np.zeros(len(numbers)), np.zeros(len(numbers))
    np.add.at(sums, ids, values)
    np.add.at(counts, ids, 1)
    return sums, counts


def _percentiles(
    sums: Floats, counts: Floats, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise EmbedforgeError(f"confidence: expected a number between 0 and 1, got {confidence}")
    units = len(sums)
    if units == 1:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, _BLOCK_NUMBERS // units)
    for start in range(0, resamples, block):
        rows = rng.integers(units, size=(min(block, resamples - start), units))
        means[start : start + len(rows)] = sums[rows].sum(axis=1) / counts[rows].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _sign_flip(differences: Floats, resamples: int, seed: int) -> float:
    """Two-sided p-value of sum(differences) when every sign is as likely as its opposite."""
    moved = differences[differences != 0]  # a zero has no sign to flip
    if not len(moved):
        return 1.0
    # Sums that are equal on paper must count as hits whatever the order of their additions.
    observed = abs(float(moved.sum())) - 1e-9 * float(np.abs(moved).sum())
    if len(moved) < 60 and 2 ** len(moved) <= resamples:
        patterns = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float((np.abs((1.0 - 2.0 * patterns) @ moved) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    block = max(1, _BLOCK_NUMBERS // len(moved))
    for start in range(0, resamples, block):
        signs = rng.integers(2, size=(min(block, resamples - start), len(moved)), dtype=np.int8)
        hits += int((np.abs((1.0 - 2.0 * signs) @ moved) >= observed).sum())
    return (1 + hits) / (1 + resamples)
