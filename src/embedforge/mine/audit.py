"""The audit page: what was kept, what was not and why, and what may be false negatives, to read.

It is made of the stored scores alone, so it says too what other rules would have kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedforge.mine.corpus import Corpus
from embedforge.mine.decide import JUDGED, Decision
from embedforge.mine.keep import KeepRule, keep
from embedforge.mine.pipeline import Mined, Selection
from embedforge.ranking import Floats
from embedforge.report.charts import score_distributions
from embedforge.report.page import (
    Cell,
    Chart,
    Finding,
    Headline,
    Hit,
    QueryExample,
    Report,
    Share,
    Table,
    write_report,
)

QUERIES_SEEN = 20_000
"""Charts and the comparison of rules take so many queries, drawn evenly."""
TO_READ = 8
"""Queries shown for each of the two suspicions."""
HITS = 3
COMPARED: tuple[KeepRule, ...] = (
    KeepRule("top_k"),
    KeepRule("shifted", 10),
    KeepRule("absolute", 0.5),
    KeepRule("absolute", 0.7),
    KeepRule("absolute", 0.9),
    KeepRule("margin", 0.0),
    KeepRule("margin", 0.05),
    KeepRule("margin", 0.1),
    KeepRule("percentage", 0.98),
    KeepRule("percentage", 0.95),
    KeepRule("percentage", 0.9),
    KeepRule("percentage", 0.8),
)
_REASONS = {
    Decision.CHOSEN: "kept as negatives",
    Decision.SPARE: "would do, not needed",
    Decision.REJECTED: "rejected by the rule",
    Decision.POSITIVE: "a positive of the query, or its copy",
    Decision.QUERY: "the query's own text",
    Decision.GIVEN: "given as a negative already",
    Decision.COPY: "the text of a better candidate",
    Decision.UNKNOWN: "no score of the judge",
}


class _Suspect(NamedTuple):
    """A query, and by how much a candidate of it comes near or above its positive."""

    excess: float
    block: Mined
    position: int


def write_audit(
    path: Path,
    title: str,
    mined: Callable[[], Iterator[Mined]],
    corpus: Corpus,
    selection: Selection,
    facts: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: name of the source.
        mined: yields the finished blocks, from the start at each call.
        corpus: holds the texts to read.
        selection: what was used.
        facts: settings, fingerprints and counts of the run; `counts` by source as `mine.json` has them.
    """
    sample = _Sample(mined(), sum(own["examples"] for own in facts["counts"].values()))
    report = Report(
        title=f"Hard negatives: {title}",
        subtitle=f"{facts['documents']:,} documents, judged by {facts['judge']}",
        summary=_summary(sample, selection, facts),
        headlines=_headlines(facts, selection),
        tables=[_sources(facts["counts"]), _rules(sample, selection, facts)],
        charts=_charts(sample, str(facts["judge"])),
        examples=_to_read(sample.suspects, corpus),
        models=("its positives", "kept as negatives", "rejected by the rule"),
        details={name: value for name, value in facts.items() if name != "counts"},
    )
    write_report(path, report)


class _Sample:
    """Scores of at most `QUERIES_SEEN` queries, and the most suspicious of all."""

    def __init__(self, mined: Iterable[Mined], examples: int) -> None:
        step = max(1, -(-examples // QUERIES_SEEN))
        scores, decisions, limits = [], [], []
        positives: list[Floats] = []
        self.by_reason: defaultdict[Decision, list[Floats]] = defaultdict(list)
        self.suspects: dict[Decision, list[_Suspect]] = {Decision.CHOSEN: [], Decision.REJECTED: []}
        for block in mined:
            drawn = slice(-block.block.first % step, None, step)
            scores.append(block.scores[drawn])
            decisions.append(block.decisions[drawn])
            limits.append(block.limits[drawn])
            positives += block.positives[drawn]
            for decision in _REASONS:
                self.by_reason[decision].append(block.scores[drawn][block.decisions[drawn] == decision])
            for decision, suspects in self.suspects.items():
                self.suspects[decision] = _most(suspects + _suspects(block, decision))
        self.scores, self.decisions = _stacked(scores, -np.inf), _stacked(decisions, Decision.NOTHING)
        self.limits = np.concatenate(limits)
        self.positives = _finite(np.concatenate(positives))

    def reason(self, decision: Decision) -> Floats:
        """Return the scores of candidates with a decision."""
        return _finite(np.concatenate(self.by_reason[decision]))


def _finite(scores: Floats) -> Floats:
    return scores[np.isfinite(scores)]


def _stacked(parts: Sequence[NDArray[Any]], fill: float) -> NDArray[Any]:
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts]
    )


