"""What was found, without what would be read twice: one text is one hit, and no file fills all places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from embedforge.search.document import FILE, RECORDS, Document, Place, Snippet
from embedforge.search.snippet import snippet_of
from embedforge.search.store import Key
from embedforge.text.same import layout_key

PER_FILE = 2
"""Passages of one file among the hits."""
LOT = 2
"""So many times the hits are read at once."""


@dataclass(slots=True)
class Chosen:
    """A document that is to be shown, and those that are named in its hit; see `Hit`."""

    key: Key
    score: float
    document: Document
    snippet: Snippet
    also: list[Place] = field(default_factory=list)
    more: list[Place] = field(default_factory=list)


def without_repeats(
    found: Sequence[tuple[Key, float]],
    read: Callable[[Sequence[Key]], list[Document]],
    query: str,
    k: int,
    per_file: int,
) -> list[Chosen]:
    """Choose the best `k`, best first; each keeps the score it was found with.

    Texts are the same if the parts that are shown of them, with the query's words, differ in case and white
    space at most: a paragraph that stands in many longer passages is one hit too. Without such words they
    are compared whole. Of a file `per_file` passages are taken, and more only where there are not enough
    others; records are no passages of their file.

    Args:
        found: keys and scores, best first.
        read: gives the documents of keys.
        query: what was asked.
        k: the number of hits.
        per_file: 0 for as many as there are.
    """
    texts: dict[str, Chosen] = {}
    ranked: list[Chosen] = []
    within: list[int] = []
    for start in range(0, len(found), lot := LOT * k):
        part = found[start : start + lot]
        for (key, score), document in zip(part, read([key for key, _ in part]), strict=True):
            snippet = snippet_of(document.text, query)
            compared = snippet.text if snippet.matches else document.text
            text = layout_key(compared) or str(key)  # one without a word is the same as no other
            if text in texts:
                texts[text].also.append(_place(document))
            else:
                texts[text] = Chosen(key, score, document, snippet)
        ranked = list(texts.values())
        within = _within(ranked, per_file)
        if len(within) >= k and part[-1][1] < ranked[within[k - 1]].score:
            break  # what is left is worse than all that are shown
    beyond = sorted(set(range(len(ranked))) - set(within))
    shown = sorted([*within[:k], *beyond[: max(0, k - len(within))]])
    last_of = {_file(ranked[rank].document): ranked[rank] for rank in shown}
    for rank in beyond:
        file = _file(ranked[rank].document)
        if rank not in shown and rank < shown[-1] and file in last_of:
            last_of[file].more.append(_place(ranked[rank].document))
    return [ranked[rank] for rank in shown]


def _within(ranked: Sequence[Chosen], per_file: int) -> list[int]:
    """Return which are among the first `per_file` of their file, or of none; all if that is 0."""
    counted: Counter[str] = Counter()
    kept = []
    for rank, chosen in enumerate(ranked):
        file = _file(chosen.document)
        counted[file] += bool(file)
        if not per_file or counted[file] <= per_file:
            kept.append(rank)
    return kept


def _file(document: Document) -> str:
    """Return the file that a document is a passage of, "" for none."""
    file = str(document.metadata.get(FILE, ""))
    return "" if file.lower().endswith(RECORDS) else file


def _place(document: Document) -> Place:
    return Place(document.id, document.location)
