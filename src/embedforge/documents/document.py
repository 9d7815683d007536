"""What a file is after reading: its text, where its headings are, and the pieces that are made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TextKind = Literal["prose", "code"]
DefinitionKind = Literal["function", "class", "method", "definition"]
PairKind = Literal["title", "heading", "description", "cloze"]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it up to the next heading: a span of `ParsedFile.text`."""

    headings: tuple[str, ...]
    """The heading's words after those that it lies under, from the title down; empty before the first."""
    start: int
    """Character at which the heading begins."""
    body: int
    """Character at which the text below the heading begins."""
    end: int


@dataclass(frozen=True, slots=True)
class Described:
    """A definition in source code, taken apart into what its author says of it and what it is."""

    description: str
    """From the docstring or the comment above it, on one line."""
    code: str
    line: int
    """Of the file, from 1."""
    kind: DefinitionKind
    """"definition" in languages that are not parsed."""


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A file's text, with the structure that its author gave it."""

    file: str
    """Path from the folder, with forward slashes."""
    text: str
    r"""What chunks are cut from: line ends are "\n", no front matter, no page furniture."""
    kind: TextKind
    sections: tuple[Section, ...]
    """In the order of the text, without gaps: together they are the whole text."""
    title: str = ""
    first_line: int = 0
    """The file's line on which `text` begins, from 1; 0 where its lines are not the file's (HTML, PDF)."""
    pages: tuple[int, ...] = ()
    """The character at which each page begins; empty for files without pages."""
    described: tuple[Described, ...] = field(default=(), repr=False)
    """Source code only: definitions that have a description."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file, of about the size that was asked for, its headings included."""

    text: str
    file: str
    place: str
    """Where to look it up: "line 12", "page 3", or "" where a file has neither (HTML)."""
    headings: tuple[str, ...]
    """The headings that all of it lies under, from the title down."""
    kind: TextKind
    start: int
    """Character of `ParsedFile.text` at which it begins: (file, start) is unique."""

    @property
    def id(self) -> str:
        """File and start: a name that no other chunk of the folder has."""
        return f"{self.file}#{self.start}"


@dataclass(frozen=True, slots=True)
class Pair:
    """A question that the text's own structure asks, and the passage that answers it."""

    id: str
    """Unique in the folder."""
    query: str
    document: str
    """Does not hold the query."""
    kind: PairKind
    """title: a document's title and its first passage. heading: a heading with those above it, joined by
    " > ", and the text below. description: a docstring or comment and its code. cloze: a sentence and the
    passage that it was taken out of, for texts without any heading."""
    file: str
    place: str
    """As in `Chunk`."""
    start: int
    """Character of `ParsedFile.text` at which the passage begins."""


@dataclass(frozen=True)
class Folder:
    """A folder's text, split so that nothing held out is in what a model is trained on."""

    train: list[Chunk]
    """By file and place; no two with the same words."""
    sentences: list[str]
    """Sentences and short passages of `train` on one line each, no two with the same words."""
    held_out: list[Chunk]
    pairs: list[Pair]
    """From held-out text alone. Each query has one right document among those of all pairs, as far as the
    structure tells."""
    train_pairs: list[Pair]
    """From training text; neither their queries nor their documents repeat held-out text."""
    counts: dict[str, int]
    """What was found, read, kept, dropped and passed over, in the order of the work."""
    notices: list[str] = field(default_factory=list)
    """What the user should know: a missing extra, scanned PDFs, how few files were split."""
