"""What a mixture holds, before anything is trained on it."""

from __future__ import annotations

import textwrap
from typing import Any, Literal

from rich.markup import escape
from rich.tree import Tree

from embedforge.data.mixture import Mixture, fingerprint


def summary(mixture: Mixture) -> dict[str, Any]:
    """Return the figures of a mixture as plain JSON values.

    `rows_per_epoch` counts what an epoch draws (size times weight) before short batches are left out;
    `share` is a source's part of it. `in_batch_negatives` and `symmetric` are true, false or "some".
    """
    total = sum(mixture.plan.counts)
    sources = {}
    for (name, examples), count in zip(mixture.examples.items(), mixture.plan.counts, strict=True):
        instructions = list(dict.fromkeys(example.instruction for example in examples))
        sources[name] = {
            "rows": len(examples),
            "weight": mixture.weights[name],
            "rows_per_epoch": count,
            "share": count / total,
            "in_batch_negatives": _all_or_some([example.in_batch_negatives for example in examples]),
            "symmetric": _all_or_some([example.symmetric for example in examples]),
            "instruction": instructions[0],
            "instructions": len(instructions),
            "mean_positives": sum(len(example.positives) for example in examples) / len(examples),
            "mean_negatives": sum(len(example.negatives) for example in examples) / len(examples),
            "fingerprint": fingerprint(examples),
        }
    return {
        "batches": mixture.plan.batches,
        "batch_queries": mixture.plan.batch_queries,
        "negatives": mixture.negatives,
        "rows_per_epoch": total,
        "steps_per_epoch": mixture.steps_per_epoch,
        "fingerprint": mixture.fingerprint,
        "sources": sources,
    }


def describe(mixture: Mixture, unit: Literal["queries", "texts", "chunks"] = "queries") -> Tree:
    """Return the figures of `summary` as a tree for the terminal.

    Args:
        mixture: of a stage.
        unit: what a step of the stage is made of: queries with their documents, texts alone, or chunks that
            are cut from the mixture's texts once there is a tokenizer; it then does not know the steps.
    """
    figures = summary(mixture)
    rows = "rows" if unit == "queries" else "texts"
    tree = Tree(f"data: {figures['rows_per_epoch']:,} {rows} an epoch{_steps(figures, unit)}")
    for name, source in figures["sources"].items():
        branch = tree.add(
            f"[bold]{escape(name)}[/bold]: {source['rows']:,} {rows}, {source['share']:.1%} of the epoch"
        )
        if source["weight"] != 1:
            branch.add(f"weight {source['weight']:g}: {source['rows_per_epoch']:,} {rows} an epoch")
        if unit == "queries":
            branch.add(f"in-batch negatives: {_word(source['in_batch_negatives'])}")
            branch.add(f"symmetric: {_word(source['symmetric'])}")
            branch.add(
                f"{source['mean_positives']:.1f} positives, {source['mean_negatives']:.1f} negatives a query"
            )
        more = f" (and {source['instructions'] - 1} more)" if source["instructions"] > 1 else ""
        shown = textwrap.shorten(source["instruction"], 80, placeholder="…") or "none"
        branch.add(f"instruction: {escape(shown)}{more}")
    return tree


def _steps(figures: dict[str, Any], unit: str) -> str:
    if unit == "chunks":
        return ", which training joins and cuts into chunks"
    steps = (
        f" in {figures['steps_per_epoch']:,} {figures['batches']} steps of {figures['batch_queries']} {unit}"
    )
    return steps + (f", up to {figures['negatives']} negatives each" if unit == "queries" else "")


def _all_or_some(values: list[bool]) -> bool | str:
    return values[0] if len(set(values)) == 1 else "some"


def _word(value: bool | str) -> str:
    return value if isinstance(value, str) else "yes" if value else "no"
