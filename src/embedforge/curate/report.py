"""What a curation did: counts and samples as JSON, as a page, and on the terminal."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedforge.curate.outcome import Dropped, Outcome
from embedforge.text.words import shorten

SAMPLES = 5
"""Dropped texts shown for each reason."""
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing that was dropped, to read."""

    source: str
    part: str
    reason: str
    detail: str
    query: str
    text: str


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: how many Examples came and stayed, and what went why."""

    name: str
    settings: dict[str, Any]
    examples_in: int
    examples_out: int
    dropped: dict[str, dict[str, int]]
    """Part (example, positive, negative) -> reason -> how many, most frequent first."""
    by_source: dict[str, int]
    """Whole Examples dropped of each source."""
    samples: list[Sample]

    @property
    def removed(self) -> int:
        """Whole Examples dropped."""
        return self.examples_in - self.examples_out

    def rows(self) -> list[tuple[str, str, int]]:
        """Return (part, reason, how many), whole Examples first, then the most frequent."""
        return [
            (part, reason, count) for part, counts in self.dropped.items() for reason, count in counts.items()
        ]


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source: where it came from, and the file it went to."""

    name: str
    path: str
    kind: str
    file: str
    examples_in: int
    examples_out: int


@dataclass(frozen=True, slots=True)
class Report:
    """A whole curation."""

    made_by: str
    seed: int
    sources: list[SourceReport]
    steps: list[StepReport]

    @property
    def documents_dropped(self) -> int:
        """Positives and negatives taken out of Examples that the step kept."""
        return sum(count for step in self.steps for part, _, count in step.rows() if part != "example")

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


def report_of(
    name: str, settings: dict[str, Any], examples_in: int, outcome: Outcome, seed: int
) -> StepReport:
    """Count what a step did, and draw samples of it by the seed."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_reason: defaultdict[tuple[str, str], list[Dropped]] = defaultdict(list)
    for item in outcome.dropped:
        counts[item.part][item.reason] += 1
        by_reason[item.part, item.reason].append(item)
    draw = random.Random(f"{seed}/{name}")
    samples = [
        _sample(item)
        for items in by_reason.values()
        for item in (items if len(items) <= SAMPLES else draw.sample(items, SAMPLES))
    ]
    gone = Counter(item.example.source for item in outcome.dropped if item.part == "example")
    return StepReport(
        name=name,
        settings=settings,
        examples_in=examples_in,
        examples_out=len(outcome.kept),
        dropped={part: dict(reasons.most_common()) for part, reasons in sorted(counts.items())},
        by_source=dict(gone.most_common()),
        samples=samples,
    )


def _sample(item: Dropped) -> Sample:
    text = (
        item.text if item.part != "example" or item.text != item.example.query else item.example.positives[0]
    )
    return Sample(
        item.example.source,
        item.part,
        item.reason,
        item.detail,
        shorten(item.example.query, _SHOWN, mark=" …"),
        shorten(text, _SHOWN, mark=" …"),
    )


def render(report: Report) -> str:
    """Return the report as one self-contained HTML page; every text is escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = (resources.files("embedforge.curate") / "report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(report=report)


def print_report(report: Report, console: Console) -> None:
    """Print a line for each step, and one for each source."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("step")
    for title in ("in", "dropped", "out"):
        table.add_column(title, justify="right")
    table.add_column("most frequent reason", overflow="fold")
    for step in report.steps:
        reasons = step.dropped.get("example", {})
        most = next((f"{reason} ({count:,})" for reason, count in reasons.items()), "")
        table.add_row(
            step.name, f"{step.examples_in:,}", f"{step.removed:,}", f"{step.examples_out:,}", escape(most)
        )
    console.print(table, highlight=False)
    for source in report.sources:
        console.print(
            f"{source.name}: {source.examples_out:,} of {source.examples_in:,} Examples in {source.file}",
            highlight=False,
            markup=False,
        )
