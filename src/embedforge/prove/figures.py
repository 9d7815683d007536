"""Before and after on held-out text: retrieval, clustering, alignment and uniformity, the MNTP loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.evaluate.found import Ranked
from embedforge.evaluate.retrieval import per_query_metrics, v_measure
from embedforge.nearest import exact_search
from embedforge.prove.fusion import DEPTH, by_meaning, by_words, cross_fused, ndcg
from embedforge.prove.held_out import HeldOut
from embedforge.prove.systems import ACROSS, TEACHER, TRAINED, Encoded
from embedforge.prove.training_data import parts_of
from embedforge.statistics import (
    Interval,
    PairedTest,
    as_dict,
    bootstrap_interval,
    half_sample_difference,
    half_sample_interval,
    paired_difference,
)

BM25, ALL = "BM25", "all"
FUSED = "trained + BM25"
"""Both rankings fused, with a weight that other held-out questions chose; see `fusion`."""
METRICS = ("ndcg@10", "recall@10", "mrr@10")
KINDS = ("title", "heading", "description", "cloze")
FEWEST_HALVES = 10
"""Fewer passages say nothing about alignment and uniformity."""
FEWEST_CLUSTERED = 20
HALF_SAMPLES = 20

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A figure of each system, and the change from each of them to one of them."""

    values: dict[str, Interval]
    changes: dict[str, PairedTest]
    """System -> `reference` minus that system, over the same texts."""
    reference: str = TRAINED
    lower_is_better: bool = False

    def better_by(self, system: str) -> PairedTest | None:
        """Return how much better `reference` is than a system; None for itself."""
        test = self.changes.get(system)
        if test is None or not self.lower_is_better:
            return test
        return replace(test, difference=-test.difference, low=-test.high, high=-test.low)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "values": {system: as_dict(value) for system, value in self.values.items()},
            f"{self.reference} minus": {system: as_dict(test) for system, test in self.changes.items()},
        }


@dataclass(frozen=True)
class Figures:
    """All figures of the report; what could not be measured is empty or None."""

    retrieval: dict[str, dict[str, Measure]]
    """Kind of question, or "all" -> metric -> figures."""
    questions: dict[str, int]
    """Kind, or "all" -> number of questions."""
    documents: int
    clustering: Measure | None
    """V-measure of held-out answers by the part of the folder that they come from."""
    parts: int
    alignment: Measure | None
    uniformity: Measure | None
    own_half: Measure | None
    """Share of other passages whose end lies farther from a beginning than its own end does."""
    halves: int
    loss: Measure | None
    """MNTP, in nats a hidden token."""
    predictions: int
    """Hidden tokens of the held-out chunks."""
    chunks: int
    rankings: dict[str, Ranked]
    across: Measure | None = None
    """nDCG@10 of a student's questions in its teacher's vectors of documents, minus that of each system."""
    fidelity: dict[str, Interval] = field(default_factory=dict)
    """Mean cosine of the student's vectors to the teacher's, by kind of text."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        measures = {
            "clustering, v-measure": self.clustering,
            "alignment": self.alignment,
            "uniformity": self.uniformity,
            "own half nearer": self.own_half,
            "mntp loss, nats a token": self.loss,
        }
        return {
            "questions": self.questions,
            "documents": self.documents,
            "retrieval": {
                kind: {metric: measure.as_json() for metric, measure in row.items()}
                for kind, row in self.retrieval.items()
            },
            **{name: measure and measure.as_json() for name, measure in measures.items()},
            "across": self.across and self.across.as_json(),
            "cosine to the teacher": {kind: as_dict(value) for kind, value in self.fidelity.items()},
            "parts": self.parts,
            "halved passages": self.halves,
            "hidden tokens": self.predictions,
            "chunks": self.chunks,
        }


def figures_of(
    held_out: HeldOut, encoded: Mapping[str, Encoded], *, after_mntp: str = TRAINED, seed: int
) -> Figures:
    """Compare the systems with each other and with BM25.

    Args:
        held_out: the texts.
        encoded: what each system made of them, in the order of the report; the last is the trained model.
        after_mntp: the system that MNTP left, whose loss the others are compared with.
        seed: of the bootstrap and of half samples.
    """
    rankings = _rankings(held_out, encoded, seed)
    trained = encoded[TRAINED]
    enough = len(held_out.halves) >= FEWEST_HALVES
    rows, labels = clustered(held_out)

    def of_each(measure: Callable[[Encoded], Scores]) -> dict[str, Scores]:
        """Of the systems that have a space of their own."""
        return {name: measure(one) for name, one in encoded.items() if name != ACROSS}

    return Figures(
        retrieval=_retrieval(held_out, rankings, seed),
        questions=_questions(held_out),
        documents=len(held_out.documents),
        clustering=_over_halves(of_each(lambda one: v_measure(one.answers[rows], labels, seed=seed)))
        if rows
        else None,
        parts=len(set(labels)),
        alignment=_over_texts(of_each(alignment), seed, lower_is_better=True) if enough else None,
        uniformity=_over_halves(of_each(lambda one: uniformity(one.beginnings, seed)), lower_is_better=True)
        if enough
        else None,
        own_half=_over_texts(of_each(own_half_nearer), seed) if enough else None,
        halves=len(held_out.halves),
        loss=_losses(encoded, after_mntp, seed) if len(trained.losses) else None,
        predictions=int(trained.predictions.sum()),
        chunks=len(trained.losses),
        rankings=rankings,
        across=_across(rankings, seed) if ACROSS in rankings else None,
        fidelity=_fidelity(trained, encoded[TEACHER], seed) if ACROSS in encoded else {},
    )


def ndcg_of(one: Encoded) -> Scores:
    """Return nDCG@10 of each question, [questions], by the system's own vectors."""
    return ndcg(exact_search(one.queries, one.documents, DEPTH)[0])


