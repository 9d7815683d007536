"""What `embedforge synthesize` prints besides its progress bar."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from embedforge.synthesize.plan import Plan
from embedforge.synthesize.run import Result, preview
from embedforge.synthesize.test_set import TestSet
from embedforge.synthesize.write import EXAMPLES, GROUPS, MIX, PASSAGES


def print_preview(plan: Plan, console: Console) -> None:
    """Print the first prompts of each group, and how many examples are planned; nothing is asked."""
    for name, texts in preview(plan).items():
        for text in texts:
            console.rule(name)
            console.print(text, markup=False, highlight=False)
    console.rule()
    console.print(f"{len(plan):,} examples are planned; nothing was asked.")


def print_result(out: Path, result: Result, console: Console, test: TestSet | None = None) -> None:
    """Print what came of a run, where it is, and how to go on.

    Args:
        out: the run's folder.
        result: of the run.
        console: to print to.
        test: where a test set was written.
    """
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    totals = result.report["totals"]
    _print_counts(result.report, say)
    if totals["kept"]:
        _print_files(out, test, say)
    say(f"Report: {out / 'report.html'}")
    if result.stopped:
        how = " with a higher limit" if result.is_budget else ""
        say(f"Stopped: {result.stopped}; the same command{how} goes on, and asks nothing twice.")
    elif totals["not asked yet"]:
        say(
            f"{totals['not asked yet']:,} examples are missing, the last failed with: {result.failure}; "
            "the same command asks again."
        )


def _print_counts(report: dict[str, Any], say: Callable[[str], None]) -> None:
    totals, spent = report["totals"], report["spent"]
    judged = totals["kept"] + totals["dropped"]
    say(f"{totals['kept']:,} examples kept of {judged:,} answered; {totals['planned']:,} planned.")
    for reason, count in report["dropped"].items():
        say(f"  {count:>6,}  {reason}")
    tokens = f"{spent['tokens in']:,} tokens in, {spent['tokens out']:,} out"
    cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
    say(f"{spent['requests']:,} requests in all, {tokens}{cost}.")


def _print_files(out: Path, test: TestSet | None, say: Callable[[str], None]) -> None:
    if test is not None:
        say(f"Test set: {out / test.folder}; embedforge evaluate MODEL bm25 --tasks {out}")
        return
    say(f"Examples: {out / EXAMPLES}, by group in {out / GROUPS}; for a recipe: {out / MIX}")
    if (out / PASSAGES).exists():
        say(f"Passages: {out / PASSAGES}, for embedforge mine {out / EXAMPLES} --corpus {out / PASSAGES}")