def _suspects(mined: Mined, decision: Decision) -> list[_Suspect]:
    """Return the queries of a block whose candidates of a decision come nearest to the positive, or above."""
    scores = np.where(mined.decisions == decision, mined.scores, -np.inf).max(axis=1, initial=-np.inf)
    excess = np.full(len(scores), -np.inf)
    np.subtract(scores, mined.limits, out=excess, where=np.isfinite(scores) & np.isfinite(mined.limits))
    best = np.argsort(-excess, kind="stable")[:TO_READ]
    return [
        _Suspect(float(excess[position]), mined, int(position))
        for position in best
        if np.isfinite(excess[position])
    ]


def _most(suspects: list[_Suspect]) -> list[_Suspect]:
    return sorted(suspects, key=lambda item: -item.excess)[:TO_READ]


def _headlines(facts: Mapping[str, Any], selection: Selection) -> list[Headline]:
    total = _total(facts["counts"])
    mean = total["chosen"] / max(1, total["examples"])
    judged = sum(total[decision.name.lower()] for decision in JUDGED)
    share = total["rejected"] / max(1, judged)
    return [
        Headline("Examples", f"{total['examples']:,}", f"{total['without a negative']:,} without a negative"),
        Headline("Negatives an Example", f"{mean:.2f}", f"of {selection.n_negatives} asked for"),
        Headline("Rejected by the rule", f"{share:.1%}", f"of {judged:,} candidates that are no positives"),
    ]


