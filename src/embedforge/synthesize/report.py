"""The report: report.json for programs, and report.html, which shows it (page.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedforge.files import write_json
from embedforge.report.page import write_report as write_page
from embedforge.run_folder import facts
from embedforge.synthesize.budget import Budget
from embedforge.synthesize.diversity import nearest
from embedforge.synthesize.harvest import ExampleOutcome, Tally
from embedforge.synthesize.journal import Journal, Spent
from embedforge.synthesize.page import page_of

PACKAGES = ("openai", "py3langid", "numpy")
HISTOGRAM_BINS = 10
CLOSEST = 3
"""Closest pairs of queries shown by group."""
_SHOWN = 200


def report_of(
    settings: dict[str, Any],
    tally: Tally,
    journal: Journal,
    budget: Budget,
    *,
    unused: int,
    stopped: str,
    phases: Mapping[str, float],
) -> dict[str, Any]:
    """Return what report.json holds.

    Args:
        settings: of the run, as asked for.
        tally: of all outcomes.
        journal: for what was spent.
        budget: for the prices.
        unused: answers in the journal that this plan has no use for.
        stopped: why the run ended early; "" if it did not.
        phases: seconds of each, over all starts.
    """
    dropped: Counter[str] = Counter()
    for counts in tally.dropped.values():
        dropped.update(counts)
    return {
        "settings": settings,
        "stopped": stopped,
        "phases": dict(phases),
        **facts(PACKAGES),
        "totals": {
            "planned": tally.planned.total(),
            "not asked yet": tally.pending.total(),
            "kept": tally.kept.total(),
            "dropped": dropped.total(),
        },
        "dropped": dict(dropped.most_common()),
        "groups": {name: _group(tally, name) for name in tally.planned},
        "languages": dict(tally.languages.most_common()),
        "spent": {
            **_spent(journal.spent, budget),
            "steps": {name: _spent(spent, budget) for name, spent in sorted(journal.by_group.items())},
            "unused answers": unused,
        },
        "diversity": {name: _diversity(tally, name) for name in tally.kept},
        "samples": {
            "kept": {name: _samples(sample.values()) for name, sample in tally.kept_samples.items()},
            "dropped": {reason: _samples(tally.dropped_samples[reason].values()) for reason in dropped},
        },
    }


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Write report.json and report.html."""
    write_json(out / "report.json", report)
    write_page(out / "report.html", page_of(report))


def _group(tally: Tally, name: str) -> dict[str, Any]:
    return {
        "planned": tally.planned[name],
        "not asked yet": tally.pending[name],
        "kept": tally.kept[name],
        "without a hard negative": tally.without_negative[name],
        "dropped": dict(tally.dropped[name].most_common()),
    }


def _spent(spent: Spent, budget: Budget) -> dict[str, Any]:
    return {
        "requests": spent.requests,
        "tokens in": spent.tokens_in,
        "tokens out": spent.tokens_out,
        "answers with estimated tokens": spent.estimated,
        "cost": budget.cost(spent),
    }


def _diversity(tally: Tally, name: str) -> dict[str, Any]:
    queries = [outcome.example.query for outcome in tally.queries[name].values() if outcome.example]
    diversity: dict[str, Any] = {
        "distinct instructions": len(tally.instructions[name]),
        "sampled queries": len(queries),
    }
    if len(queries) < 2:
        return diversity
    distances, others = nearest(queries)
    counts, _ = np.histogram(distances, bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    quartiles = np.quantile(distances, [0.0, 0.25, 0.5, 0.75, 1.0])
    pairs = {
        tuple(sorted((row, int(others[row])))): float(distances[row]) for row in np.argsort(distances)[:20]
    }
    closest = sorted(pairs.items(), key=lambda pair: pair[1])[:CLOSEST]
    return diversity | {
        "distance to the nearest query": dict(
            zip(("least", "25 %", "median", "75 %", "most"), quartiles.round(4).tolist(), strict=True)
        ),
        "histogram": counts.tolist(),
        "closest": [
            [round(distance, 4), queries[one][:_SHOWN], queries[other][:_SHOWN]]
            for (one, other), distance in closest
        ],
    }


def _samples(outcomes: list[ExampleOutcome]) -> list[dict[str, Any]]:
    return [_sample(outcome) for outcome in outcomes]


def _sample(outcome: ExampleOutcome) -> dict[str, Any]:
    item, example = outcome.item, outcome.example
    sample: dict[str, Any] = {"number": outcome.index, "group": outcome.group.name}
    if outcome.detail:
        sample["why"] = outcome.detail
    if item is not None:
        sample["instruction"] = item.instruction
        sample["drawn"] = dict(item.values)
        if item.passage is not None:
            sample["from"] = ", ".join(filter(None, (item.passage.file, item.passage.place)))
    if example is None:
        return sample | ({"answer": outcome.answer} if outcome.answer else {})
    sample |= {"query": example.query, "positive": example.positives[0]}
    return sample | ({"negative": example.negatives[0]} if example.negatives else {})
