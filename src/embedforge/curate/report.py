"""What a curation did: counts and samples as JSON, as a page, and on the terminal."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from embedforge.console import say
from embedforge.curate.outcome import Dropped, Outcome
from embedforge.report.page import Bar, Cell, Headline, Report, Sample, Samples, Share, Table, percent
from embedforge.text.words import shorten

SAMPLES = 5
"""Dropped texts shown for each reason."""
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class DroppedSample:
    """One thing that was dropped, to read."""

    source: str
    part: str
    reason: str
    detail: str
    query: str
    text: str


@dataclass(frozen=True, slots=True)
class StepSummary:
    """One step: how many Examples came and stayed, and what went why."""

    name: str
    settings: dict[str, Any]
    examples_in: int
    examples_out: int
    dropped: dict[str, dict[str, int]]
    """Part (example, positive, negative) -> reason -> how many, most frequent first."""
    by_source: dict[str, int]
    """Whole Examples dropped of each source."""
    samples: list[DroppedSample]

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
class SourceSummary:
    """One source: where it came from, and the file it went to."""

    name: str
    path: str
    kind: str
    file: str
    examples_in: int
    examples_out: int


@dataclass(frozen=True, slots=True)
class CurationSummary:
    """A whole curation: what report.json holds."""

    made_by: str
    seed: int
    facts: dict[str, Any]
    """Versions, machine and date."""
    phases: dict[str, float]
    """Seconds of each step."""
    sources: list[SourceSummary]
    steps: list[StepSummary]

    @property
    def documents_dropped(self) -> int:
        """Positives and negatives taken out of Examples that the step kept."""
        return sum(count for step in self.steps for part, _, count in step.rows() if part != "example")

    @property
    def examples_in(self) -> int:
        """Examples of all sources."""
        return sum(source.examples_in for source in self.sources)

    @property
    def examples_out(self) -> int:
        """Those that stayed."""
        return sum(source.examples_out for source in self.sources)

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        values = asdict(self)
        return values | values.pop("facts")


def summary_of(
    name: str, settings: dict[str, Any], examples_in: int, outcome: Outcome, seed: int
) -> StepSummary:
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
    return StepSummary(
        name=name,
        settings=settings,
        examples_in=examples_in,
        examples_out=len(outcome.kept),
        dropped={part: dict(reasons.most_common()) for part, reasons in sorted(counts.items())},
        by_source=dict(gone.most_common()),
        samples=samples,
    )


def _sample(item: Dropped) -> DroppedSample:
    text = (
        item.text if item.part != "example" or item.text != item.example.query else item.example.positives[0]
    )
    return DroppedSample(
        item.example.source,
        item.part,
        item.reason,
        item.detail,
        shorten(item.example.query, _SHOWN, mark=" …"),
        shorten(text, _SHOWN, mark=" …"),
    )


def page_of(summary: CurationSummary) -> Report:
    """Return the page: what came and stayed, and of each step its reasons, and samples to read."""
    names = ", ".join(source.name for source in summary.sources)
    return Report(
        title="Curation",
        subtitle=f"{names}: {summary.made_by}, seed {summary.seed}",
        headlines=_headlines(summary),
        tables=[
            _steps(summary),
            _sources(summary),
            *(_reasons(number, step, summary) for number, step in enumerate(summary.steps, start=1)),
        ],
        samples=[
            Samples(f"Dropped: {step.name}", [_shown(sample) for sample in step.samples])
            for step in summary.steps
        ],
        details={**summary.facts, "seconds": summary.phases},
    )


def _headlines(summary: CurationSummary) -> list[Headline]:
    came, stayed, steps = summary.examples_in, summary.examples_out, len(summary.steps)
    documents = f", and {summary.documents_dropped:,} single documents" if summary.documents_dropped else ""
    decontaminated = next((step for step in summary.steps if step.name == "decontamination"), None)
    test_sets, note = "?", "not checked: no --against"
    if decontaminated is not None:
        tasks = len(decontaminated.settings["against"])
        test_sets = f"{decontaminated.removed:,}"
        note = f"Examples that stood in {tasks} task{'s' * (tasks != 1)}"
    return [
        Headline("Kept", f"{stayed:,}", f"{percent(stayed, came)} of {came:,} Examples"),
        Headline("Dropped", f"{came - stayed:,}", f"by {steps} step{'s' * (steps != 1)}{documents}"),
        Headline("In the test sets", test_sets, note),
    ]


def _steps(summary: CurationSummary) -> Table:
    rows: list[list[Cell]] = []
    for step in summary.steps:
        bar = Bar(step.examples_out, step.removed, summary.examples_in)
        rows.append([step.name, step.examples_in, step.removed, step.examples_out, bar])
    return Table("Steps", ["step", "in", "dropped", "out", "left of all"], rows)


def _sources(summary: CurationSummary) -> Table:
    rows: list[list[Cell]] = []
    for source in summary.sources:
        came, stayed = source.examples_in, source.examples_out
        kept = (Share(stayed, came), Bar(stayed, came - stayed, came))
        rows.append([source.file, source.path, source.kind, came, stayed, *kept])
    return Table("Sources", ["source", "read from", "kind", "in", "out", "kept", ""], rows)


def _reasons(number: int, step: StepSummary, summary: CurationSummary) -> Table:
    """Say what a step dropped and why, and under which settings."""
    notes = [f"{step.examples_in:,} in, {step.removed:,} dropped, {step.examples_out:,} out."]
    if len(summary.sources) > 1 and step.by_source:
        notes.append(
            f"By source: {', '.join(f'{name} {count:,}' for name, count in step.by_source.items())}."
        )
    if step.settings:
        values = (f"{key.replace('_', ' ')}: {_value(key, value)}" for key, value in step.settings.items())
        notes.append(f"Settings: {'; '.join(values)}.")
    title = f"{number}. {step.name.capitalize()}"
    return Table(title, ["dropped", "reason", "how many"], step.rows(), note=" ".join(notes), shown=12)


def _value(key: str, value: Any) -> str:
    if key in ("ngram", "bm25") and not value:
        return "off"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else f"{value:,}"


def _shown(sample: DroppedSample) -> Sample:
    part = "" if sample.part == "example" else f" ({sample.part})"
    texts = {"query": sample.query or "–", "document": sample.text or "–", "source": sample.source}
    why = f"{sample.reason}{part}" + (f": {sample.detail}" if sample.detail else "")
    return Sample(texts, why, "bad")


def print_summary(summary: CurationSummary, console: Console) -> None:
    """Print a line for each step, and one for each source."""
    table = TerminalTable(box=None, header_style="bold", pad_edge=False)
    table.add_column("step")
    for title in ("in", "dropped", "out"):
        table.add_column(title, justify="right")
    table.add_column("most frequent reason", overflow="fold")
    for step in summary.steps:
        reasons = step.dropped.get("example", {})
        most = next((f"{reason} ({count:,})" for reason, count in reasons.items()), "")
        counts = (step.examples_in, step.removed, step.examples_out)
        table.add_row(step.name, *(f"{count:,}" for count in counts), Text(most))
    console.print(table, highlight=False)
    for source in summary.sources:
        kept = f"{source.examples_out:,} of {source.examples_in:,} Examples in {source.file}"
        say(f"{source.name}: {kept}", console)
