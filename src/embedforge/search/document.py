"""What an index holds and what a search gives back: plain values, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Value = str | int | float | bool
"""What a field of metadata may be."""

Mode = Literal["fused", "dense", "lexical"]
"""By meaning and by words together, by meaning alone, by words alone (BM25)."""

MODES: tuple[Mode, ...] = ("fused", "dense", "lexical")

FILE = "file"
"""The field of metadata that says which file a document is of."""

RECORDS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
"""Files of records: each is a document by itself, not a part of the file's text."""

DENSE_SHARE = 0.5
"""Weight of meaning where both sides are fused and nothing better is known; see `fusion`."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that can be found."""

    id: str
    text: str
    location: str = ""
    """Where a reader finds it, "file:line" for example."""
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """What a search can filter by; "file" is there for documents of a folder."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """The part of a text that a hit is shown by."""

    text: str
    matches: tuple[tuple[int, int], ...] = ()
    """From and to, in characters of `text`, of what the query and the text share; ascending, disjoint."""
    cut_before: bool = False
    """There is more of the document before it."""
    cut_after: bool = False
    """There is more of the document after it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A document that is named by another's hit, not shown itself."""

    id: str
    location: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found, and why."""

    document: Document
    score: float
    """What the hits are sorted by: one of the three below, by the mode of the search."""
    dense: float | None = None
    """Inner product with the query's vector; None where the mode is "lexical"."""
    lexical: float | None = None
    """BM25; 0 without a shared word, None where the mode is "dense" or the store did not look it up."""
    fused: float | None = None
    """Of both, from 0 to 1, see `embedforge.search.fusion`; None where the mode is another."""
    snippet: Snippet = Snippet("")
    also: tuple[Place, ...] = ()
    """Other documents that were found, with the same text or the same part shown of it."""
    more: tuple[Place, ...] = ()
    """Passages of the same file whose scores lie among the hits', beyond those shown; see `per_file`."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as `embedforge search --json` prints them and /v1/search answers."""
        return asdict(self) | {"document": asdict(self.document) | {"metadata": dict(self.document.metadata)}}
