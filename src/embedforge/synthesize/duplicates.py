"""Exact and near duplicates among the examples kept so far, by `datasketch`'s MinHash.

Unlike `embedforge.documents.near_duplicates`, which compares a list of texts with a list of references, this
decides one example at a time against those before it, in memory of about 1 KB an example, and compares
runs of characters, so that scripts without spaces between words are judged as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embedforge.errors import missing_extra
from embedforge.synthesize.filters import Draft, normal

SIMILARITY = 0.8
"""Estimated Jaccard similarity of two sets of character runs from which on queries are near duplicates."""
CHARACTERS = 5
"""Length of a run of characters."""
BANDS, ROWS = 25, 5
"""Of the signatures: a pair of similarity 0.8 is compared with probability 1 - (1 - 0.8^5)^25 = 0.99995. (The
package's own choice for a threshold of 0.8 would miss every other such pair.)"""
PERMUTATIONS = BANDS * ROWS
"""Hash functions; the estimate's standard deviation at a similarity of 0.8 is 0.036."""


class Duplicates:
    """Remembers the queries of each group, and finds those that repeat one, case and punctuation aside.

    Two examples with one query and different documents are duplicates too: in a batch, each would be told
    that the other's document is wrong. Two queries with one document are not. A text that two tasks classify
    differently is not: its class label is part of what is compared.
    """

    def __init__(self) -> None:
        try:
            import datasketch
        except ImportError:
            raise missing_extra("datasketch", "synthesize", "finding near duplicates") from None
        self._datasketch = datasketch
        self._exact: dict[tuple[str, str, str], str] = {}
        self._near: dict[str, Any] = {}
        self._kept: list[tuple[str, str, Any]] = []
        """Query, label and sketch."""

    def check(self, draft: Draft) -> tuple[str, str]:
        """Return the filter that drops the draft and why, or ("", "") and remember the draft."""
        name, query = draft.group.name, normal(draft.query)
        label = normal(draft.positive) if draft.group.label else ""
        if (name, label, query) in self._exact:
            return "exact duplicate", f"an earlier example has the query: {self._exact[name, label, query]}"
        sketch = self._datasketch.MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch(list(_runs(query)))
        if name not in self._near:
            self._near[name] = self._datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, ROWS))
        for place in sorted(self._near[name].query(sketch)):
            text, other_label, other = self._kept[place]
            similarity = sketch.jaccard(other)
            if similarity >= SIMILARITY and label == other_label:
                return "near duplicate", f"similarity {similarity:.2f} to the query: {text}"
        shown = draft.query[:200]
        self._exact[name, label, query] = shown
        self._near[name].insert(len(self._kept), sketch)
        self._kept.append((shown, label, sketch))
        return "", ""


def _runs(text: str) -> Iterator[bytes]:
    for place in range(max(1, len(text) - CHARACTERS + 1)):
        yield text[place : place + CHARACTERS].encode()
