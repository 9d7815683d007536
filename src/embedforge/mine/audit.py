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
from embedforge.mine.decide import JUDGED, Verdict
from embedforge.mine.keep import KeepRule, keep
from embedforge.mine.pipeline import Choice, Mined
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
    Verdict.CHOSEN: "kept as negatives",
    Verdict.SPARE: "would do, not needed",
    Verdict.REJECTED: "rejected by the rule",
    Verdict.POSITIVE: "a positive of the query, or its copy",
    Verdict.QUERY: "the query's own text",
    Verdict.GIVEN: "given as a negative already",
    Verdict.COPY: "the text of a better candidate",
    Verdict.UNKNOWN: "no score of the judge",
}


class _Suspect(NamedTuple):
    """A query, and by how much a candidate of it comes near or above its positive."""

    excess: float
    block: Mined
    place: int


def write_audit(
    path: Path,
    title: str,
    mined: Callable[[], Iterator[Mined]],
    corpus: Corpus,
    choice: Choice,
    facts: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: name of the source.
        mined: yields the finished blocks, from the start at each call.
        corpus: holds the texts to read.
        choice: what was used.
        facts: settings, fingerprints and counts of the run; `counts` by source as `mine.json` has them.
    """
    sample = _Sample(mined(), sum(own["examples"] for own in facts["counts"].values()))
    report = Report(
        title=f"Hard negatives: {title}",
        subtitle=f"{facts['documents']:,} documents, judged by {facts['judge']}",
        summary=_summary(sample, choice, facts),
        headlines=_headlines(facts, choice),
        tables=[_sources(facts["counts"]), _rules(sample, choice, facts)],
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
        scores, verdicts, limits = [], [], []
        positives: list[Floats] = []
        self.by_reason: defaultdict[Verdict, list[Floats]] = defaultdict(list)
        self.suspects: dict[Verdict, list[_Suspect]] = {Verdict.CHOSEN: [], Verdict.REJECTED: []}
        for block in mined:
            drawn = slice(-block.block.first % step, None, step)
            scores.append(block.scores[drawn])
            verdicts.append(block.verdicts[drawn])
            limits.append(block.limits[drawn])
            positives += block.positives[drawn]
            for verdict in _REASONS:
                self.by_reason[verdict].append(block.scores[drawn][block.verdicts[drawn] == verdict])
            for verdict, found in self.suspects.items():
                self.suspects[verdict] = _most(found + _suspects(block, verdict))
        self.scores, self.verdicts = _stacked(scores, -np.inf), _stacked(verdicts, Verdict.NOTHING)
        self.limits = np.concatenate(limits)
        self.positives = _finite(np.concatenate(positives))

    def reason(self, verdict: Verdict) -> Floats:
        """Return the scores of candidates with a verdict."""
        return _finite(np.concatenate(self.by_reason[verdict]))


def _finite(scores: Floats) -> Floats:
    return scores[np.isfinite(scores)]


def _stacked(parts: Sequence[NDArray[Any]], fill: float) -> NDArray[Any]:
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts]
    )


def _suspects(mined: Mined, verdict: Verdict) -> list[_Suspect]:
    """Return the queries of a block whose candidates of a verdict come nearest to the positive, or above."""
    scores = np.where(mined.verdicts == verdict, mined.scores, -np.inf).max(axis=1, initial=-np.inf)
    excess = np.full(len(scores), -np.inf)
    np.subtract(scores, mined.limits, out=excess, where=np.isfinite(scores) & np.isfinite(mined.limits))
    best = np.argsort(-excess, kind="stable")[:TO_READ]
    return [_Suspect(float(excess[place]), mined, int(place)) for place in best if np.isfinite(excess[place])]


def _most(suspects: list[_Suspect]) -> list[_Suspect]:
    return sorted(suspects, key=lambda item: -item.excess)[:TO_READ]


def _headlines(facts: Mapping[str, Any], choice: Choice) -> list[Headline]:
    total = _total(facts["counts"])
    mean = total["chosen"] / max(1, total["examples"])
    judged = sum(total[verdict.name.lower()] for verdict in JUDGED)
    share = total["rejected"] / max(1, judged)
    return [
        Headline("Examples", f"{total['examples']:,}", f"{total['without a negative']:,} without a negative"),
        Headline("Negatives an Example", f"{mean:.2f}", f"of {choice.n_negatives} asked for"),
        Headline("Rejected by the rule", f"{share:.1%}", f"of {judged:,} candidates that are no positives"),
    ]


def _total(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    keys = next(iter(counts.values()))
    return {key: sum(own[key] for own in counts.values()) for key in keys}


def _summary(sample: _Sample, choice: Choice, facts: Mapping[str, Any]) -> list[Finding]:
    rule = " ".join([choice.rule.kind, *_value_of(choice.rule)])
    sentences = [Finding(f"Rule: {rule}, {choice.candidates} candidates a query of each teacher.")]
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
    naive = np.where(np.isin(sample.verdicts, JUDGED), sample.scores, -np.inf).max(axis=1, initial=-np.inf)
    above = float(np.mean(naive >= sample.limits))
    sentences.append(
        Finding(
            f"For {above:.0%} of the queries some other document scores as high as the weakest positive: "
            "either answers that nobody labelled, or a teacher that is wrong. Read some below."
        )
    )
    return sentences


def _sources(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Count verdicts, those that occur."""
    total = _total(counts)
    found = {reason.name.lower(): text for reason, text in _REASONS.items() if total[reason.name.lower()]}
    shown = {"examples": "Examples", "without a negative": "without a negative", **found}
    rows: list[list[str | int]] = [[name, *(own[key] for key in shown)] for name, own in counts.items()]
    return Table("What became of the candidates, by source", ["source", *shown.values()], rows)


def _rules(sample: _Sample, choice: Choice, facts: Mapping[str, Any]) -> Table:
    """Compare rules on the stored candidates; absolute scores mean nothing for words and lists."""
    compared = [rule for rule in COMPARED if rule.kind != "absolute" or facts.get("judge kind") == "vectors"]
    used = KeepRule(choice.rule.kind, choice.rule.threshold)
    if not any((rule.kind, rule.threshold) == (used.kind, used.threshold) for rule in compared):
        compared.append(used)
    rows = [
        _row_of(rule, sample, choice, rule.kind == used.kind and rule.threshold == used.threshold)
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
            f"Of the {choice.candidates} candidates stored for each query; {len(sample.scores):,} queries. "
            f"Mean score of the best {choice.n_negatives} survivors, and how far on average they lie below "
            "the weakest positive: the nearer, the harder, and the likelier a false negative."
        ),
    )


