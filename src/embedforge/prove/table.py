"""The short table for the terminal, from report.json: so a finished run can show it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from embedforge.adapt.figures import ALL, BM25
from embedforge.adapt.systems import ADAPTED

Json = Mapping[str, Any]


def terminal_table(report: Json) -> Table:
    """Return the table of a report: every system's retrieval, and what else was measured of it."""
    questions = report["questions"][ALL]
    table = Table(
        title=f"{questions:,} held-out questions, {report['documents']:,} passages",
        title_justify="left",
        box=box.SIMPLE,
        caption="as it came: causal, weighted mean. bidirectional: not trained yet.\n"
        "gain: nDCG@10 of adapted minus this, 95 % interval. loss: MNTP, nats a hidden token.\n"
        "align, uniform: Wang & Isola 2020. Of the last three, lower is better.",
        caption_justify="left",
    )
    for name in ("", "nDCG@10", "gain", "loss", "align", "uniform"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for system in (BM25, *report["systems"]):
        table.add_row(
            system,
            _mean(_retrieval(report, "ndcg@10"), system),
            _gain(_retrieval(report, "ndcg@10"), system),
            *(_mean(report[name], system) for name in ("mntp loss, nats a token", "alignment", "uniformity")),
            style="bold" if system == ADAPTED else "",
        )
    return table


def _retrieval(report: Json, metric: str) -> Json | None:
    found: Json | None = report["retrieval"].get(ALL, {}).get(metric)
    return found


def _mean(measure: Json | None, system: str) -> str:
    value = measure["values"].get(system) if measure else None
    return f"{value['mean']:.3f}" if value else "–"


def _gain(measure: Json | None, system: str) -> str:
    test = measure[f"{ADAPTED} minus"].get(system) if measure else None
    return f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]" if test else ""