def _total(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    keys = next(iter(counts.values()))
    return {key: sum(own[key] for own in counts.values()) for key in keys}


def _summary(sample: _Sample, selection: Selection, facts: Mapping[str, Any]) -> list[Finding]:
    rule = " ".join([selection.rule.kind, *_value_of(selection.rule)])
    sentences = [Finding(f"Rule: {rule}, {selection.candidates} candidates a query of each teacher.")]
    total = _total(facts["counts"])
    empty = total["without a negative"] / max(1, total["examples"])
    if empty > 0.1:
        sentences.append(
            Finding(
                f"{empty:.0%} of the Examples got no negative: their positives score low, or the rule is too "
                "strict for this teacher; see what other rules would keep.",
                "bad",
            )
        )
    naive = np.where(np.isin(sample.decisions, JUDGED), sample.scores, -np.inf).max(axis=1, initial=-np.inf)
    above = float(np.mean(naive >= sample.limits))
    sentences.append(
        Finding(
            f"For {above:.0%} of the queries some other document scores as high as the weakest positive: "
            "either answers that nobody labelled, or a teacher that is wrong. Read some below."
        )
    )
    return sentences


def _sources(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Count decisions, those that occur."""
    total = _total(counts)
    reasons = {reason.name.lower(): text for reason, text in _REASONS.items() if total[reason.name.lower()]}
    shown = {"examples": "Examples", "without a negative": "without a negative", **reasons}
    rows: list[list[str | int]] = [[name, *(own[key] for key in shown)] for name, own in counts.items()]
    return Table("What became of the candidates, by source", ["source", *shown.values()], rows)


def _rules(sample: _Sample, selection: Selection, facts: Mapping[str, Any]) -> Table:
    """Compare rules on the stored candidates; absolute scores mean nothing for words and lists."""
    compared = [rule for rule in COMPARED if rule.kind != "absolute" or facts.get("judge kind") == "vectors"]
    used = KeepRule(selection.rule.kind, selection.rule.threshold)
    if not any((rule.kind, rule.threshold) == (used.kind, used.threshold) for rule in compared):
        compared.append(used)
    rows = [
        _row_of(rule, sample, selection, rule.kind == used.kind and rule.threshold == used.threshold)
        for rule in compared
    ]
    return Table(
        "What each rule would keep",
        [
            "rule",
            "value",
            "survivors a query",
            "queries short of negatives",
            "mean score",
            "below positive by",
        ],
        rows,
        note=(
            f"Of the {selection.candidates} candidates stored for each query; {len(sample.scores):,} "
            f"queries. Mean score of the best {selection.n_negatives} survivors, and how far on average they "
            "lie below the weakest positive: the nearer, the harder, and the likelier a false negative."
        ),
    )


def _row_of(rule: KeepRule, sample: _Sample, selection: Selection, used: bool) -> list[Cell]:
    judged = np.isin(sample.decisions, JUDGED)
    ranks = np.cumsum(judged, axis=1) - 1
    kept = judged & keep(rule, sample.scores, sample.limits[:, None], ranks)
    best = kept & (np.cumsum(kept, axis=1) <= selection.n_negatives)
    gaps = _finite(np.broadcast_to(sample.limits[:, None], best.shape)[best] - sample.scores[best])
    short = float((kept.sum(axis=1) < selection.n_negatives).mean())
    return [
        f"{rule.kind} (used)" if used else rule.kind,
        "".join(_value_of(rule)),
        float(kept.sum(axis=1).mean()),
        Share(short),
        float(sample.scores[best].mean()) if best.any() else None,
        float(gaps.mean()) if len(gaps) else None,
    ]


def _value_of(rule: KeepRule) -> list[str]:
    """Return the rule's value as text; none where it has none."""
    return [] if rule.kind == "top_k" else [f"{rule.threshold:g}"]


def _charts(sample: _Sample, judge: str) -> list[Chart]:
    panels = {
        text: (sample.positives, scores)
        for decision, text in _REASONS.items()
        if len(scores := sample.reason(decision)) > 1 and decision is not Decision.UNKNOWN
    }
    if len(sample.positives) < 2 or not panels:
        return []
    title = "Scores of positives, and of candidates by what became of them"
    return [
        Chart(
            title,
            score_distributions(panels, title=title, x_label=f"score by {judge}", other="candidate"),
            "Candidates that overlap the positives are the hard ones; those above them are suspect.",
        )
    ]


def _to_read(suspects: Mapping[Decision, list[_Suspect]], corpus: Corpus) -> list[QueryExample]:
    notes = {
        Decision.CHOSEN: "kept although near to the positive: does a kept document answer the query?",
        Decision.REJECTED: "rejected as too near to the positive: an answer, or a good hard negative?",
    }
    shown: set[tuple[int, int]] = set()
    examples = []
    for decision, queries in suspects.items():
        for _, mined, position in queries:
            if (mark := (mined.block.first, position)) not in shown:
                shown.add(mark)
                examples.append(_example(mined, position, corpus, notes[decision]))
    return examples


def _example(mined: Mined, position: int, corpus: Corpus, note: str) -> QueryExample:
    example = mined.block.examples[position]
    positives = [
        Hit(text, True, None if np.isnan(score) else float(score))
        for text, score in zip(example.positives, mined.positives[position], strict=True)
    ]
    rankings = [positives[:HITS]]
    for decision in (Decision.CHOSEN, Decision.REJECTED):
        positions = np.flatnonzero(mined.decisions[position] == decision)
        positions = positions[np.argsort(-mined.scores[position, positions], kind="stable")][:HITS]
        documents = corpus.documents(mined.rows[position, positions])
        rankings.append(
            [
                Hit(documents[int(row)].text, False, float(score), documents[int(row)].id)
                for row, score in zip(
                    mined.rows[position, positions], mined.scores[position, positions], strict=True
                )
            ]
        )
    return QueryExample(example.query, rankings, note)
