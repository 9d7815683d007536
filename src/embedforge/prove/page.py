"""The report of a run: what it gained, and what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.documents import Folder
from embedforge.evaluate.found import pair_scores, query_examples
from embedforge.evaluate.training_log import losses_by_stage
from embedforge.prove.figures import ALL, BM25, METRICS, Figures, Measure, clustered
from embedforge.prove.findings import findings
from embedforge.prove.held_out import HeldOut
from embedforge.prove.keep import Kept
from embedforge.prove.systems import ACROSS, AS_IT_CAME, TEACHER, TRAINED, UNTRAINED, Encoded
from embedforge.report import charts
from embedforge.report.page import Cell, Chart, Finding, Headline, QueryExample, Report, Table, Tone
from embedforge.statistics import Interval, PairedTest

LABELS = {"ndcg@10": "nDCG@10", "recall@10": "recall@10", "mrr@10": "MRR@10"}
EXAMPLE_SYSTEMS = (AS_IT_CAME, TRAINED, BM25)
BEFORE_AND_AFTER = {"before: decoder as it came": AS_IT_CAME, "after: trained": TRAINED}
DISTILLED_SHOWN = {
    ACROSS: "nDCG@10 of the student's questions in the teacher's index",
    TEACHER: "nDCG@10 of the teacher by itself",
}
MAP_POINTS = 600
_DISTILLED = (
    ": the student alone. teacher: the model it learned from. across: the student's questions against the "
    "teacher's documents."
)

Floats = NDArray[np.float32]


def build_report(
    figures: Figures,
    held_out: HeldOut,
    encoded: Mapping[str, Encoded],
    folder: Folder,
    log: Path,
    *,
    title: str,
    kept: Kept,
    notices: Sequence[str],
    details: Mapping[str, Any],
    seed: int,
) -> Report:
    """Put together the page.

    Args:
        figures: of the run.
        held_out: the texts that they were made with.
        encoded: what each system made of those.
        folder: what was read.
        log: `log.jsonl` of the training run.
        title: of the page.
        kept: which model is the run's.
        notices: what else the user should know of the run.
        details: how the figures were made.
        seed: of the examples.
    """
    return Report(
        title=title,
        subtitle=f"{figures.questions[ALL]:,} questions that held-out text asks by its structure, against "
        f"{figures.documents:,} passages; nothing of the held-out text was trained on",
        summary=[*_on_kept(kept), *findings(figures), *folder.notices, *notices],
        headlines=_headlines(figures),
        tables=[*_tables(figures), _counts_table(folder.counts)],
        charts=[*_charts(figures, held_out, encoded, seed), *_curves(log)],
        examples=_examples(figures, held_out, seed),
        models=("before: decoder as it came", "after: trained", BM25),
        details=details,
    )


def _on_kept(kept: Kept) -> list[Finding]:
    return [Finding(kept.verdict, "bad")] if kept.verdict else []


def _headlines(figures: Figures) -> list[Headline]:
    shown: list[Headline] = []
    if figures.retrieval:
        measure = figures.retrieval[ALL]["ndcg@10"]
        values = measure.values
        shown.append(
            Headline(
                "nDCG@10",
                f"{values[AS_IT_CAME].mean:.3f} → {values[TRAINED].mean:.3f}",
                "decoder as it came → trained",
                _tone(measure.changes[AS_IT_CAME]),
            )
        )
        for system, what in DISTILLED_SHOWN.items():
            if system in values:
                shown.append(Headline(system, f"{values[system].mean:.3f}", what))
        shown.append(Headline("BM25", f"{values[BM25].mean:.3f}", "nDCG@10 of plain word matching"))
    if figures.loss:
        before, after = (figures.loss.values[name].mean for name in (UNTRAINED, figures.loss.reference))
        test = figures.loss.better_by(UNTRAINED)
        assert test is not None
        shown.append(
            Headline(
                "Held-out MNTP loss",
                f"{before:.2f} → {after:.2f}",
                "nats a hidden token: bidirectional, untrained → trained",
                _tone(test),
            )
        )
    return shown


def _tone(gain: PairedTest) -> Tone:
    """A change that chance may explain is neither good nor bad news."""
    return ("good" if gain.difference > 0 else "bad") if gain.is_real else "neutral"


def _tables(figures: Figures) -> list[Table]:
    """The tables; of what could not be measured there is none."""
    tables: list[Table] = []
    if figures.retrieval:
        tables += [_retrieval_table(figures), _gains_table(figures)]
    if figures.across:
        tables.append(_across_table(figures.across))
    if figures.clustering:
        note = (
            f"k-means on random halves of the answers, which come from {figures.parts} parts of the folder: "
            "its top-level folders and modules, or its files where those are few."
        )
        tables.append(_table("Clustering by part of the folder", {"V-measure": figures.clustering}, note))
    if figures.loss:
        note = (
            f"The same {figures.predictions:,} hidden tokens of {figures.chunks:,} held-out chunks for every "
            "system, each predicted from the state before it through the decoder's own head; lower is "
            "better. Whole chunks are resampled for the intervals."
        )
        title = "Predicting hidden words of held-out text (MNTP)"
        tables.append(_table(title, {"nats a hidden token": figures.loss}, note))
    if figures.alignment and figures.uniformity and figures.own_half:
        note = (
            f"Of {figures.halves:,} held-out passages, cut in two (Wang & Isola 2020). Alignment: mean "
            "squared distance of the two halves' unit vectors. Uniformity: log of the mean of exp(-2 squared "
            "distance) over all pairs of beginnings. Lower is better, and only both together mean anything: "
            "where all texts have one vector, alignment is a perfect 0, and uniformity 0, its worst. Own "
            "half nearer: how often the end of a passage lies nearer to its beginning than another "
            "passage's end; 0.5 is chance."
        )
        measures = {"alignment": figures.alignment, "uniformity": figures.uniformity}
        measures["own half nearer"] = figures.own_half
        tables.append(_table("Alignment and uniformity", measures, note))
    return tables


def _table(title: str, measures: Mapping[str, Measure], note: str) -> Table:
    """Two rows a measure: its values, and how much better its reference is than each system."""
    rows: list[list[Cell]] = []
    for name, measure in measures.items():
        rows.append([name, *measure.values.values()])
        better = "lower by" if measure.lower_is_better else "higher by"
        rows.append([f"{measure.reference}: {better}", *map(measure.better_by, measure.values)])
    return Table(title, ["", *next(iter(measures.values())).values], rows, note)


def _kinds(figures: Figures) -> list[str]:
    """Kinds of questions, "all" first; where there is but one kind, that says it all."""
    kinds = list(figures.retrieval)
    return kinds if len(kinds) > 2 else kinds[-1:]


def _retrieval_table(figures: Figures) -> Table:
    systems = list(figures.retrieval[ALL]["ndcg@10"].values)
    steps = ", the same without its causal mask (bidirectional, not trained), after each stage of training"
    between = steps if UNTRAINED in systems else ""
    shown = [(kind, "ndcg@10") for kind in _kinds(figures)] + [(ALL, metric) for metric in METRICS[1:]]
    return Table(
        "Retrieval",
        ["questions", *systems],
        [
            [
                f"{LABELS[metric]}, {kind} ({figures.questions[kind]:,})",
                *(figures.retrieval[kind][metric].values[system] for system in systems),
            ]
            for kind, metric in shown
        ],
        note="title: a document's title asks for its first passage. heading: a heading, with those above it, "
        "asks for the text below. description: a docstring or comment asks for its code. cloze: a sentence "
        "asks for the passage that it was taken out of. Means with 95 % bootstrap intervals over questions. "
        f"Systems: the base as it came{between}, trained, the result, and its ranking fused with BM25's"
        + (_DISTILLED if TEACHER in systems else "."),
        bold_best=True,
    )


def _gains_table(figures: Figures) -> Table:
    kinds = _kinds(figures)
    systems = figures.retrieval[ALL]["ndcg@10"].changes
    return Table(
        "Is the gain real?",
        ["nDCG@10: trained minus", *kinds],
        [
            [system, *(figures.retrieval[kind]["ndcg@10"].changes[system] for kind in kinds)]
            for system in systems
        ],
        note="Paired bootstrap over questions, and a sign-flip permutation test.",
    )


def _across_table(across: Measure) -> Table:
    note = (
        "The teacher embeds the documents once, the student every question: what is found so, and how that "
        "compares with each system by itself, on the same questions."
    )
    return _table("The student's questions in the teacher's index", {"nDCG@10": across}, note)


def _counts_table(counts: Mapping[str, int]) -> Table:
    rows: list[list[Cell]] = [[name.replace("_", " "), count] for name, count in counts.items() if count]
    return Table("What was read, and what was passed over", ["", "number"], rows)


def _charts(figures: Figures, held_out: HeldOut, encoded: Mapping[str, Encoded], seed: int) -> list[Chart]:
    shown: list[Chart] = []
    if figures.retrieval:
        kinds = _kinds(figures)
        bars: dict[str, list[Interval | float | None]] = {
            system: [figures.retrieval[kind]["ndcg@10"].values[system] for kind in kinds]
            for system in figures.retrieval[ALL]["ndcg@10"].values
        }
        names = [f"{kind} ({figures.questions[kind]:,})" for kind in kinds]
        shown.append(
            Chart("Retrieval, nDCG@10", charts.grouped_bars(names, bars, title="nDCG@10 by kind of question"))
        )
        pairs = {name: (one.queries, one.documents) for name, one in encoded.items()}
        shown.append(_scores("Questions with their own and with other passages", pairs, seed))
    if figures.clustering:
        shown.append(_map(held_out, encoded, seed))
    if figures.loss:
        losses: dict[str, list[Interval | float | None]] = {
            system: [value] for system, value in figures.loss.values.items()
        }
        shown.append(
            Chart("Held-out MNTP loss", charts.grouped_bars(["nats a token"], losses, title="MNTP loss"))
        )
    if figures.alignment:
        halves = {name: (one.beginnings, one.ends) for name, one in encoded.items()}
        shown.append(_scores("Beginnings of passages with their own and with other ends", halves, seed))
    return shown


def _scores(title: str, vectors: Mapping[str, tuple[Floats, Floats]], seed: int) -> Chart:
    """Cosines of texts with their counterpart, which stands in the same row, and with others."""
    scores = {}
    for name, system in BEFORE_AND_AFTER.items():
        texts, others = vectors[system]
        scores[name] = pair_scores(texts, others, [{row: 1.0} for row in range(len(texts))], seed=seed)
    return Chart(title, charts.score_distributions(scores, title=f"Cosine: {title[0].lower()}{title[1:]}"))


def _map(held_out: HeldOut, encoded: Mapping[str, Encoded], seed: int) -> Chart:
    rows, labels = clustered(held_out)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:MAP_POINTS]
    points = [rows[place] for place in chosen]
    drawn = charts.vector_map(
        {
            name: charts.project_2d(encoded[system].answers[points], seed=seed)
            for name, system in BEFORE_AND_AFTER.items()
        },
        [labels[place] for place in chosen],
        title="Held-out passages, coloured by their part of the folder",
    )
    note = "t-SNE keeps neighbourhoods, not distances; the largest parts are named."
    return Chart("A map of held-out passages", drawn, note)


def _curves(log: Path) -> list[Chart]:
    return [
        Chart(f"Training loss, stage {stage}", charts.loss_curves(curves, title=f"Stage {stage}"))
        for stage, curves in losses_by_stage(log).items()
    ]


def _examples(figures: Figures, held_out: HeldOut, seed: int) -> list[QueryExample]:
    if not figures.rankings:
        return []
    passages = [*held_out.pairs, *held_out.distractors]
    titles = [f"{pair.file} {pair.place}".strip() for pair in passages]
    return query_examples(
        [pair.query for pair in held_out.pairs],
        list(zip(titles, held_out.documents, strict=True)),
        [{row} for row in range(len(held_out.pairs))],
        [figures.rankings[system] for system in EXAMPLE_SYSTEMS],
        seed=seed,
    )
