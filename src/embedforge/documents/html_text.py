"""HTML to Markdown without the page's furniture (markdownify on beautifulsoup4, extra "documents")."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from embedforge.documents.decode import decode
from embedforge.documents.document import ParsedFile
from embedforge.documents.headings import prose_document

NEVER_TEXT = ["script", "style", "noscript", "template", "svg", "head", "iframe", "object", "annotation"]
FURNITURE = frozenset({"nav", "header", "footer", "aside", "form", "button"})
"""Dropped; but a header or footer within the main part or an article belongs to the text."""
FURNITURE_ROLES = frozenset({"navigation", "search", "banner", "contentinfo"})
PARTS = ["main", "article"]
MAIN_SHARE = 0.4
"""The main part is taken for the page where it has at least this share of its characters."""

_DECLARED = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_PILCROW = re.compile(r"(?<=\w)[ \t]*[¶§]$", re.MULTILINE)


def html_document(source: bytes, file: str) -> tuple[ParsedFile, int, bool]:
    """Read a page of HTML.

    Returns:
        The document, the number of characters dropped with the page's furniture, and whether the encoding
        was guessed.

    Raises:
        PassedOver: as `decode`.
        RecursionError: elements nested too deep.
    """
    from bs4 import BeautifulSoup

    declared = _DECLARED.search(source[:4096])
    text, guessed = decode(source, declared.group(1).decode("ascii", "ignore") if declared else None)
    page = BeautifulSoup(text, "html.parser")
    title = " ".join(page.title.get_text().split()) if page.title else ""
    for element in page.find_all(NEVER_TEXT):
        element.extract()
    before = _length(page)
    root = _main_part(page, before)
    for element in root.find_all(_is_furniture):
        element.extract()
    dropped = before - _length(root)
    markdown = _PILCROW.sub("", _to_markdown(root).replace("\xa0", " "))
    document = prose_document(markdown, file, ".md", "" if root.find("h1") else title)
    return dataclasses.replace(document, first_line=0), dropped, guessed  # lines are not those of the file


def _main_part(page: Any, characters: int) -> Any:
    """The one main element or article that holds much of the page, else the page."""
    parts = [part for part in page.find_all(PARTS) if not part.find_parent(PARTS)]
    parts = parts or page.find_all(role="main")
    if len(parts) == 1 and _length(parts[0]) >= MAIN_SHARE * characters:
        return parts[0]
    return page


def _is_furniture(element: Any) -> bool:
    if element.name in {"header", "footer"} and element.find_parent(PARTS) is not None:
        return False
    return element.name in FURNITURE or element.get("role") in FURNITURE_ROLES


def _length(element: Any) -> int:
    return sum(len(text.strip()) for text in element.strings)


def _to_markdown(root: Any) -> str:
    """Headings become "# words", `pre` a fence, links and images their words."""
    from markdownify import MarkdownConverter

    converter = MarkdownConverter(
        heading_style="ATX",
        strip=["a", "img"],
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
        bullets="-",
    )
    return str(converter.convert_soup(root))
