"""The scores of `results.json` as a short table for the terminal; the report has the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedforge.files import read_object


def print_scores(folder: Path, console: Console | None = None) -> None:
    """Print the table of an evaluation's folder, and where its report and its figures are."""
    console = console or Console()
    console.print(score_table(read_object(folder / "results.json")))
    for name in ("report.html", "results.json"):
        console.print(str(folder / name), highlight=False, markup=False, soft_wrap=True)


def score_table(results: Mapping[str, Any]) -> Table:
    """Return tasks by models with main scores; what is really better or worse than the first is marked.

    With up to three models it fits 80 columns: long names are folded, scores never.

    Args:
        results: the content of `results.json`.
    """
    models = list(results["mean"])
    several = len(models) > 1
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=f"▲ better, ▼ worse than {models[0]}; others may be chance" if several else None,
        caption_justify="left",
    )
    table.add_column("task", overflow="fold")
    for model in models:
        table.add_column(Text(model), justify="right", overflow="fold", min_width=len("0.000 ▲"))
    for task, row in results["tasks"].items():
        cells = [
            _cell(row[model] and row[model]["score"], results["differences"].get(model, {}).get(task), several)
            for model in models
        ]
        table.add_row(Text(task), *cells)
    if len(results["tasks"]) > 1:
        table.add_section()
        table.add_row(Text("mean"), *(_cell(mean, None, several) for mean in results["mean"].values()))
    return table


def _cell(score: float | None, difference: Mapping[str, Any] | None, marked: bool) -> Text:
    """A score and its mark; a dash where there is none. All are equally wide, so that points align."""
    if score is None:
        return Text("–  " if marked else "–", "dim")
    if difference is None or not difference["is_real"]:
        return Text(f"{score:.3f}  " if marked else f"{score:.3f}")
    better = difference["difference"] > 0
    return Text(f"{score:.3f} ") + Text("▲" if better else "▼", "green" if better else "red")
