"""The short table for the terminal, from report.json: so a finished run can show it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from embedforge.prove.figures import ALL, BM25, FUSED
from embedforge.prove.systems import ACROSS, CAME_CAUSAL, TEACHER, TRAINED, UNTRAINED

Json = Mapping[str, Any]
COLUMNS = {
    "V": "clustering, v-measure",
    "loss": "mntp loss, nats a token",
    "align": "alignment",
    "uniform": "uniformity",
}
MEANINGS = {
    "V": "V: V-measure of clustering the answers by their part of the folder.",
    "loss": "loss: MNTP, nats a hidden token; lower is better.",
    "uniform": "align, uniform: Wang & Isola 2020; lower is better, both together.",
}


def terminal_table(report: Json) -> Table:
    """Return the table of a report: every system's retrieval, and what else was measured of it."""
    questions = report["questions"][ALL]
    columns = {title: report[key] for title, key in COLUMNS.items() if report[key]}
    ndcg = _retrieval(report, "ndcg@10")
    table = Table(
        title=f"{questions:,} held-out questions, {report['documents']:,} passages",
        title_justify="left",
        box=box.SIMPLE,
        caption=_caption(report, columns),
        caption_justify="left",
    )
    for name in ("", "nDCG@10", "gain", *columns):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    fused = [FUSED] if ndcg and FUSED in ndcg["values"] else []  # not in reports of earlier versions
    for system in (BM25, *report["systems"], *fused):
        table.add_row(
            system,
            _mean(ndcg, system),
            _gain(ndcg, system),
            *(_mean(measure, system) for measure in columns.values()),
            style="bold" if system == TRAINED else "",
        )
    return table


def _caption(report: Json, columns: Json) -> str:
    said = [f"as it came: {report.get('as it came', CAME_CAUSAL)}."]
    if UNTRAINED in report["systems"]:
        said.append("bidirectional: not trained yet.")
    if TEACHER in report["systems"]:
        said.append("trained: the student alone.")
    if ACROSS in report["systems"]:
        said.append("across: its questions, the teacher's documents.")
    lines = [" ".join(said), f"gain: nDCG@10 of {TRAINED} minus this, 95 % interval."]
    lines += [MEANINGS[title] for title in columns if title in MEANINGS]
    return "\n".join(lines)


def _retrieval(report: Json, metric: str) -> Json | None:
    found: Json | None = report["retrieval"].get(ALL, {}).get(metric)
    return found


def _mean(measure: Json | None, system: str) -> str:
    value = measure["values"].get(system) if measure else None
    return f"{value['mean']:.3f}" if value else "–"


def _gain(measure: Json | None, system: str) -> str:
    test = measure[f"{TRAINED} minus"].get(system) if measure else None
    return f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]" if test else ""
