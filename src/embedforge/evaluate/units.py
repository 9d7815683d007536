"""What a task's score is a mean of, so that a difference between models can be tested. Needs mteb.

mteb reports one number a task. From the predictions it saves, the score of every query, text or pair is
worked out again with the same definitions; where that does not give mteb's number back, a task has no units
and its score stands without interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)

from embedforge.errors import EmbedforgeError
from embedforge.statistics import (
    Interval,
    PairedTest,
    PairMetric,
    bootstrap_interval,
    half_sample_difference,
    half_sample_interval,
    paired_difference,
    pairs_difference,
    pairs_interval,
)

_TREC_NAMES = {
    "ndcg": "ndcg_cut",
    "map": "map_cut",
    "recall": "recall",
    "precision": "P",
    "hit_rate": "success",
}
_PAIR_METRICS: dict[str, PairMetric] = {"scored pairs": "spearman", "labelled pairs": "average_precision"}
_TOLERANCE = 5e-4  # mteb rounds to five digits


@dataclass(frozen=True, slots=True)
class Units:
    """Scores of the units that were drawn at random: all of one task and split, in the data's order."""

    kind: Literal["queries", "texts", "scored pairs", "labelled pairs", "halves"]
    values: tuple[float, ...]
    """Of pairs the predicted similarities, of all other kinds scores whose mean is the task's."""
    gold: tuple[float, ...] = ()
    """Of pairs the human scores, or the labels 0 and 1."""

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads: the fields, with lists for tuples as in JSON."""
        return {"kind": self.kind, "values": list(self.values), "gold": list(self.gold)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Units | None:
        """Read what `as_json` wrote; None stays None."""
        return None if value is None else cls(value["kind"], tuple(value["values"]), tuple(value["gold"]))


def interval(units: Units) -> Interval:
    """95 % interval of the task's score, by the method that fits the kind of unit."""
    if units.kind in _PAIR_METRICS:
        return pairs_interval(units.values, units.gold, _PAIR_METRICS[units.kind])
    return half_sample_interval(units.values) if units.kind == "halves" else bootstrap_interval(units.values)


def compare(a: Units, b: Units) -> PairedTest:
    """Test the difference b - a on the same units."""
    if (a.kind, len(a.values), a.gold) != (b.kind, len(b.values), b.gold):
        raise EmbedforgeError(
            f"the two models were scored on other data, {len(a.values)} {a.kind} and {len(b.values)} "
            f"{b.kind}; evaluate both anew"
        )
    if a.kind in _PAIR_METRICS:
        return pairs_difference(a.values, b.values, a.gold, _PAIR_METRICS[a.kind])
    return (half_sample_difference if a.kind == "halves" else paired_difference)(a.values, b.values)


def unit_scores(
    task: Any, split: str, predictions: Mapping[str, Any], scores: Mapping[str, Any]
) -> Units | None:
    """Work out the units of a task from mteb's saved predictions and scores, both by subset.

    The task's score is the mean of its subsets; values are weighted so that theirs is too.
    """
    if isinstance(task, AbsTaskSTS | AbsTaskPairClassification):
        return _pairs(task, split, predictions, scores)
    halves = [score.get("v_measures", {}).get("halves") for score in scores.values()]
    if halves[0] is not None:
        return Units("halves", tuple(halves[0]))
    parts = {subset: _subset_values(task, subset, split, predictions) for subset in scores}
    if any(part is None or not len(part) for part in parts.values()):
        return None
    total = sum(len(part) for part in parts.values() if part is not None)
    weighted = [part * total / (len(parts) * len(part)) for part in parts.values() if part is not None]
    values = np.concatenate(weighted)
    expected = np.mean([score["main_score"] for score in scores.values()])
    if abs(values.mean() - expected) > _TOLERANCE:
        return None
    kind: Literal["queries", "texts"] = "queries" if isinstance(task, AbsTaskRetrieval) else "texts"
    return Units(kind, tuple(values.tolist()))


def _pairs(task: Any, split: str, predictions: Mapping[str, Any], scores: Mapping[str, Any]) -> Units | None:
    if len(scores) != 1:
        return None
    ((subset, score),) = scores.items()
    is_sts = isinstance(task, AbsTaskSTS)
    gold = _rows(task, subset, split)["score" if is_sts else task.label_column_name]
    units = Units(
        "scored pairs" if is_sts else "labelled pairs",
        tuple(predictions[subset][split]["cosine_scores"]),
        tuple(map(float, gold)),
    )
    metric = _PAIR_METRICS[units.kind]
    off = abs(pairs_interval(units.values, units.gold, metric, resamples=1).mean - score["main_score"])
    return units if off <= _TOLERANCE else None


def _subset_values(task: Any, subset: str, split: str, predictions: Mapping[str, Any]) -> Any:
    """Return the scores [n] of a subset's queries or texts; None where the task has no such scores."""
    predicted = predictions.get(subset, {}).get(split)
    if predicted is None:
        return None
    if isinstance(task, AbsTaskRetrieval):
        return _query_scores(task, task.dataset[subset][split]["relevant_docs"], predicted)
    if isinstance(task, AbsTaskBitextMining):
        nearest = next(iter(predicted.values())) if isinstance(predicted, dict) else predicted
        return np.array([float(int(hit["corpus_id"]) == i) for i, hit in enumerate(nearest)])
    if isinstance(task, AbsTaskClassification) and task.metadata.main_score == "accuracy":
        truth = np.array(_rows(task, subset, split)[task.label_column_name])
        return (np.array(predicted) == truth).mean(axis=0)
    return None


def _query_scores(task: Any, relevant: Mapping[str, Any], results: Mapping[str, Any]) -> Any:
    import pytrec_eval

    metric, _, k = task.metadata.main_score.rpartition("_at_")
    if metric not in _TREC_NAMES or task.skip_first_result:
        return None
    if task.ignore_identical_ids:
        results = {q: {d: s for d, s in hits.items() if d != q} for q, hits in results.items()}
    measure = f"{_TREC_NAMES[metric]}.{k}"
    scores = pytrec_eval.RelevanceEvaluator(relevant, {measure}).evaluate(results)
    return np.array([scores[query][measure.replace(".", "_")] for query in sorted(scores)])


def _rows(task: Any, subset: str, split: str) -> Any:
    return task.dataset[subset][split] if subset in task.dataset else task.dataset[split]
