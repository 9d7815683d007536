"""A file to a document, by its suffix."""

from __future__ import annotations

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from embedforge.documents.decode import decode
from embedforge.documents.document import Described, ParsedFile, Section
from embedforge.documents.find_files import PassedOver, read_bytes
from embedforge.documents.headings import prose_document
from embedforge.documents.html_text import html_document
from embedforge.documents.pdf_text import pdf_document
from embedforge.documents.python_source import decode_python, python_definitions
from embedforge.documents.source_code import COMMENTS, described_code, is_generated

PLAIN = frozenset({".txt", ".text", ".md", ".markdown", ".mdown", ".rst"})
HTML = frozenset({".html", ".htm", ".xhtml"})
PDF = frozenset({".pdf"})
PDF_BYTES = 10
"""A PDF, which holds images, may be so many times as large as other files."""
PACKAGES = {**dict.fromkeys(HTML, "markdownify"), **dict.fromkeys(PDF, "pypdf")}
"""What reads a file, where it is not in the standard library; extra "documents"."""

_BOILERPLATE_FILE = re.compile(
    r"(licen[cs]es?|copying|copyright|unlicense|notice|authors|contributors|maintainers|codeowners"
    r"|code[-_.]of[-_.]conduct|changes|change[-_]?log.*|requirements|top_level|entry_points|sources|robots)"
    r"([-_.](dev|test|docs|mit|bsd|apache|l?gpl|mpl|\d[\w.]*|third[-_]party)[\w.-]*)?",
    re.IGNORECASE,
)


def suffix_of(file: str) -> str:
    """Return what decides how a file is read, "" for one that is not; ".rst.txt" is ".rst"."""
    path = PurePosixPath(file)
    suffix = path.suffix.lower()
    inner = PurePosixPath(path.stem).suffix.lower()
    if suffix == ".txt" and inner in PLAIN:
        return inner
    return suffix if suffix in PLAIN | HTML | PDF or suffix in COMMENTS else ""


def is_boilerplate(file: str) -> bool:
    """Tell a licence, a change log or a list of names by the file's name."""
    return suffix_of(file) not in COMMENTS and bool(_BOILERPLATE_FILE.fullmatch(PurePosixPath(file).stem))


def missing_package(suffix: str) -> str | None:
    """Return the package that reading such a file needs and that is not installed."""
    package = PACKAGES.get(suffix)
    return package if package and find_spec(package) is None else None


def read_document(folder: Path, file: str, max_bytes: int, counts: Counter[str]) -> ParsedFile:
    """Read one file; `counts` takes what was dropped of it.

    Args:
        folder: the folder that `file` is relative to.
        file: path with forward slashes, of a suffix that `suffix_of` knows.
        max_bytes: larger files are passed over, PDFs if ten times as large.
        counts: gets "characters_dropped" and "files_encoding_guessed".

    Raises:
        PassedOver: the file gives no text.
    """
    suffix = suffix_of(file)
    source = read_bytes(folder / file, max_bytes * (PDF_BYTES if suffix in PDF else 1))
    name = file.encode(errors="surrogateescape").decode(errors="replace")  # names need not be text
    try:
        if suffix in PDF:
            document, dropped = pdf_document(source, name)
            counts["characters_dropped"] += dropped
        elif suffix in HTML:
            document, dropped, guessed = html_document(source, name)
            counts["characters_dropped"] += dropped
            counts["files_encoding_guessed"] += guessed
        elif suffix in COMMENTS:
            document = _code_document(source, name, suffix, counts)
        else:
            document = _prose_document(source, name, suffix, counts)
    except (RecursionError, MemoryError):
        raise PassedOver("files_not_parsed") from None
    if not document.text.strip():
        raise PassedOver("files_empty")
    return document


def _prose_document(source: bytes, file: str, suffix: str, counts: Counter[str]) -> ParsedFile:
    text, guessed = decode(source)
    counts["files_encoding_guessed"] += guessed
    document = prose_document(text, file, ".txt" if suffix == ".text" else suffix)
    counts["characters_dropped"] += len(text) - len(document.text)
    return document


def _code_document(source: bytes, file: str, suffix: str, counts: Counter[str]) -> ParsedFile:
    """Python that does not parse, of another version say, is read as any other language."""
    described: list[Described]
    try:
        if suffix != ".py" or b"\0" in source:
            raise SyntaxError
        text = decode_python(source)
        described, _ = python_definitions(source)
    except (SyntaxError, ValueError):
        text, guessed = decode(source)
        counts["files_encoding_guessed"] += guessed
        described = described_code(text, COMMENTS[suffix])
    if is_generated(text):
        raise PassedOver("files_generated")
    text = text.removeprefix("\ufeff")
    sections = (Section((), 0, 0, len(text)),)
    return ParsedFile(file, text, "code", sections, first_line=1, described=tuple(described))
