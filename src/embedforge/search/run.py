"""`embedforge search` and `embedforge index`: what they print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from embedforge.console import note, say, stdout
from embedforge.errors import EmbedforgeError
from embedforge.search.build import compact_index
from embedforge.search.document import FILE, Hit, Mode, Place, Snippet
from embedforge.search.files import Outcome, remove_from_index, update_index
from embedforge.search.folder_store import FolderStore
from embedforge.search.index import Index
from embedforge.search.repeats import PER_FILE
from embedforge.search.store import Facts, Store

LINES_SHOWN = 6
NAMED = 4
"""So many other places are named in a hit."""
INDENT = "   "
SLOW_FROM = 1_000_000
"""Documents from which LanceDB is worth a word: by words a folder takes 65 ms of a core there, LanceDB 8 (by
meaning 19 and 60); see docs/search.md."""
_SAID = {
    "characters_dropped": "{} characters of front matter, comments and what is no text",
    "files_encoding_guessed": "nothing of {} files whose encoding was guessed",
    "files_scanned": "{} PDF files of pictures without text",
}
_FOUND_BEST = {
    "lexical": "by words alone (BM25)",
    "dense": "by meaning alone",
}


def search(
    folder: str | Path,
    query: str,
    *,
    k: int = 5,
    mode: Mode | None = None,
    filters: Sequence[str] = (),
    per_file: int = PER_FILE,
    as_json: bool = False,
    model: str | None = None,
    device: str | None = None,
) -> list[Hit]:
    """Print the best `k` documents for a query, and return them.

    Args:
        folder: of a quickstart or adapt run, an index, or a store's URL.
        query: in words.
        k: number of hits.
        mode: None for the index's own.
        filters: see `Index.search`.
        per_file: see `Index.search`.
        as_json: print one JSON object.
        model: folder or hub id, where it is not the one that the index names.
        device: "cpu", "cuda", ...

    Raises:
        EmbedforgeError: there is no index, its model is gone or another one, or the query is empty.
    """
    if not query.strip():
        raise EmbedforgeError("the query is empty; say what to look for, in words")
    index = Index.open(folder, model=model, device=device)
    hits = index.search(query, k, filters=filters, mode=mode, per_file=per_file)
    facts = index.facts
    if as_json:
        about = {"query": query, "mode": mode or facts.mode, "model": facts.model}
        found = {**about, "hits": [hit.as_json() for hit in hits]}
        stdout().print(json.dumps(found, ensure_ascii=True, indent=2), soft_wrap=True)
        return hits
    if mode is None and facts.mode in _FOUND_BEST:
        other = "--mode fused searches by both"
        note(f"searched {_FOUND_BEST[facts.mode]}, which the run's report found best here; {other}")
    if not hits:
        why = "no document passes the filters" if filters else "no document holds a word of the query"
        note(f"nothing found: {why}")
    for rank, hit in enumerate(hits, start=1):
        _print(rank, hit)
    return hits


def _print(rank: int, hit: Hit) -> None:
    sides = [
        f"{name} {value:.3f}"
        for name, value in (("meaning", hit.dense), ("words", hit.lexical))
        if value is not None
    ]
    head = Text.assemble(
        (f"{rank}.", "bold"), " ", (hit.document.location or hit.document.id, "cyan"), f"  {', '.join(sides)}"
    )
    console = stdout()
    console.print(head)
    file = f"{hit.document.metadata.get(FILE, '')}, "
    others = (_listed("the same text in", hit.also), _listed("further passages of the file:", hit.more, file))
    for text in (shown(hit.snippet), *(Text(line, "dim") for line in others if line)):
        for line in text.wrap(console, max(20, console.width - len(INDENT))):
            console.print(Text(INDENT) + line, soft_wrap=True)


def _listed(what: str, places: Sequence[Place], file: str = "") -> str:
    """Return a line that names places, the first `NAMED`, without the file's name; "" for none."""
    named = [(place.location or place.id).removeprefix(file) for place in places[:NAMED]]
    if len(places) > NAMED:
        named.append(f"and {len(places) - NAMED:,} more")
    return f"{what} {'; '.join(named)}" if named else ""


def shown(snippet: Snippet) -> Text:
    """Return a snippet for the terminal: some lines, its matching words bold."""
    text = Text(snippet.text)
    for start, end in snippet.matches:
        text.stylize("bold yellow", start, end)
    lines = list(text.split("\n"))
    more = snippet.cut_after or len(lines) > LINES_SHOWN
    if snippet.cut_before:
        lines[0] = Text("… ") + lines[0]
    lines = [*lines[:LINES_SHOWN], *([Text("…")] if more else [])]
    return Text("\n").join(lines)


def index(
    paths: Sequence[Path],
    where: str,
    *,
    model: str | None = None,
    whole: bool = True,
    restart: bool = False,
    device: str | None = None,
) -> Outcome:
    """Bring files into an index and say what was done; arguments as of `update_index`."""
    outcome = update_index(where, paths, model=model, whole=whole, restart=restart, device=device)
    for notice in outcome.notices:
        note(notice)
    if outcome.passed_over:
        said = (_SAID.get(why, f"{{}} {why.replace('_', ' ')}") for why in outcome.passed_over)
        counts = (f"{count:,}" for count in outcome.passed_over.values())
        note("left out: " + ", ".join(what.format(count) for what, count in zip(said, counts, strict=True)))
    say(
        f"{where}: {outcome.added:,} files added, {outcome.changed:,} changed, {outcome.removed:,} removed, "
        f"{outcome.same:,} as they were; {outcome.embedded:,} passages embedded, {outcome.documents:,} in "
        f'the index\nsearch it: embedforge search {where} "what you look for"',
        stdout(),
    )
    if outcome.documents >= SLOW_FROM and "://" not in where:
        note(
            f"a folder counts every word, which takes its time with {outcome.documents:,} passages; by words "
            f"LanceDB is quicker: --out lance://{where}-lance (docs/search.md)"
        )
    return outcome


def remove(where: str, names: Sequence[str]) -> int:
    """Remove files or documents from an index and say how many went."""
    gone, store = remove_from_index(where, names)
    say(f"{where}: {gone:,} passages removed, {store.facts.documents:,} left", stdout())
    return gone


def compact(where: str) -> Facts:
    """Compact an index and say what it is now."""
    store: Store = compact_index(where)
    parts = f" in {store.size[0]} parts" if isinstance(store, FolderStore) else ""
    say(f"{where}: {store.facts.documents:,} passages{parts}", stdout())
    return store.facts
