"""The text of a PDF, page by page (pypdf, extra "documents")."""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections import Counter

from embedforge.documents.document import ParsedFile, Section
from embedforge.documents.find_files import PassedOver

EDGE_LINES = 3
"""So many lines at the top and bottom of a page may be running headers and footers."""
PAGES_TO_REPEAT = 3
MOST_PAGES = 0.5
"""A line at the edge of more than this share of pages is a running header or footer."""

_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b")
_HYPHENATED = re.compile(r"([^\W\d_])[-\u2010\u00ad]\n[ \t]*(?=[^\W\d_])")


def pdf_document(source: bytes, file: str) -> tuple[ParsedFile, int]:
    """Read a PDF; each page's text begins where `ParsedFile.pages` says.

    Words hyphenated at a line's end are joined if the next line goes on in lower case, and running headers,
    footers and page numbers dropped.

    Returns:
        The document, and the number of characters dropped.

    Raises:
        PassedOver: not a PDF that can be read ("files_not_parsed"), locked with a password
            ("files_encrypted"), or pictures of text only ("files_scanned").
    """
    pages = [page.replace("\0", "").split("\n") for page in _pages(source)]
    repeated = _running_lines(pages)
    kept = [_without_running(page, repeated) for page in pages]
    dropped = sum(len(line) for page in pages for line in page) - sum(
        len(line) for page in kept for line in page
    )
    texts = [_joined_words("\n".join(page).strip()) for page in kept]
    if not any(texts):
        raise PassedOver("files_scanned")
    joints = [_joint(*pair) for pair in itertools.pairwise(texts)]
    text = "".join(itertools.chain.from_iterable(zip(texts, [*joints, ""], strict=True)))
    lengths = (len(page) + len(joint) for page, joint in zip(texts, joints, strict=False))
    starts = tuple(itertools.accumulate(lengths, initial=0))
    section = Section((), 0, 0, len(text))
    return ParsedFile(file, text, "prose", (section,), pages=starts), dropped


def _pages(source: bytes) -> list[str]:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it comments on every flaw of a file
    try:
        reader = pypdf.PdfReader(io.BytesIO(source))
        if reader.is_encrypted and not reader.decrypt(""):
            raise PassedOver("files_encrypted")
        return [page.extract_text() for page in reader.pages]
    except PassedOver:
        raise
    except pypdf.errors.DependencyError:
        raise PassedOver("files_encrypted") from None
    except Exception:  # a broken file makes the parser fail in any way there is
        raise PassedOver("files_not_parsed") from None


def _running_lines(pages: list[list[str]]) -> set[str]:
    counts = Counter(line for page in pages for line in {_shape(page[row]) for row in _edge(page)})
    least = max(PAGES_TO_REPEAT, MOST_PAGES * len(pages))
    return {line for line, count in counts.items() if count >= least}


def _edge(page: list[str]) -> set[int]:
    """Rows of the first and last lines that are not blank."""
    written = [row for row, line in enumerate(page) if line.strip()]
    return {*written[:EDGE_LINES], *written[-EDGE_LINES:]}


def _shape(line: str) -> str:
    """A line with its numbers made equal, so that "page 3 of 9" repeats "page 4 of 9"."""
    return _NUMBER.sub("#", " ".join(line.lower().split()))


def _without_running(page: list[str], repeated: set[str]) -> list[str]:
    edge = _edge(page)
    return [line for row, line in enumerate(page) if row not in edge or _shape(line) not in repeated]


def _joint(page: str, following: str) -> str:
    """A page that ends within a sentence is no end of a paragraph."""
    goes_on = page[-1:].isalnum() or page[-1:] in {",", ";"}
    return "\n" if goes_on and following[:1].islower() else "\n\n"


def _joined_words(text: str) -> str:
    """Join "exam-" and "ple" across a line's end; "Rhine-" and "Main" keep their hyphen."""

    def join(match: re.Match[str]) -> str:
        return match.group(1) if text[match.end()].islower() else f"{match.group(1)}-"

    return _HYPHENATED.sub(join, text)
