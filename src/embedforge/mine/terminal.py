"""What `embedforge mine` prints at its end: what came out, what is odd about it, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from embedforge.data.names import CATALOG_PREFIX
from embedforge.mine.settings import AUDIT, EXAMPLES, RECALL, UNRANKED

FEW = 0.1
"""Share of Examples without a negative that is worth a word."""


def summary(out: Path, facts: Mapping[str, Any]) -> str:
    """Return what to print after a run.

    Args:
        out: the run's folder.
        facts: what `mine.json` holds.
    """
    examples, chosen, empty = (_total(facts, key) for key in ("examples", "chosen", "without a negative"))
    lines = [
        f"{chosen:,} negatives for {examples:,} Examples, {chosen / examples:.1f} each; {empty:,} got none.",
        *_oddities(facts, empty / examples),
        f"Audit: {out / AUDIT}, to read before training on them",
        f"Examples: {out / EXAMPLES}",
    ]
    return "\n".join([*lines, *_next(out, facts)] if chosen else lines)


def _oddities(facts: Mapping[str, Any], empty: float) -> Iterator[str]:
    about, names = facts["fingerprints"], facts["teachers"]["names"]
    if empty > FEW:
        yield (
            f"  {empty:.0%} got none: where positives score low, no document is safely worse. "
            "The audit page says what other rules would keep."
        )
    if len(names) > 1:
        yield f"  The rule compared scores of {facts['judge']}."
    if added := facts["positives added to the corpus"]:
        yield f"  {added:,} positives were not in the corpus, by id or by text, and were added to it."
    if empty_documents := facts["documents without a text"]:
        yield f"  {empty_documents:,} documents of the corpus have no text and were passed over."
    for name in names:
        known = about[name] if isinstance(about[name], dict) else {}
        if missing := known.get(UNRANKED):
            yield f"  {name} does not rank {missing:,} of the queries."
        if RECALL in known:
            yield f"  {facts['teachers']['index']} finds {known[RECALL]:.1%} of what the exact search finds."


def _next(out: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    """Show the source for a mix, with what a file of Examples does not say of itself."""
    entry: dict[str, Any] = {"path": str(out / EXAMPLES), "name": ", ".join(facts["counts"])}
    if facts["source"]["symmetric"]:
        entry["symmetric"] = True
    shown = yaml.safe_dump([entry], default_flow_style=None, sort_keys=False, width=1000, allow_unicode=True)
    yield "Next: put it into the mix of a recipe, and train (docs/recipes.md):"
    yield f"  {shown.strip()}"
    yield "  embedforge train RECIPE.yaml --out run"
    if facts["source"]["path"].startswith(CATALOG_PREFIX):
        entry_name = facts["source"]["path"].removeprefix(CATALOG_PREFIX)
        yield f"Or copy it to data/{entry_name}.jsonl, which recipes with catalog:{entry_name} then read."


def _total(facts: Mapping[str, Any], key: str) -> int:
    return sum(own[key] for own in facts["counts"].values())