def clustered(held_out: HeldOut) -> tuple[list[int], list[str]]:
    """Return the questions whose answers are clustered, and the part of the folder that each comes from.

    Those of parts with two answers or more; none where there are too few of them, or one part.
    """
    part = parts_of([pair.file for pair in held_out.pairs])
    labels = [part[pair.file] for pair in held_out.pairs]
    counts = Counter(labels)
    rows = [row for row, label in enumerate(labels) if counts[label] > 1]
    if len(rows) < FEWEST_CLUSTERED or len({labels[row] for row in rows}) < 2:
        return [], []
    return rows, [labels[row] for row in rows]


def alignment(one: Encoded) -> Scores:
    """Squared distance of the two halves of each passage, [passages]; its mean is the alignment.

    Wang & Isola 2020 (arXiv 2005.10242), alignment loss with alpha 2: positives are to lie near each
    other. On the unit sphere it is 2 - 2 cos.
    """
    return np.asarray(((one.beginnings - one.ends).astype(np.float64) ** 2).sum(axis=1))


def own_half_nearer(one: Encoded) -> Scores:
    """For the beginning of each passage, the share of other passages' ends that are farther than its own.

    [passages]; 1 where it is nearest, 0.5 by chance: what alignment and uniformity are good for together.
    """
    cosines = one.beginnings.astype(np.float64) @ one.ends.astype(np.float64).T
    own = np.diagonal(cosines)[:, None]
    farther = (cosines < own).sum(axis=1) + 0.5 * ((cosines == own).sum(axis=1) - 1)
    return np.asarray(farther / (len(cosines) - 1))


