"""Means, intervals and paired differences over seeds and over what was tested.

A variant's score on a task is the mean over its seeds. It is uncertain for two reasons: another draw of
queries would have been another test, and another seed another model. Both are resampled: units of a task,
the same ones for all models, and seeds, the same ones for both sides of a difference, since a seed's data
and order are the same in all variants. A bootstrap of few seeds shows too little spread, by the factor
(S - 1) / S; deviations are widened by its root. Tasks are as they are: nothing is said of other tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedforge.statistics import Interval, PairedTest, resampled_scores

Floats = NDArray[np.float64]
RESAMPLES = 2_000
MEAN = "mean"
How = Literal["mean", "halves", "spearman", "average_precision"]
HOW: dict[str, How] = {
    "queries": "mean",
    "texts": "mean",
    "halves": "halves",
    "scored pairs": "spearman",
    "labelled pairs": "average_precision",
}
"""How the score of a task comes of its units, by their kind."""


@dataclass(frozen=True)
class Scores:
    """One task: every variant's score with every seed, and the same on resampled units."""

    scores: Floats
    """[variants, seeds]"""
    resampled: Floats
    """[variants, seeds, resamples], of the same units for all."""
    units: int
    """How many there are, 0 where the task's score is not known by unit."""


@dataclass(frozen=True)
class Difference:
    """A variant minus the first one."""

    test: PairedTest
    agreeing: int
    """Seeds whose own difference has the sign of the mean."""


def scores_of(results: Sequence[Sequence[Mapping[str, Any]]], seed: int = 0) -> Scores:
    """Put together one task's results, [variants][seeds] of `score` and `units`, which may be None."""
    scores = np.array([[result["score"] for result in row] for row in results], dtype=np.float64)
    units = [[result["units"] for result in row] for row in results]
    if any(one is None for row in units for one in row):
        return Scores(scores, np.repeat(scores[..., None], RESAMPLES, axis=2), 0)
    first = units[0][0]
    values = np.array([one["values"] for row in units for one in row], dtype=np.float64)
    how = HOW[first["kind"]]
    resampled = resampled_scores(values, how, first["gold"], resamples=RESAMPLES, seed=seed)
    return Scores(scores, resampled.reshape(*scores.shape, RESAMPLES), values.shape[1])


def mean_of(tasks: Sequence[Scores]) -> Scores:
    """Return the mean over tasks, each with its own resampled units."""
    return Scores(
        np.mean([task.scores for task in tasks], axis=0),
        np.mean([task.resampled for task in tasks], axis=0),
        sum(task.units for task in tasks),
    )


def interval(task: Scores, variant: int) -> Interval:
    """Return a variant's mean over seeds, with its 95 % interval."""
    low, high = np.quantile(_over_seeds(task.resampled[variant]), [0.025, 0.975])
    mean = float(task.scores[variant].mean())
    if task.scores.shape[1] == 1 and not task.units:
        return Interval(mean, float("nan"), float("nan"))
    return Interval(mean, float(low), float(high))


def difference(task: Scores, variant: int) -> Difference:
    """Test a variant against the first one; the p-value is that of the interval."""
    by_seed = task.scores[variant] - task.scores[0]
    observed = float(by_seed.mean())
    replicates = _over_seeds(task.resampled[variant] - task.resampled[0])
    low, high = np.quantile(replicates, [0.025, 0.975])
    sides = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    p_value = min(1.0, 2 * (1 + sides) / (1 + len(replicates)))
    known = len(by_seed) > 1 or task.units > 0
    is_real = known and p_value < 0.05 and bool(low > 0 or high < 0)
    agreeing = int((np.sign(by_seed) == np.sign(observed)).sum())
    bounds = (float(low), float(high)) if known else (float("nan"), float("nan"))
    return Difference(PairedTest(observed, *bounds, p_value, task.units or len(by_seed), is_real), agreeing)


def _over_seeds(scores: Floats) -> Floats:
    """Return means over resampled seeds of [seeds, resamples]: [resamples]."""
    seeds, resamples = scores.shape
    if seeds == 1:
        return scores[0]
    drawn = np.random.default_rng(1).integers(seeds, size=(resamples, seeds))
    centre = scores.mean(axis=0)
    moved = np.take_along_axis(scores.T, drawn, axis=1).mean(axis=1)
    return np.asarray(centre + (seeds / (seeds - 1)) ** 0.5 * (moved - centre))
