"""Exact and near duplicates among the examples kept so far.

Queries are compared by runs of characters: a line of text is too short for shingles of words.
"""

from __future__ import annotations

from collections import defaultdict

from embedforge.synthesize.filters import Draft
from embedforge.text.near import NearIndex, Shingler
from embedforge.text.same import word_key
from embedforge.text.words import shorten

SIMILARITY = 0.8
"""Jaccard similarity of two sets of character runs from which on queries are near duplicates."""
_SHOWN = 200


class Duplicates:
    """Remembers the queries of each group, and finds those that repeat one, case and punctuation aside.

    Two examples with one query and different documents are duplicates too: in a batch, each would be told
    that the other's document is wrong. Two queries with one document are not. A text that two tasks classify
    differently is not: its class label is part of what is compared.
    """

    def __init__(self) -> None:
        self._shingler = Shingler("characters")
        self._exact: dict[tuple[str, str, str], str] = {}
        self._near: defaultdict[tuple[str, str], NearIndex] = defaultdict(NearIndex)
        self._kept: list[tuple[str, str]] = []
        """Key and beginning of each query."""

    def check(self, draft: Draft) -> tuple[str, str]:
        """Return the filter that drops the draft and why, or ("", "") and remember the draft."""
        name, query = draft.group.name, word_key(draft.query)
        label = word_key(draft.positive) if draft.group.label else ""
        if (name, label, query) in self._exact:
            return "exact duplicate", f"an earlier example has the query: {self._exact[name, label, query]}"
        (bands,) = self._shingler.keys([query])
        near = self._near[name, label]
        for number in near.candidates(bands):
            other, shown = self._kept[number]
            similarity = self._shingler.similarity(query, other)
            if similarity >= SIMILARITY:
                return "near duplicate", f"similarity {similarity:.2f} to the query: {shown}"
        self._exact[name, label, query] = shown = shorten(draft.query, _SHOWN)
        near.add(len(self._kept), bands)
        self._kept.append((query, shown))
        return "", ""
