"""The unit of a corpus: one question that the author answered, and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DOCUMENT_CHARACTERS = 4000
QUERY_CHARACTERS = 500


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
    kind: Literal["function", "class", "method", "section", "passage"]


def shorten(text: str, characters: int, separator: str) -> str:
    """Cut `text` to at most `characters`, at the last `separator` if there is one in the second half.

    >>> shorten("one two three", 9, " ")
    'one two'
    """
    if len(text) <= characters:
        return text
    end = text.rfind(separator, characters // 2, characters + 1)
    return text[: end if end > 0 else characters]
