"""What the tables of docs/results.md share: rows of models, their mean scores and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import stdtrit

from embedforge.evaluate.run import Results, evaluate
from embedforge.evaluate.units import Units, compare, interval
from embedforge.sweep.grid import Cell


@dataclass(frozen=True)
class Variant:
    """A row of the table: one model, or one for each seed."""

    name: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A mean over tasks, and half the width of its 95 % interval."""

    mean: float
    half: float

    @property
    def is_real(self) -> bool:
        """Zero is outside of the interval."""
        return abs(self.mean) > self.half


def rows_of_sweep(cells: Sequence[Cell], seeds: int, out: Path) -> list[Variant]:
    """Return a row for each variant of a sweep in `out`, its models by seed."""
    runs = out / "runs"
    return [
        Variant(
            cell.label, tuple(str(runs / cell.folder / f"seed-{number}" / "model") for number in range(seeds))
        )
        for cell in cells
    ]


def link_tasks(folder: Path, datasets: Iterable[Path]) -> Path:
    """Link datasets, each in a folder named by its kind, into a folder of tasks that holds no others."""
    links = {folder / dataset.parent.name / dataset.name: dataset.resolve() for dataset in datasets}
    for old in folder.glob("*/*"):
        if old not in links:
            old.unlink()
    for link, dataset in links.items():
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(dataset)
    return folder


def evaluated(
    rows: Sequence[Variant], tasks: Path, out: Path, *, max_tokens: int | None = None
) -> tuple[Results, list[Variant]]:
    """Score the models of all rows; return the results, and the rows with their models named as there."""
    models = [model for row in rows for model in row.models]
    results = evaluate(models, str(tasks), out, max_tokens=max_tokens)
    names = dict(zip(models, results.models, strict=True))
    return results, [replace(row, models=tuple(names[model] for model in row.models)) for row in rows]


def mean_score(results: Results, row: Variant, tasks: Sequence[str]) -> float:
    """Return the mean score of a row's models on some tasks."""
    return fmean(_result(results, task, model)["score"] for task in tasks for model in row.models)


def scores(results: Results, row: Variant, tasks: Sequence[str]) -> Figure:
    """Return the mean score of a row on some tasks."""
    means = [fmean(_result(results, task, model)["score"] for task in tasks) for model in row.models]
    halves = []
    for task in tasks:
        found = [interval(_units(results, task, model)) for model in row.models]
        halves.append(fmean((item.high - item.low) / 2 for item in found))
    return Figure(fmean(means), joined(halves, means))


def difference(results: Results, before: Variant, after: Variant, tasks: Sequence[str]) -> Figure:
    """Return the mean difference of two rows on some tasks, paired by test item and seed."""
    pairs = [(before.models[place % len(before.models)], model) for place, model in enumerate(after.models)]
    tests = {
        task: [compare(_units(results, task, one), _units(results, task, other)) for one, other in pairs]
        for task in tasks
    }
    means = [fmean(found[place].difference for found in tests.values()) for place in range(len(pairs))]
    halves = [fmean((test.high - test.low) / 2 for test in found) for found in tests.values()]
    return Figure(fmean(means), joined(halves, means))


def joined(halves: Sequence[float], means: Sequence[float]) -> float:
    """Join the uncertainty from test items (one half width a task) and from seeds (one mean each).

    Both are 95 % half widths, of the bootstrap and of Student's t; independent ones add in squares.
    """
    items = float(np.sqrt(np.sum(np.square(halves)))) / len(halves)
    if len(means) < 2:
        return items
    runs = float(stdtrit(len(means) - 1, 0.975) * np.std(means, ddof=1) / np.sqrt(len(means)))
    return float(np.hypot(items, runs))


def unsigned(figure: Figure) -> str:
    """Return a score with its interval."""
    return f"{figure.mean:.3f} ± {figure.half:.3f}"


def signed(figure: Figure) -> str:
    """Return a difference, in brackets where it may be chance."""
    text = f"{figure.mean:+.3f} ± {figure.half:.3f}"
    return text if figure.is_real else f"({text})"


def compared(
    results: Results,
    rows: Sequence[Variant],
    tasks: Sequence[str],
    paper: Mapping[str, float | None] | None = None,
) -> list[str]:
    """Return a table of variants: means of each kind of task, and the difference to the first variant.

    Args:
        results: of all models.
        rows: the variants.
        tasks: by `KIND/NAME`; the mean is over tasks, not over kinds.
        paper: a paper's means by variant, in percent, of which the differences are shown in a last column.
    """
    first, kinds = rows[0], sorted({task.split("/")[0] for task in tasks})
    lines = []
    for row in rows:
        by_kind = [
            f"{mean_score(results, row, [task for task in tasks if task.startswith(kind)]):.3f}"
            for kind in kinds
        ]
        own = "–" if row is first else signed(difference(results, first, row, tasks))
        lines.append([row.name, *by_kind, unsigned(scores(results, row, tasks)), own])
        if paper is not None:
            mean, of_first = paper[row.name], paper[first.name]
            known = row is not first and mean is not None and of_first is not None
            lines[-1].append(f"{(mean - of_first) / 100:+.3f}" if known else "–")
    return table(
        ["variant", *kinds, "mean", "difference", *(["paper's"] if paper is not None else [])], lines
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _result(results: Results, task: str, model: str) -> dict[str, Any]:
    found = results.tasks[task][model]
    assert found is not None
    return found


def _units(results: Results, task: str, model: str) -> Units:
    units = Units.from_json(_result(results, task, model)["units"])
    if units is None:
        raise SystemExit(f"{task}: no units to test; was it scored by another version of mteb?")
    return units
