"""The unit of a corpus: one question that the author answered, and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedforge.documents.document import DefinitionKind


@dataclass(frozen=True, slots=True)
class Unit:
    """A docstring and its code, or a heading and its section."""

    id: str
    """The place it was cut from, "file:line", which no other unit shares."""
    query: str
    document: str
    file: str
    """Path from the corpus's folder, with forward slashes."""
    package: str
    """Top-level folder or module, or the file where those are few: kept whole by the split, and the label
    of cluster examples."""
    kind: DefinitionKind | Literal["section", "passage"]
