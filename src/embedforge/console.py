"""What all verbs say on the terminal: one progress bar, one form of notes, and text that is printed as it is.

Results go to standard output; progress, notes and what is going on to standard error, so that a result can
be piped. Brackets in names and paths are text, never markup.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]
"""Called with what was done since the last call."""


def stdout() -> Console:
    """Return the console of results."""
    return Console(markup=False, highlight=False)


def stderr() -> Console:
    """Return the console of progress and notes."""
    return Console(stderr=True, markup=False, highlight=False)


def say(text: str, console: Console | None = None) -> None:
    """Print a text as it is, long lines whole; on standard error when `console` is None."""
    (console or stderr()).print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str, console: Console | None = None) -> None:
    """Print something that the user should know, and nothing has failed."""
    say(f"note: {text}", console)


def progress_bar(console: Console | None = None, *, transient: bool = False) -> Progress:
    """Return the progress bar of all verbs: what, how far, time spent, time left, and a note.

    Args:
        console: where it is drawn; standard error when None.
        transient: it vanishes at the end.
    """
    return Progress(
        TextColumn("{task.description}", markup=False, style="bold"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console or stderr(),
        transient=transient,
    )


def add_row(bar: Progress, title: str, total: int | None = None) -> TaskID:
    """Add a row without a note; None where the total is not known yet."""
    return bar.add_task(title, total=total, note="")


def advancing(bar: Progress, title: str, total: int | None = None) -> Advance:
    """Add a row, and return what moves it on."""
    row = add_row(bar, title, total or None)
    return lambda done: bar.advance(row, done)
