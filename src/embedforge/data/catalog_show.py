"""`embedforge catalog`: the catalogue as a table, one entry in full, and what the hub says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedforge.data.catalog import PAPERS, RECALLED, Entry, Kind, Use, find_entry, load_catalog
from embedforge.data.catalog_check import check_entries
from embedforge.errors import EmbedforgeError, did_you_mean

KINDS = tuple(dict.fromkeys(get_args(Kind)))
_SHORT = {"nv-embed-v1": "v1", "nv-embed-v2": "v2", "e5-mistral": "E5"}
_WIDE = 110
"""Columns of a terminal from which a table has room for the hub's ids."""
_STYLE = {"ok": "green", "gated": "yellow", "failed": "red", "by hand": "dim"}


def catalog(
    name: str | None = None,
    *,
    paper: str | None = None,
    kind: str | None = None,
    check: bool = False,
    as_json: bool = False,
    console: Console | None = None,
) -> bool:
    """Print the catalogue, or one entry of it.

    Args:
        name: one entry in full.
        paper: only what this paper trained on.
        kind: only entries of this kind.
        check: ask the hub whether each is there, instead of listing it.
        as_json: print the entries as JSON.
        console: where to; standard output when None.

    Returns:
        False if a check failed for some entry.

    Raises:
        EmbedforgeError: unknown name, paper or kind; nothing to check with.
    """
    console = console or Console()
    _refuse_unused(name, paper, kind, check=check, as_json=as_json)
    chosen = _chosen(name, paper, kind)
    if check:
        return _print_check(chosen, console)
    if as_json:
        values = {key: entry.model_dump(mode="json") for key, entry in chosen.items()}
        console.print_json(json.dumps(values, ensure_ascii=False))
    elif name is not None:
        _print_entry(*next(iter(chosen.items())), console)
    else:
        _print_table(chosen, console)
    return True


def _refuse_unused(
    name: str | None, paper: str | None, kind: str | None, *, check: bool, as_json: bool
) -> None:
    """Raise for settings that exclude each other: one of them would have no effect."""
    if check and as_json:
        raise EmbedforgeError("--check and --json exclude each other: a check prints what the hub says")
    for option, value in (("--paper", paper), ("--kind", kind)):
        if name is not None and value is not None:
            raise EmbedforgeError(f"{option} {value} has no effect on one entry; leave it or '{name}' out")


def _chosen(name: str | None, paper: str | None, kind: str | None) -> dict[str, Entry]:
    for value, known, what in ((paper, PAPERS, "paper"), (kind, KINDS, "kind")):
        if value is not None and value not in known:
            raise EmbedforgeError(
                f"--{what} '{value}' is none of {', '.join(known)}.{did_you_mean(value, known)}"
            )
    if name is not None:
        return {name.removeprefix("catalog:"): find_entry(name)}
    chosen = {
        key: entry
        for key, entry in load_catalog().items()
        if (paper is None or paper in entry.used_by) and (kind is None or entry.kind == kind)
    }
    if not chosen:
        filters = [f"of kind '{kind}'"] * (kind is not None) + [f"used by '{paper}'"] * (paper is not None)
        raise EmbedforgeError(f"no entry is {' and '.join(filters)}")
    return chosen


def _print_table(entries: Mapping[str, Entry], console: Console) -> None:
    is_wide = console.width >= _WIDE
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for title in ("name", "kind", "hub")[: 3 if is_wide else 2]:
        table.add_column(title, overflow="fold")
    for paper in PAPERS:
        table.add_column(_SHORT[paper], justify="right", no_wrap=True)
    for name, entry in entries.items():
        counts = [_count(entry.used_by.get(paper)) for paper in PAPERS]
        doubt = "*" if entry.unverified else ""
        hub = [entry.hub or "[dim]by hand[/dim]"] if is_wide else []
        table.add_row(name + doubt, entry.kind, *hub, *counts)
    console.print(table)
    console.print(
        f"{len(entries)} datasets. Examples each paper used: ~ recalled, not verified; ? not said. "
        "* part of the entry is unverified: embedforge catalog NAME.",
        style="dim",
        highlight=False,
    )


def _count(use: Use | None) -> str:
    if use is None:
        return ""
    if use.examples is None:
        return "?"
    return f"{'~' if use.mark == 'memory' else ''}{use.examples:,}"


def _print_entry(name: str, entry: Entry, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, text in _facts(name, entry):
        table.add_row(key, escape(text))
    console.print(table, highlight=False)


def _facts(name: str, entry: Entry) -> list[tuple[str, str]]:
    hub = entry.hub or "nowhere: bring the file"
    columns = [
        f"{key} <- {value if isinstance(value, str) else ' + '.join(value)}"
        for key, value in entry.columns.items()
    ]
    facts = [
        ("name", name),
        ("title", entry.title),
        ("in a recipe", f"path: catalog:{name}"),
        ("hub", hub),
        ("configurations", ", ".join(entry.configs)),
        ("files", ", ".join(entry.files)),
        ("split", entry.split if entry.hub else ""),
        ("layout", entry.layout),
        ("columns", ", ".join(columns)),
        ("corpus", entry.corpus),
        ("labels", ", ".join(f"{key} = {value}" for key, value in entry.label_names.items())),
        ("kind", entry.kind + (", symmetric" if entry.symmetric else "")),
    ]
    for family, texts in entry.instructions.items():
        mark = " (recalled)" if family in RECALLED else ""
        title = f"instruction, {family}{mark}"
        facts += [(title if index == 0 else "", text) for index, text in enumerate(texts)]
    for paper, use in entry.used_by.items():
        source = "recalled, not verified" if use.mark == "memory" else "read in the paper"
        count = "number not said" if use.examples is None else f"{use.examples:,} Examples ({source})"
        facts.append((f"used by {paper}", "; ".join(filter(None, (count, use.about)))))
    facts += [("licence", entry.licence), ("unverified", ", ".join(entry.unverified)), ("note", entry.note)]
    return [(key, text) for key, text in facts if text]


def _print_check(entries: Mapping[str, Entry], console: Console) -> bool:
    results = check_entries(entries)
    table = Table(box=None, show_header=False, pad_edge=False)
    for item in results:
        table.add_row(item.name, f"[{_STYLE[item.state]}]{item.state}[/]", escape(item.detail))
    console.print(table, highlight=False)
    failed = sum(item.state == "failed" for item in results)
    console.print(f"{len(results) - failed} of {len(results)} as expected, {failed} failed", highlight=False)
    return not failed
