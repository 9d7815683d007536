"""What the curve says: the cheapest variant that is good enough, in results.json, on a page, in a table."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from embedforge.compress.variants import Variant
from embedforge.evaluate.compare import MEAN, Scores, difference, interval, mean_of, scores_of
from embedforge.files import write_json
from embedforge.report.charts import line_chart
from embedforge.report.page import Cell, Chart, Finding, Headline, Report, Share, Table, write_report
from embedforge.statistics import Interval, PairedTest, as_dict

_NOTE = (
    "Mean of the tasks' main scores with its 95 % interval (bootstrap over queries, texts or pairs; tasks as "
    "they are). Differences are paired: the same queries, the same vectors. Grey may be chance. In memory: "
    "what a search reads for every document; the rest is read for its candidates alone."
)


_ROWS_SHOWN = 8


@dataclass(frozen=True)
class Curve:
    """Scores of a model's vectors in every variant, the whole vectors first."""

    model: str
    variants: Sequence[Variant]
    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """By task and label, results of `score_task`."""
    within: float
    """Per cent of the mean score that may be lost."""
    rotated_on: str = ""
    """Texts that the rotation comes from."""

    @functools.cached_property
    def by_task(self) -> dict[str, Scores]:
        """Each task's scores of all variants, also on resampled units."""
        labels = [variant.label for variant in self.variants]
        return {name: scores_of([[row[label]] for label in labels]) for name, row in self.tasks.items()}

    @functools.cached_property
    def judged(self) -> list[Judged]:
        """Every variant's mean score, and what it keeps of the first one's."""
        overall = mean_of(list(self.by_task.values()))
        whole = interval(overall, 0)
        found = [Judged(self.variants[0], whole, None, 1.0, 1.0)]
        for row, variant in enumerate(self.variants[1:], start=1):
            change = difference(overall, row).test
            kept, low = (1 + moved / max(whole.mean, 1e-12) for moved in (change.difference, change.low))
            found.append(Judged(variant, interval(overall, row), change, kept, low))
        return found


@dataclass(frozen=True)
class Judged:
    """A variant's mean over tasks against that of the whole vectors."""

    variant: Variant
    score: Interval
    change: PairedTest | None
    """None of the whole vectors themselves."""
    kept: float
    """Share of the whole vectors' score."""
    surely: float
    """The same at the low end of the interval of the difference."""


def cheapest(judged: Sequence[Judged], within: float, *, surely: bool = False) -> Judged:
    """Return the variant of fewest bytes whose score is within so many per cent of the whole vectors'.

    Of equal bytes the one that scores best. The whole vectors are within any.

    Args:
        judged: the whole vectors first.
        within: per cent.
        surely: the whole interval of its difference has to be.
    """
    enough = [one for one in judged if (one.surely if surely else one.kept) >= 1 - within / 100]
    return min(enough or judged[:1], key=lambda one: (one.variant.bytes, -one.score.mean))


def write_results(out: Path, curve: Curve, facts: Mapping[str, Any]) -> None:
    """Write results.json and report.html."""
    judged = curve.judged
    named = {"cheapest": cheapest(judged, curve.within)}
    named["cheapest, surely"] = cheapest(judged, curve.within, surely=True)
    results = {
        **facts,
        "model": curve.model,
        "within per cent": curve.within,
        "rotated on": curve.rotated_on or None,
        **{key: one.variant.label for key, one in named.items()},
        "variants": [_as_json(curve, one) for one in judged],
    }
    write_json(out / "results.json", results)
    write_report(out / "report.html", _report(curve, judged, facts))


