"""What is said on the terminal: names with brackets are text, and long lines stay whole."""

from __future__ import annotations

import io

from rich.console import Console

from embedforge.console import advancing, note, progress_bar, say


def test_lines_are_printed_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=20)
    line = "out/[red]my data/a path that is longer than the terminal is wide.jsonl"
    say(line, console)
    note("[bold]3 files are empty", console)
    assert console.file.getvalue() == f"{line}\nnote: [bold]3 files are empty\n"  # type: ignore[attr-defined]


def test_a_bar_shows_names_as_they_are_and_moves() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with progress_bar(console) as bar:
        advance = advancing(bar, "reading [red]sea", 3)
        advance(1)
        advance(2)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "reading [red]sea" in shown
    assert "3/3" in shown
