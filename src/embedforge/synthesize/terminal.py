"""What `embedforge synthesize` prints besides its progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from embedforge.console import say
from embedforge.synthesize.plan import Plan
from embedforge.synthesize.run import Result, preview
from embedforge.synthesize.test_set import TestSet
from embedforge.synthesize.write import EXAMPLES, GROUPS, MIX, PASSAGES


def print_preview(plan: Plan, console: Console) -> None:
    """Print the first prompts of each group, and how many examples are planned; nothing is asked."""
    for name, texts in preview(plan).items():
        for text in texts:
            console.rule(name)
            say(text, console)
    console.rule()
    say(f"{len(plan):,} examples are planned; nothing was asked.", console)


def print_result(out: Path, result: Result, console: Console, test: TestSet | None = None) -> None:
    """Print what came of a run, where it is, and how to go on.

    Args:
        out: the run's folder.
        result: of the run.
        console: to print to.
        test: where a test set was written.
    """
    totals = result.report["totals"]
    lines = _counts(result.report)
    if totals["kept"]:
        lines += _files(out, test)
    lines.append(f"Report: {out / 'report.html'}")
    if result.stopped:
        how = " with a higher limit" if result.is_budget else ""
        lines.append(f"Stopped: {result.stopped}; the same command{how} goes on, and asks nothing twice.")
    elif totals["not asked yet"]:
        lines.append(
            f"{totals['not asked yet']:,} examples are missing, the last failed with: {result.failure}; "
            "the same command asks again."
        )
    say("\n".join(lines), console)


def _counts(report: dict[str, Any]) -> list[str]:
    totals, spent = report["totals"], report["spent"]
    judged = totals["kept"] + totals["dropped"]
    tokens = f"{spent['tokens in']:,} tokens in, {spent['tokens out']:,} out"
    cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
    return [
        f"{totals['kept']:,} examples kept of {judged:,} answered; {totals['planned']:,} planned.",
        *(f"  {count:>6,}  {reason}" for reason, count in report["dropped"].items()),
        f"{spent['requests']:,} requests in all, {tokens}{cost}.",
    ]


def _files(out: Path, test: TestSet | None) -> list[str]:
    if test is not None:
        return [f"Test set: {out / test.folder}; embedforge evaluate MODEL bm25 --tasks {out}"]
    files = [f"Examples: {out / EXAMPLES}, by group in {out / GROUPS}; for a recipe: {out / MIX}"]
    if (out / PASSAGES).exists():
        passages = out / PASSAGES
        files.append(f"Passages: {passages}, for embedforge mine {out / EXAMPLES} --corpus {passages}")
    return files