def terminal_table(curve: Curve) -> TerminalTable:
    """Return the variants by bytes, largest first; the cheapest within the bound is bold."""
    judged = curve.judged
    best = cheapest(judged, curve.within)
    table = TerminalTable(box=box.SIMPLE, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for heading in ("bytes", "score", "per cent kept"):
        table.add_column(heading, justify="right", no_wrap=True)
    whole = max(judged[0].score.mean, 1e-12)
    for one in _by_bytes(judged):
        kept = f"{100 * one.kept:.1f}"
        if one.change is not None:
            low, high = (100 * (1 + moved / whole) for moved in (one.change.low, one.change.high))
            kept += f" [{low:.1f}, {high:.1f}]"
        cells = [one.variant.label, f"{one.variant.bytes:,}", f"{one.score.mean:.3f}", kept]
        table.add_row(*map(Text, cells), style="bold green" if one is best else "")
    return table


def sentences(curve: Curve) -> list[Finding]:
    """Say which variant to take, how sure that is, and whether the rotation helps."""
    judged = curve.judged
    whole = judged[0].variant
    best, sure = (cheapest(judged, curve.within, surely=surely) for surely in (False, True))
    bound = f"{curve.within:g} per cent of the whole vectors"
    if best.variant == whole:
        said = [Finding(f"No variant with fewer bytes is within {bound}: keep {whole.label}.", "bad")]
    else:
        said = [Finding(f"The cheapest within {bound} is {_told(best, whole)}.", "good")]
    if sure.variant != best.variant:
        fewer = "none has fewer bytes" if sure.variant == whole else f"the cheapest is {_told(sure, whole)}"
        said.append(
            Finding(
                f"Its interval leaves room for more: it may keep as little as {best.surely:.1%}. With the "
                f"whole interval within {bound} {fewer}."
            )
        )
    small = [one for one in judged if one.kept >= 1 - curve.within / 100]
    memory = min(small, key=lambda one: (one.variant.searched_bytes, one.variant.bytes))
    if memory.variant.searched_bytes < best.variant.searched_bytes:
        said.append(
            Finding(
                f"Least memory within {bound}: {memory.variant.label}, whose search reads "
                f"{memory.variant.searched_bytes:,} bytes a document; {memory.variant.bytes:,} are stored."
            )
        )
    return said + _on_rotation(judged)


def _on_rotation(judged: Sequence[Judged]) -> list[Finding]:
    """Count the variants that the rotation makes better, and those that it makes worse."""
    plain = {(one.variant.dim, one.variant.form): one for one in judged if not one.variant.rotated}
    width = judged[0].variant.dim
    gains: dict[str, list[float]] = {"cut": [], "whole": []}
    for one in judged:
        other = plain.get((one.variant.dim, one.variant.form))
        if one.variant.rotated and other is not None:
            kind = "whole" if one.variant.dim == width else "cut"
            gains[kind].append(one.score.mean - other.score.mean)
    return [
        Finding(
            f"The rotation makes {sum(gain > 0 for gain in row)} of {len(row)} {kind} variants better; the "
            f"difference is {min(row):+.3f} to {max(row):+.3f}, {sum(row) / len(row):+.3f} on average."
        )
        for kind, row in gains.items()
        if row
    ]


def _told(one: Judged, whole: Variant) -> str:
    times = whole.bytes / one.variant.bytes
    return (
        f"{one.variant.label}: {one.variant.bytes:,} bytes, {times:.3g} times fewer, and {one.kept:.1%} kept"
    )


def _report(curve: Curve, judged: Sequence[Judged], facts: Mapping[str, Any]) -> Report:
    best, whole = cheapest(judged, curve.within), judged[0]
    note = f"keeps {best.kept:.1%} of {whole.score.mean:.3f}"
    headlines = [
        Headline("bytes a vector", f"{whole.variant.bytes:,} → {best.variant.bytes:,}", best.variant.label),
        Headline("mean score", f"{whole.score.mean:.3f} → {best.score.mean:.3f}", note),
    ]
    return Report(
        title=f"Smaller vectors of {curve.model}",
        subtitle=f"{len(judged)} variants on {len(curve.tasks)} task{'s' * (len(curve.tasks) > 1)}, all from "
        "the same vectors",
        summary=sentences(curve),
        headlines=headlines,
        charts=_charts(curve, judged),
        tables=[_table(judged), *_task_table(curve)],
        details={**facts, "Rotated on": curve.rotated_on or None},
    )


def _charts(curve: Curve, judged: Sequence[Judged]) -> list[Chart]:
    whole = judged[0].score.mean
    levels = {"whole vectors": whole, f"{curve.within:g} % less": whole * (1 - curve.within / 100)}

    def drawn(rows: Iterable[Judged], title: str) -> str:
        series: dict[str, tuple[list[float], list[float | Interval]]] = {}
        for one in sorted(rows, key=lambda one: (one.variant.rotated, -one.variant.bytes)):
            name = ("rotated " if one.variant.rotated else "") + one.variant.form
            x, y = series.setdefault(name, ([], []))
            x.append(one.variant.bytes)
            y.append(one.score)
        dashed = [name for name in series if name.startswith("rotated ")]
        return line_chart(
            series,
            title=title,
            x_label="bytes a vector",
            y_label="mean score",
            height=3.9,
            log_x=True,
            levels=levels,
            dashed=dashed,
        )

    plain = [one for one in judged if not one.variant.rotated]
    charts = [
        Chart(
            "Quality against size",
            drawn(plain, "Mean score against bytes a vector"),
            "Each line is a form of the numbers, each point a length; bars are 95 % intervals.",
        )
    ]
    direct = [one for one in judged if one.variant.form in ("float32", "int8", "binary")]
    if len(plain) < len(judged):
        charts.append(
            Chart(
                "With the rotation",
                drawn(direct, "Mean score against bytes a vector, rotated and not"),
                "Dashed: rotated to the principal directions of a sample before they are cut.",
            )
        )
    return charts


def _table(judged: Sequence[Judged]) -> Table:
    rows: list[list[Cell]] = [
        [
            one.variant.label,
            one.variant.bytes,
            one.variant.searched_bytes,
            one.score,
            Share(one.kept),
            one.change,
        ]
        for one in _by_bytes(judged)
    ]
    heads = ["variant", "bytes", "in memory", "mean score", "of whole", "minus whole"]
    return Table("Variants", heads, rows, _NOTE, shown=_ROWS_SHOWN)


def _task_table(curve: Curve) -> list[Table]:
    if len(curve.tasks) < 2:
        return []
    scores = curve.by_task
    rows: list[list[Cell]] = [
        [variant.label, *(interval(task, row) for task in scores.values())]
        for row, variant in enumerate(curve.variants)
    ]
    return [Table("By task", ["variant", *scores], rows, shown=_ROWS_SHOWN)]


def _by_bytes(judged: Sequence[Judged]) -> list[Judged]:
    return sorted(judged, key=lambda one: -one.variant.bytes)


def _as_json(curve: Curve, one: Judged) -> dict[str, Any]:
    variant = one.variant
    return {
        "label": variant.label,
        "dim": variant.dim,
        "form": variant.form,
        "rotated": variant.rotated,
        "bytes": variant.bytes,
        "bytes in memory": variant.searched_bytes,
        MEAN: as_dict(one.score),
        "kept": one.kept,
        "surely kept": one.surely,
        "minus whole": None if one.change is None else as_dict(one.change),
        "tasks": {name: row[variant.label]["score"] for name, row in curve.tasks.items()},
    }
