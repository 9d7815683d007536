"""One self-contained HTML page of findings, tables, charts and texts to read; it loads nothing.

The page is data first: `Report` says what it shows, the template how. Every text is escaped; only
charts, which `embedforge.report.charts` drew, are put in as markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from embedforge.files import write_text
from embedforge.statistics import Interval, PairedTest

Tone = Literal["good", "bad", "neutral"]
_LONGEST_TEXT = 420
"""Characters of a document shown at once; the rest unfolds."""
_SAMPLES_SHOWN = 10
"""Samples of one kind that are shown at once; more of them unfold together."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence of the summary, and whether it is good news."""

    text: str
    tone: Tone = "neutral"


@dataclass(frozen=True, slots=True)
class Headline:
    """A number that deserves to be large: `Headline("nDCG@10", "0.31 → 0.58", "on 300 held-out queries")`."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "neutral"


@dataclass(frozen=True, slots=True)
class Bar:
    """A cell that is drawn: two parts of a whole, in blue what is there, in orange what was lost of it."""

    part: float
    lost: float = 0
    whole: float = 1


@dataclass(frozen=True, slots=True)
class Share:
    """A cell in percent: a part of a whole."""

    part: float
    whole: float = 1


Cell = str | int | float | Interval | PairedTest | Bar | Share | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; None is shown as a dash, an `Interval` with its bounds, a `PairedTest` with its p-value.

    The last row is set apart where `has_total`. With `bold_best`, the largest mean of each row is bold. Rows
    beyond `shown` unfold.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    has_total: bool = False
    bold_best: bool = False
    shown: int | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG drawn by `embedforge.report.charts`, which goes into the page as it is."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a model found."""

    text: str
    is_relevant: bool
    score: float | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class QueryExample:
    """A query and what each model found for it, best first; rankings are as many as the report's models."""

    query: str
    rankings: Sequence[Sequence[Hit]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Something to read: its texts by name, and why it is shown."""

    texts: Mapping[str, str]
    why: str = ""
    tone: Tone = "neutral"


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one kind, under a title."""

    title: str
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows, in its order of appearance."""

    title: str
    subtitle: str = ""
    summary: Sequence[Finding | str] = ()
    headlines: Sequence[Headline] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    examples: Sequence[QueryExample] = ()
    models: Sequence[str] = ("before", "after")
    """Names over the columns of the examples."""
    samples: Sequence[Samples] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    """How the numbers were made (versions, settings, data): folded up at the end of the page."""


def render_report(report: Report) -> str:
    """Return the page as HTML text."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("embedforge.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        findings=[Finding(item) if isinstance(item, str) else item for item in report.summary],
        rows_of=_rendered_rows,
        heads_of=_rendered_heads,
        cut=_cut,
        detail=_detail,
        samples_shown=_SAMPLES_SHOWN,
    )


def write_report(path: Path, report: Report) -> None:
    """Render the page and write it to `path` in one step."""
    write_text(path, render_report(report))


def percent(part: float, whole: float) -> str:
    """Return a share in words that never round something to nothing, or nearly all to all.

    >>> percent(1, 3), percent(1, 5000), percent(4999, 5000), percent(0, 0)
    ('33.3 %', 'under 0.1 %', 'over 99.9 %', '–')
    """
    if not whole:
        return "–"
    share = part / whole
    if 0 < share < 0.001:
        return "under 0.1 %"
    return "over 99.9 %" if 0.999 < share < 1 else f"{share:.1%}".replace("%", " %")


def finding(what: str, test: PairedTest, *, unit: str = "queries") -> Finding:
    """Put a paired test into a plain sentence.

    >>> finding("nDCG@10", PairedTest(0.104, 0.08, 0.13, 0.0001, 300, True)).text
    'nDCG@10 rose by 0.104 (95% interval +0.080 to +0.130, p < 0.001, 300 queries).'
    """
    if math.isnan(test.low):
        return Finding(f"{what}: too few {unit} ({test.n}) to tell whether it changed.")
    interval = f"95% interval {_signed(test.low)} to {_signed(test.high)}"
    evidence = f"{interval}, {_p_value(test)}, {test.n:,} {unit}"
    if not test.is_real:
        sentence = f"{what} changed by {_signed(test.difference)}, which chance may explain ({evidence})."
        return Finding(sentence)
    rose = test.difference > 0
    sentence = f"{what} {'rose' if rose else 'fell'} by {abs(test.difference):.3f} ({evidence})."
    return Finding(sentence, "good" if rose else "bad")


