"""The scores of `results.json` as a short table for the terminal; the report has the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedforge.console import say, stdout
from embedforge.data.notes import told
from embedforge.evaluate.decontamination import sentence
from embedforge.files import read_object


def print_scores(folder: Path, console: Console | None = None) -> None:
    """Print the table of an evaluation's folder, what to doubt in it, and where report and figures are."""
    console = console or stdout()
    results = read_object(folder / "results.json")
    console.print(score_table(results))
    for name, notes in results["notes"].items():
        say(f"{name}: {told(notes)}.", console)
    for model, unchecked in results["undecontaminated"].items():
        if unchecked:
            say(sentence(model, unchecked, len(results["tasks"])), console)
    for name in ("report.html", "results.json"):
        say(str(folder / name), console)


def score_table(results: Mapping[str, Any]) -> Table:
    """Return tasks by models with main scores; what is really better or worse than the first is marked.

    With up to three models it fits 80 columns: long names are folded, scores never.

    Args:
        results: the content of `results.json`.
    """
    models = list(results["mean"])
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=Text(f"▲ better, ▼ worse than {models[0]}; others may be chance") if models[1:] else None,
        caption_justify="left",
    )
    table.add_column("task", overflow="fold")
    for model in models:
        table.add_column(Text(model), justify="right", overflow="fold", min_width=len("▲ 0.000"))
    for task, row in results["tasks"].items():
        scores = [row[model] and row[model]["score"] for model in models]
        tests = [results["differences"].get(model, {}).get(task) for model in models]
        table.add_row(Text(task), *map(_cell, scores, tests))
    if len(results["tasks"]) > 1:
        table.add_section()
        table.add_row(Text("mean"), *map(_cell, results["mean"].values()))
    return table


def _cell(score: float | None, difference: Mapping[str, Any] | None = None) -> Text:
    """A mark, where there is one, and the score; a dash where there is none."""
    if score is None:
        return Text("–", "dim")
    if difference is None or not difference["is_real"]:
        return Text(f"{score:.3f}")
    better = difference["difference"] > 0
    return Text.assemble(("▲" if better else "▼", "green" if better else "red"), f" {score:.3f}")
