"""The report of a run: what it gained, and what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedforge.adapt.figures import ALL, BM25, METRICS, Figures
from embedforge.adapt.held_out import HeldOut
from embedforge.adapt.systems import ADAPTED, AS_IT_CAME, UNTRAINED, Seen
from embedforge.adapt.verdicts import verdicts
from embedforge.evaluate.found import pair_scores, query_examples
from embedforge.evaluate.training_log import losses_by_stage
from embedforge.report import charts
from embedforge.report.page import Cell, Chart, Headline, QueryExample, Report, Table, Tone
from embedforge.statistics import Interval, PairedTest

LABELS = {"ndcg@10": "nDCG@10", "recall@10": "recall@10", "mrr@10": "MRR@10"}
EXAMPLE_SYSTEMS = (AS_IT_CAME, ADAPTED, BM25)


def build_report(
    figures: Figures,
    held_out: HeldOut,
    seen: Mapping[str, Seen],
    counts: Mapping[str, int],
    notices: Sequence[str],
    log: Path,
    *,
    title: str,
    details: Mapping[str, Any],
    seed: int,
) -> Report:
    """Put together the page.

    Args:
        figures: of the run.
        held_out: the texts that they were made with.
        seen: what each system made of those.
        counts: of files and texts, read and passed over.
        notices: what the user should know of the folder.
        log: `log.jsonl` of the training run.
        title: of the page.
        details: how the figures were made.
        seed: of the examples.
    """
    return Report(
        title=title,
        subtitle=f"{figures.questions[ALL]:,} questions that held-out text asks by its structure, against "
        f"{figures.documents:,} passages; nothing of the held-out text was trained on",
        summary=[*verdicts(figures), *notices],
        headlines=_headlines(figures),
        tables=[*_tables(figures), _counts_table(counts)],
        charts=[*_charts(figures, seen, seed), *_curves(log)],
        examples=_examples(figures, held_out, seed),
        models=("before: decoder as it came", "after: adapted", BM25),
        details=details,
    )


def _headlines(figures: Figures) -> list[Headline]:
    shown: list[Headline] = []
    if figures.retrieval:
        measure = figures.retrieval[ALL]["ndcg@10"]
        values = measure.values
        shown.append(
            Headline(
                "nDCG@10",
                f"{values[AS_IT_CAME].mean:.3f} → {values[ADAPTED].mean:.3f}",
                "decoder as it came → adapted",
                _tone(measure.changes[AS_IT_CAME]),
            )
        )
        shown.append(Headline("BM25", f"{values[BM25].mean:.3f}", "nDCG@10 of plain word matching"))
    if figures.loss:
        before, after = (figures.loss.values[name].mean for name in (UNTRAINED, figures.loss.reference))
        test = figures.loss.lower_by(UNTRAINED)
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
    tables: list[Table] = []
    if figures.retrieval:
        tables += [_retrieval_table(figures), _gains_table(figures)]
    if figures.loss:
        tables.append(_loss_table(figures))
    if figures.alignment and figures.uniformity:
        tables.append(_space_table(figures))
    return tables


def _kinds(figures: Figures) -> list[str]:
    """Kinds of questions, "all" first; where there is but one kind, that says it all."""
    kinds = list(figures.retrieval)
    return kinds if len(kinds) > 2 else kinds[-1:]


def _retrieval_table(figures: Figures) -> Table:
    systems = list(figures.retrieval[ALL]["ndcg@10"].values)
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
        "Systems: the decoder as it came (causal, weighted mean), the same without its causal mask "
        "(bidirectional, not trained), after each stage of training, and adapted, the result.",
        bold_best=True,
    )


def _gains_table(figures: Figures) -> Table:
    kinds = _kinds(figures)
    systems = figures.retrieval[ALL]["ndcg@10"].changes
    return Table(
        "Is the gain real?",
        ["nDCG@10: adapted minus", *kinds],
        [
            [system, *(figures.retrieval[kind]["ndcg@10"].changes[system] for kind in kinds)]
            for system in systems
        ],
        note="Paired bootstrap over questions, and a sign-flip permutation test.",
    )


def _loss_table(figures: Figures) -> Table:
    measure = figures.loss
    assert measure is not None
    return Table(
        "Predicting hidden words of held-out text (MNTP)",
        ["", *measure.values],
        [
            ["nats a hidden token", *measure.values.values()],
            [f"{measure.reference}: lower by", *map(measure.lower_by, measure.values)],
        ],
        note=f"The same {figures.predictions:,} hidden tokens of {figures.chunks:,} held-out chunks for "
        "every system, each predicted from the state before it through the decoder's own head; lower is "
        "better. Whole chunks are resampled for the intervals.",
    )


def _space_table(figures: Figures) -> Table:
    rows: list[list[Cell]] = []
    systems: list[str] = []
    for name, measure in (("alignment", figures.alignment), ("uniformity", figures.uniformity)):
        assert measure is not None
        systems = list(measure.values)
        rows.append([name, *measure.values.values()])
        rows.append([f"{measure.reference}: lower by", *map(measure.lower_by, systems)])
    if figures.own_half:
        rows.append(["own half nearer", *figures.own_half.values.values()])
        rows.append(["adapted: higher by", *map(figures.own_half.changes.get, systems)])
    return Table(
        "Alignment and uniformity",
        ["", *systems],
        rows,
        note=f"Of {figures.halves:,} held-out passages, cut in two (Wang & Isola 2020). Alignment: mean "
        "squared distance of the two halves' unit vectors. Uniformity: log of the mean of exp(-2 squared "
        "distance) over all pairs of beginnings. Lower is better, and only both together mean anything: "
        "where all texts have one vector, alignment is a perfect 0, and uniformity 0, its worst. Own half "
        "nearer: how often the end of a passage lies nearer to its beginning than another passage's end; 0.5 "
        "is chance.",
    )


def _counts_table(counts: Mapping[str, int]) -> Table:
    rows: list[list[Cell]] = [[name.replace("_", " "), count] for name, count in counts.items() if count]
    return Table("What was read, and what was passed over", ["", "number"], rows)


def _charts(figures: Figures, seen: Mapping[str, Seen], seed: int) -> list[Chart]:
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
    if figures.loss:
        losses: dict[str, list[Interval | float | None]] = {
            system: [value] for system, value in figures.loss.values.items()
        }
        shown.append(
            Chart("Held-out MNTP loss", charts.grouped_bars(["nats a token"], losses, title="MNTP loss"))
        )
    if figures.alignment:
        own = [{row: 1.0} for row in range(figures.halves)]
        scores = {
            name: pair_scores(seen[system].beginnings, seen[system].ends, own, seed=seed)
            for name, system in (("before: decoder as it came", AS_IT_CAME), ("after: adapted", ADAPTED))
        }
        drawn = charts.score_distributions(scores, title="Cosine of the beginning and the end of passages")
        note = "Positives: the two halves of a passage. Negatives: halves of two passages."
        shown.append(Chart("Halves of one passage, and of two", drawn, note))
    return shown


def _curves(log: Path) -> list[Chart]:
    return [
        Chart(f"Training loss, stage {stage}", charts.loss_curves(curves, title=f"Stage {stage}"))
        for stage, curves in losses_by_stage(log).items()
    ]


def _examples(figures: Figures, held_out: HeldOut, seed: int) -> list[QueryExample]:
    if not figures.rankings:
        return []
    titles = [f"{pair.file} {pair.place}".strip() for pair in held_out.pairs]
    titles += [""] * len(held_out.distractors)
    return query_examples(
        [pair.query for pair in held_out.pairs],
        list(zip(titles, held_out.documents, strict=True)),
        [{row} for row in range(len(held_out.pairs))],
        [figures.rankings[system] for system in EXAMPLE_SYSTEMS],
        seed=seed,
    )


def as_lines(values: Mapping[str, Any]) -> str:
    """Return a mapping as readable lines, for the page's details."""
    return "\n".join(f"{name}: {value}" for name, value in values.items())
