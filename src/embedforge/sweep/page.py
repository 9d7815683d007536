"""The table of a sweep: in the terminal, in results.json and on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from embedforge.evaluate.compare import MEAN, Difference, Scores, difference, interval, mean_of
from embedforge.files import write_json
from embedforge.report.charts import grouped_bars
from embedforge.report.page import Cell as TableCell
from embedforge.report.page import Chart, Finding, Report, Table, finding, write_report
from embedforge.statistics import Interval, as_dict
from embedforge.sweep.grid import Cell

MOST_BARS = 12
NOTE = (
    "Means over seeds, with 95 % intervals over seeds and over what was tested (queries, texts, pairs); "
    "differences are of the same seeds on the same units. A grey difference may be chance."
)


def write_results(
    out: Path, cells: Sequence[Cell], seeds: int, tasks: Mapping[str, Scores], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write results.json and report.html; return what the former holds."""
    columns = {MEAN: mean_of(list(tasks.values())), **tasks} if len(tasks) > 1 else dict(tasks)
    values = {name: [interval(task, row) for row in range(len(cells))] for name, task in columns.items()}
    changes = {
        name: [difference(task, row) for row in range(1, len(cells))] for name, task in columns.items()
    }
    results = {
        **facts,
        "seeds": seeds,
        "variants": [
            {"label": cell.label, "folder": cell.folder, "recipe": cell.recipe.model_dump(mode="json")}
            for cell in cells
        ],
        "scores": {
            name: [
                {**as_dict(values[name][row]), "by seed": task.scores[row].tolist()}
                for row in range(len(cells))
            ]
            for name, task in columns.items()
        },
        "differences to the first": {
            name: [{**as_dict(one.test), "seeds that agree": one.agreeing} for one in row]
            for name, row in changes.items()
        },
    }
    write_json(out / "results.json", results)
    write_report(out / "report.html", _report(cells, seeds, values, changes, facts))
    return results


def terminal_table(results: Mapping[str, Any]) -> TerminalTable:
    """Return variants by mean score, with the difference to the first one."""
    name = next(iter(results["scores"]))
    scores, changes = results["scores"][name], results["differences to the first"][name]
    table = TerminalTable(title=f"{name}, {results['seeds']} seeds", title_justify="left", box=box.SIMPLE)
    for heading in ("variant", "score", "95 %", "minus the first", "seeds"):
        table.add_column(heading, justify="left" if heading == "variant" else "right", overflow="fold")
    for row, variant in enumerate(results["variants"]):
        score = scores[row]
        cells = [variant["label"], f"{score['mean']:.3f}", f"{score['low']:.3f} to {score['high']:.3f}"]
        if row:
            change = changes[row - 1]
            bounds = f"{change['difference']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            cells += [bounds, f"{change['seeds that agree']}/{results['seeds']}"]
            style = ("green" if change["difference"] > 0 else "red") if change["is_real"] else ""
        else:
            style = "bold"
        table.add_row(*map(Text, cells), style=style)
    return table


def _report(
    cells: Sequence[Cell],
    seeds: int,
    values: Mapping[str, Sequence[Interval]],
    changes: Mapping[str, Sequence[Difference]],
    facts: Mapping[str, Any],
) -> Report:
    labels = [cell.label for cell in cells]
    charts = []
    if len(values) <= MOST_BARS:
        series: dict[str, list[Interval | float | None]] = {
            label: [row[number] for row in values.values()] for number, label in enumerate(labels)
        }
        svg = grouped_bars(list(values), series, title="Score of each variant", x_label="score")
        charts.append(Chart("Side by side", svg, "Thin lines are 95 % intervals."))
    return Report(
        title=f"Sweep of {cells[0].recipe.name}: {len(cells)} variants, {seeds} seeds",
        subtitle=f"Compared with the first: {labels[0]}",
        summary=_sentences(labels, seeds, changes),
        tables=[_scores(labels, values), *_differences(labels, seeds, changes)],
        charts=charts,
        details={**facts, "variants": {cell.label: cell.folder for cell in cells}},
    )


def _sentences(
    labels: Sequence[str], seeds: int, changes: Mapping[str, Sequence[Difference]]
) -> list[Finding]:
    name, first = next(iter(changes.items()))
    said = []
    for label, change in zip(labels[1:], first, strict=True):
        one = finding(f"{label} against {labels[0]}, {name}", change.test, unit="test units")
        said.append(Finding(f"{one.text} {change.agreeing} of {seeds} seeds agree.", one.tone))
    if seeds < 3 and said:
        said.append(
            Finding(f"With {seeds} seed{'s' * (seeds > 1)} a difference may be that of a seed: take 3.")
        )
    return said


def _scores(labels: Sequence[str], values: Mapping[str, Sequence[Interval]]) -> Table:
    rows: list[list[TableCell]] = [[name, *row] for name, row in values.items()]
    return Table("Scores", ["", *labels], rows, NOTE, bold_best=True)


def _differences(
    labels: Sequence[str], seeds: int, changes: Mapping[str, Sequence[Difference]]
) -> list[Table]:
    if len(labels) < 2:
        return []
    rows: list[list[TableCell]] = []
    for name, row in changes.items():
        rows.append([name, *(one.test for one in row)])
        rows.append([f"{name}: seeds of {seeds} that agree", *(one.agreeing for one in row)])
    return [Table(f"Difference to {labels[0]}", ["", *labels[1:]], rows)]