def _row_of(rule: KeepRule, sample: _Sample, choice: Choice, used: bool) -> list[Cell]:
    judged = np.isin(sample.verdicts, JUDGED)
    ranks = np.cumsum(judged, axis=1) - 1
    kept = judged & keep(rule, sample.scores, sample.limits[:, None], ranks)
    best = kept & (np.cumsum(kept, axis=1) <= choice.n_negatives)
    gaps = _finite(np.broadcast_to(sample.limits[:, None], best.shape)[best] - sample.scores[best])
    short = float((kept.sum(axis=1) < choice.n_negatives).mean())
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
        for verdict, text in _REASONS.items()
        if len(scores := sample.reason(verdict)) > 1 and verdict is not Verdict.UNKNOWN
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


def _to_read(suspects: Mapping[Verdict, list[_Suspect]], corpus: Corpus) -> list[QueryExample]:
    notes = {
        Verdict.CHOSEN: "kept although near to the positive: does a kept document answer the query?",
        Verdict.REJECTED: "rejected as too near to the positive: an answer, or a good hard negative?",
    }
    shown: set[tuple[int, int]] = set()
    examples = []
    for verdict, found in suspects.items():
        for _, mined, place in found:
            if (mark := (mined.block.first, place)) not in shown:
                shown.add(mark)
                examples.append(_example(mined, place, corpus, notes[verdict]))
    return examples


def _example(mined: Mined, place: int, corpus: Corpus, note: str) -> QueryExample:
    example = mined.block.examples[place]
    positives = [
        Hit(text, True, None if np.isnan(score) else float(score))
        for text, score in zip(example.positives, mined.positives[place], strict=True)
    ]
    rankings = [positives[:HITS]]
    for verdict in (Verdict.CHOSEN, Verdict.REJECTED):
        places = np.flatnonzero(mined.verdicts[place] == verdict)
        places = places[np.argsort(-mined.scores[place, places], kind="stable")][:HITS]
        documents = corpus.documents(mined.rows[place, places])
        rankings.append(
            [
                Hit(documents[int(row)].text, False, float(score), documents[int(row)].id)
                for row, score in zip(mined.rows[place, places], mined.scores[place, places], strict=True)
            ]
        )
    return QueryExample(example.query, rankings, note)
