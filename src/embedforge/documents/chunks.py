"""Documents to chunks of about one size: cut at headings, then paragraphs, then sentences.

Every character of a document that is not blank is in exactly one chunk.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator

from embedforge.documents.document import Chunk, ParsedFile, Section
from embedforge.documents.headings import fence_after
from embedforge.documents.sentences import SPACE, cut_span

SHORT = 1 / 3
"""A section shorter than this share of a chunk is joined with its neighbour under the same heading."""
REMNANT = 1 / 4
"""A section's last piece shorter than this share of a chunk stays with the piece before."""

Span = tuple[int, int]
"""From and to, in characters of `ParsedFile.text`."""

CHARACTERS_PER_TOKEN = 4
"""About what a token is worth; a passage of so many characters just fits the model."""
CHUNK_CHARACTERS = (200, 1500)

_LINE = re.compile(r"\n")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_PROSE_CUTS = (None, _LINE, SPACE)
_FENCE_CUTS = (_BLANK_LINE, _LINE, SPACE)
_CLOSING = re.compile(r"[)\]}]|end\b|EOF\b", re.IGNORECASE)


def chunk_characters(max_tokens: int) -> int:
    """Return the size of passages for a model that reads `max_tokens`.

    >>> chunk_characters(128), chunk_characters(512)
    (512, 1500)
    """
    least, most = CHUNK_CHARACTERS
    return min(most, max(least, CHARACTERS_PER_TOKEN * max_tokens))


def chunks(document: ParsedFile, characters: int) -> list[Chunk]:
    """Cut a document into chunks of about `characters`, in the order of the text.

    A chunk is at most 1.25 times as long, plus its heading. Code fences are cut only where one is longer
    than a chunk, source code at what begins at the margin after a blank line.
    """
    passages: list[Chunk] = []
    locate = Locator(document)
    for start, end, headings in _joined(document, characters):
        text = document.text[start:end]
        begin = start + len(text) - len(text.lstrip("\n"))
        text = text.strip("\n").rstrip()
        if text.strip():
            passages.append(Chunk(text, document.file, locate(begin), headings, document.kind, begin))
    return passages


def code_passages(code: str, characters: int) -> list[str]:
    """Cut source code into passages of at most about `characters`, as `chunks` does."""
    document = ParsedFile("", code, "code", (Section((), 0, 0, len(code)),))
    return [chunk.text for chunk in chunks(document, characters)]


def section_pieces(document: ParsedFile, section: Section, characters: int) -> list[Span]:
    """Cut a section's body, without its heading, into pieces of about `characters`."""
    pieces: list[Span] = []
    for block in _blocks(document, section.body, section.end, characters):
        if pieces and block[1] - pieces[-1][0] <= characters:
            pieces[-1] = (pieces[-1][0], block[1])
        else:
            pieces.append(block)
    if len(pieces) > 1 and pieces[-1][1] - pieces[-1][0] < REMNANT * characters:
        last = pieces.pop()
        pieces[-1] = (pieces[-1][0], last[1])
    return pieces


class Locator:
    """Says where in the file a character of the document's text is."""

    def __init__(self, document: ParsedFile) -> None:
        self._document = document
        newlines = re.finditer("\n", document.text) if document.first_line else ()
        self._lines = [match.end() for match in newlines]

    def __call__(self, start: int) -> str:
        """Return "page 3", "line 12", or "" where the file has neither."""
        if self._document.pages:
            return f"page {bisect.bisect_right(self._document.pages, start)}"
        if self._document.first_line:
            return f"line {self._document.first_line + bisect.bisect_right(self._lines, start)}"
        return ""

    def start(self, line: int) -> int:
        """Return the character at which a line of the file begins."""
        row = line - self._document.first_line
        return self._lines[row - 1] if row > 0 else 0


Piece = tuple[int, int, tuple[str, ...]]
"""From, to, and the headings that all of it lies under."""


def _joined(document: ParsedFile, characters: int) -> Iterator[Piece]:
    """Yield the pieces of all sections, headings included, short neighbours joined."""
    last: Piece | None = None
    bare = False  # `last` is nothing but headings
    for section in document.sections:
        if not document.text[section.start : section.end].strip():
            continue
        pieces: list[Span] = section_pieces(document, section, characters)
        empty = not pieces
        pieces = pieces or [(section.start, section.body)]
        pieces[0] = (section.start, pieces[0][1])
        for number, (start, end) in enumerate(pieces):
            piece = (start, end, section.headings)
            joined = _join(last, piece, bare, characters) if last and not number else None
            if joined is None:
                if last:
                    yield last
                last, bare = piece, empty
            else:
                last, bare = joined, bare and empty
    if last:
        yield last


def _join(left: Piece, right: Piece, bare: bool, characters: int) -> Piece | None:
    """Return two neighbouring sections' pieces as one, or None where they are better apart."""
    both = zip(left[2], right[2], strict=False)
    shared = tuple(one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
    total = right[1] - left[0]
    least = min(left[1] - left[0], right[1] - right[0])
    if bare and total <= (1 + REMNANT) * characters:
        return left[0], right[1], shared
    if shared and least < SHORT * characters and total <= characters:
        return left[0], right[1], shared
    return None


def _blocks(document: ParsedFile, start: int, end: int, characters: int) -> Iterator[Span]:
    """Yield paragraphs and whole fences, or pieces of code, none longer than `characters`."""
    rows = _code_rows if document.kind == "code" else _prose_rows
    for block_start, block_end, fenced in rows(document.text, start, end):
        cuts = _FENCE_CUTS if fenced else _PROSE_CUTS
        while block_end - block_start > characters:
            cut = cut_span(document.text, block_start, block_end, characters, cuts)
            yield block_start, cut
            block_start = cut
        if document.text[block_start:block_end].strip():
            yield block_start, block_end


def _lines(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    """Yield each line with the character it starts at."""
    while start < end:
        stop = text.find("\n", start, end)
        stop = end if stop < 0 else stop + 1
        yield start, text[start:stop]
        start = stop


def _prose_rows(text: str, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Yield paragraphs and fences, with whether it is a fence; blank lines belong to none."""
    fence = above = ""
    begin, stop, fenced = -1, start, False
    for at, line in _lines(text, start, end):
        opens = not fence
        fence = fence_after(line.rstrip("\n"), fence, above)
        above = line
        if begin >= 0 and ((not line.strip() and opens) or (fence and opens)):
            yield begin, stop, fenced
            begin = -1
        if line.strip() and begin < 0:
            begin, fenced = at, bool(fence)
        stop = at + len(line)
    if begin >= 0:
        yield begin, stop, fenced


def _code_rows(text: str, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Yield pieces of code that begin at the margin after a blank line."""
    begins = [start]
    for (_, before), (at, line) in itertools.pairwise(_lines(text, start, end)):
        if not before.strip() and line.strip() and not line[0].isspace() and not _CLOSING.match(line):
            begins.append(at)
    for begin, stop in itertools.pairwise((*begins, end)):
        yield begin, stop, True
