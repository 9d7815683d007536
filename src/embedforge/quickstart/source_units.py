"""Files to units: the docstring asks and the code answers, or the heading asks and the section answers.

Where a text has no heading, the first sentence of a passage asks for the rest of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from embedforge.documents.document import Document, Section
from embedforge.documents.headings import prose_document
from embedforge.documents.pairs import mostly_links
from embedforge.documents.python_source import python_definitions
from embedforge.documents.words import QUERY_CHARACTERS
from embedforge.quickstart.unit import Unit
from embedforge.text.words import shorten

DOCUMENT_CHARACTERS = 4000
MINIMUM_CHARACTERS = 120
"""A shorter section is a stub: a link, a badge, "see below"."""
PASSAGE_CHARACTERS = 1500
"""Text without headings is cut into passages of about so many characters, at its paragraphs."""
MINIMUM_QUERY_WORDS = 2
MINIMUM_SENTENCE_WORDS = 5

_WORD = re.compile(r"[^\W_]{2,}")
_SENTENCE_END = re.compile(r"[.!?](?=\s)")


def python_units(source: bytes, file: str, package: str) -> tuple[list[Unit], Counter[str]]:
    """Return a unit for every documented function, class and method, and counts of what was passed over.

    Args:
        source: the file's bytes; an encoding declaration is honoured.
        file: the file's name in `Unit.file`.
        package: the label in `Unit.package`.

    Raises:
        SyntaxError, ValueError, RecursionError: not a Python file that this Python can parse.
    """
    found, counts = python_definitions(source)
    return [
        Unit(
            id=f"{file}:{item.line}",
            query=item.description,
            document=shorten(item.code, DOCUMENT_CHARACTERS, at="\n"),
            file=file,
            package=package,
            kind=item.kind,
        )
        for item in found
    ], counts


def text_units(source: bytes, file: str, package: str) -> tuple[list[Unit], Counter[str]]:
    """Return a unit for every section or passage of a file, and counts of what was passed over.

    Args:
        source: the file's bytes, UTF-8.
        file: the file's name in `Unit.file`; its suffix decides which headings are looked for.
        package: the label in `Unit.package`.

    Raises:
        ValueError: not UTF-8, or not text.
    """
    text = source.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise ValueError("zero bytes in a text file")
    document = prose_document(text, file, PurePosixPath(file).suffix.lower())
    units: list[Unit] = []
    counts: Counter[str] = Counter()
    line, counted = document.first_line, 0
    for section in document.sections:
        line += document.text.count("\n", counted, section.start)
        counted = section.start
        if section.headings:
            found = _section_unit(document, section, line, package)
            counts["sections_passed_over"] += not found
        else:
            found = _passage_units(document, section, line, package)
        units += found
    return units, counts


def _section_unit(document: Document, section: Section, line: int, package: str) -> list[Unit]:
    query = shorten(" > ".join(section.headings), QUERY_CHARACTERS, at=" ")
    text = document.text[section.body : section.end].strip("\n")
    if len(text) < MINIMUM_CHARACTERS or len(_WORD.findall(query)) < MINIMUM_QUERY_WORDS:
        return []
    if mostly_links(text):
        return []
    answer = shorten(text, DOCUMENT_CHARACTERS, at="\n")
    return [Unit(f"{document.file}:{line}", query, answer, document.file, package, "section")]


def _passage_units(document: Document, section: Section, line: int, package: str) -> list[Unit]:
    """First sentence -> rest, for passages whose first sentence says enough."""
    units = []
    for row, passage in _passages(document, section):
        end = _SENTENCE_END.search(passage)
        if end is None or end.end() > QUERY_CHARACTERS:
            continue
        query = " ".join(passage[: end.end()].split())
        answer = shorten(passage[end.end() :].strip(), DOCUMENT_CHARACTERS, at="\n")
        if len(_WORD.findall(query)) >= MINIMUM_SENTENCE_WORDS and len(answer) >= MINIMUM_CHARACTERS:
            place = f"{document.file}:{line + row}"
            units.append(Unit(place, query, answer, document.file, package, "passage"))
    return units


def _passages(document: Document, section: Section) -> Iterator[tuple[int, str]]:
    """Join paragraphs into passages and give each the row of the section that it starts on."""
    text = document.text[section.body : section.end]
    if section.end < len(document.text):
        text = text.removesuffix("\n")  # the line before the next heading ends there
    passage: list[str] = []
    start = 0
    for row, line in enumerate(text.split("\n")):
        if not line.strip() and sum(map(len, passage)) >= PASSAGE_CHARACTERS:
            yield start, "\n".join(passage)
            passage = []
        elif passage or line.strip():
            start = start if passage else row
            passage.append(line)
    if passage:
        yield start, "\n".join(passage)