def uniformity(vectors: NDArray[np.float32], seed: int) -> Scores:
    """Log of the mean of exp(-2 squared distance) over all pairs of texts, of random halves; [repeats].

    Wang & Isola 2020, uniformity loss with t = 2: the lower, the more evenly the texts are spread; 0 when
    all are one point. Halves without replacement, since a bootstrap would pair texts with themselves.
    """
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(HALF_SAMPLES):
        half = vectors[draw.permutation(len(vectors))[: len(vectors) // 2]].astype(np.float64)
        squared = np.clip(2 - 2 * half @ half.T, 0, None)[np.triu_indices(len(half), 1)]
        values.append(float(np.log(np.exp(-2 * squared).mean())))
    return np.array(values)


def _questions(held_out: HeldOut) -> dict[str, int]:
    kinds: Counter[str] = Counter(pair.kind for pair in held_out.pairs)
    return {ALL: len(held_out.pairs), **{kind: kinds[kind] for kind in KINDS if kinds[kind]}}


def _rankings(held_out: HeldOut, encoded: Mapping[str, Encoded], seed: int) -> dict[str, Ranked]:
    if not held_out.pairs:
        return {}
    words = by_words(held_out)
    found = {BM25: _first(words)}
    for name, one in encoded.items():
        found[name] = Ranked(*exact_search(one.queries, one.documents, DEPTH))
    found[FUSED] = cross_fused(words, by_meaning(encoded[TRAINED]), seed=seed)
    return found


def _first(ranked: Ranked) -> Ranked:
    return Ranked(ranked.indices[:, :DEPTH], ranked.scores[:, :DEPTH])


def _retrieval(held_out: HeldOut, rankings: Mapping[str, Ranked], seed: int) -> dict[str, dict[str, Measure]]:
    """The answer of question i is document i."""
    if not rankings:
        return {}
    relevant = [{row: 1.0} for row in range(len(held_out.pairs))]
    scores = {name: per_query_metrics(found.indices, relevant, k=DEPTH) for name, found in rankings.items()}
    kinds = np.array([pair.kind for pair in held_out.pairs])
    rows = {
        kind: kinds == kind if kind != ALL else np.full(len(kinds), True) for kind in _questions(held_out)
    }
    return {
        kind: {
            metric: _over_texts({name: values[metric][chosen] for name, values in scores.items()}, seed)
            for metric in METRICS
        }
        for kind, chosen in rows.items()
    }


def _across(rankings: Mapping[str, Ranked], seed: int) -> Measure:
    """Compare what is found across with what each system finds by itself."""
    relevant = [{row: 1.0} for row in range(len(rankings[ACROSS].indices))]
    scores = {
        name: per_query_metrics(found.indices, relevant, k=DEPTH)["ndcg@10"]
        for name, found in rankings.items()
    }
    return _over_texts(scores, seed, reference=ACROSS)


def _fidelity(student: Encoded, teacher: Encoded, seed: int) -> dict[str, Interval]:
    parts = {
        "questions": (student.queries, teacher.queries),
        "passages": (student.documents, teacher.documents),
    }
    return {
        kind: bootstrap_interval((own * its).sum(axis=1), seed=seed)
        for kind, (own, its) in parts.items()
        if len(own)
    }


def _over_texts(
    values: Mapping[str, Scores],
    seed: int,
    clusters: Sequence[object] | None = None,
    reference: str = TRAINED,
    lower_is_better: bool = False,
) -> Measure:
    """Means with bootstrap intervals, and paired differences; `values` are [texts] each."""
    means = {name: bootstrap_interval(one, seed=seed, clusters=clusters) for name, one in values.items()}
    changes = {
        name: paired_difference(one, values[reference], seed=seed, clusters=clusters)
        for name, one in values.items()
        if name != reference
    }
    return Measure(means, changes, reference, lower_is_better)


def _over_halves(values: Mapping[str, Scores], lower_is_better: bool = False) -> Measure:
    means = {name: half_sample_interval(one) for name, one in values.items()}
    last = values[TRAINED]
    changes = {name: half_sample_difference(one, last) for name, one in values.items() if name != TRAINED}
    return Measure(means, changes, lower_is_better=lower_is_better)


def _losses(encoded: Mapping[str, Encoded], after_mntp: str, seed: int) -> Measure:
    """Means over hidden tokens; whole chunks are resampled, for their tokens were hidden together."""
    counts = encoded[TRAINED].predictions
    clusters = np.repeat(np.arange(len(counts)), counts).tolist()
    values = {name: np.repeat(one.losses / one.predictions, counts) for name, one in encoded.items()}
    return _over_texts(values, seed, clusters, after_mntp, lower_is_better=True)