def against_bm25(test: PairedTest, model: str, why: str) -> Finding:
    """Say whether a model finds more than plain word matching.

    Args:
        test: nDCG@10 of the model minus that of BM25.
        model: what the sentence calls it: "the trained model".
        why: what follows the colon where BM25 is ahead.
    """
    interval = f"{test.difference:+.3f}, 95 % interval {test.low:+.3f} to {test.high:+.3f}"
    begin = model[:1].upper() + model[1:]
    if not test.is_real:
        return Finding(f"{begin} and BM25 cannot be told apart on nDCG@10 ({interval}).")
    if test.difference > 0:
        return Finding(f"{begin} is ahead of BM25 on nDCG@10 ({interval}).", "good")
    return Finding(f"BM25 is ahead of {model} on nDCG@10 ({interval}): {why}", "bad")


@dataclass(frozen=True, slots=True)
class _Shown:
    """A table cell as the template needs it."""

    text: str
    note: str = ""
    css: str = ""
    bar: tuple[float, float] | None = None
    """Percent of the width."""


def _rendered_rows(table: Table) -> list[list[_Shown]]:
    rows = []
    for row in table.rows:
        shown = [_show(cell) for cell in row]
        means = {i: m for i, cell in enumerate(row) if (m := _mean(cell)) is not None}
        if table.bold_best and len(means) > 1:
            best = max(means.values())
            for i in (i for i, mean in means.items() if mean == best):
                shown[i] = _Shown(shown[i].text, shown[i].note, f"{shown[i].css} best")
        rows.append(shown)
    return rows


def _rendered_heads(table: Table) -> list[_Shown]:
    """Column titles; those over numbers stand on the right, as the numbers do."""
    columns = [[row[i] for row in table.rows if row[i] is not None] for i in range(len(table.columns))]
    numeric = {
        i for i, cells in enumerate(columns) if not cells or any(not isinstance(c, str | Bar) for c in cells)
    }
    return [_Shown(title, css="number" if i in numeric else "") for i, title in enumerate(table.columns)]


def _show(cell: Cell) -> _Shown:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return _Shown("–", css="number none")
    if isinstance(cell, str):
        return _Shown(cell)
    if isinstance(cell, Bar):
        scale = 100 / cell.whole if cell.whole else 0.0
        return _Shown("", css="bar-cell", bar=(cell.part * scale, cell.lost * scale))
    if isinstance(cell, Share):
        return _Shown(percent(cell.part, cell.whole), css="number")
    if isinstance(cell, int):
        return _Shown(f"{cell:,}", css="number")
    if isinstance(cell, float):
        return _Shown(f"{cell:.3f}", css="number")
    if isinstance(cell, Interval):
        note = "" if math.isnan(cell.low) else f"{cell.low:.3f} – {cell.high:.3f}"
        return _Shown(f"{cell.mean:.3f}", note, "number")
    tone = ("good" if cell.difference > 0 else "bad") if cell.is_real else "unsure"
    return _Shown(_signed(cell.difference), _p_value(cell), f"number {tone}")


def _mean(cell: Cell) -> float | None:
    if isinstance(cell, Interval):
        return cell.mean
    return cell if isinstance(cell, float) and not math.isnan(cell) else None


def _signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−")


def _p_value(test: PairedTest) -> str:
    return "p < 0.001" if test.p_value < 0.001 else f"p = {test.p_value:.3f}"


def _detail(value: object) -> str:
    """Show a value of the details: a mapping line by line, what is inside it as JSON."""
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_inline(item)}" for name, item in value.items())
    return _inline(value)


def _inline(value: object) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> tuple[str, str]:
    """Split a long text at a space near the limit into what is shown and what unfolds."""
    if len(text) <= _LONGEST_TEXT:
        return text, ""
    end = text.rfind(" ", 0, _LONGEST_TEXT)
    end = end if end > _LONGEST_TEXT // 2 else _LONGEST_TEXT
    return text[:end], text[end:]
