"""Markdown, reStructuredText and plain text to units: the heading asks, the section answers.

Where there is no heading, the first sentence of a passage asks for the rest of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from embedforge.quickstart.unit import DOCUMENT_CHARACTERS, QUERY_CHARACTERS, Unit, shorten

MINIMUM_CHARACTERS = 120
"""A shorter section is a stub: a link, a badge, "see below"."""
PASSAGE_CHARACTERS = 1500
"""Text without headings is cut into passages of about so many characters, at its paragraphs."""
MINIMUM_QUERY_WORDS = 2
MINIMUM_SENTENCE_WORDS = 5
TITLE_CHARACTERS = 120
MOSTLY = 0.7

_WORD = re.compile(r"[^\W_]{2,}")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+:.])\1{2,}\s*$")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_INVISIBLE = re.compile(r"<!--.*?-->", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s)")


@dataclass
class _Section:
    line: int
    """Of its heading, from 1."""
    headings: tuple[str, ...]
    """From the title down; empty before the first heading."""
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip("\n")


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
    units: list[Unit] = []
    counts: Counter[str] = Counter()
    for section in _sections(text, PurePosixPath(file)):
        if section.headings:
            found = _section_unit(section, file, package)
            counts["sections_passed_over"] += not found
        else:
            found = _passage_units(section, file, package)
        units += found
    return units, counts


def _section_unit(section: _Section, file: str, package: str) -> list[Unit]:
    query = shorten(" > ".join(section.headings), QUERY_CHARACTERS, " ")
    if len(section.text) < MINIMUM_CHARACTERS or len(_WORD.findall(query)) < MINIMUM_QUERY_WORDS:
        return []
    written = [line for line in section.lines if line.strip()]
    if sum("](" in line for line in written) > MOSTLY * len(written):
        return []  # "See also", tables of contents, lists of commits
    document = shorten(section.text, DOCUMENT_CHARACTERS, "\n")
    return [Unit(f"{file}:{section.line}", query, document, file, package, "section")]


def _passage_units(section: _Section, file: str, package: str) -> list[Unit]:
    """First sentence -> rest, for passages whose first sentence says enough."""
    units = []
    for line, passage in _passages(section):
        end = _SENTENCE_END.search(passage)
        if end is None or end.end() > QUERY_CHARACTERS:
            continue
        query = " ".join(passage[: end.end()].split())
        document = shorten(passage[end.end() :].strip(), DOCUMENT_CHARACTERS, "\n")
        if len(_WORD.findall(query)) >= MINIMUM_SENTENCE_WORDS and len(document) >= MINIMUM_CHARACTERS:
            units.append(Unit(f"{file}:{line}", query, document, file, package, "passage"))
    return units


def _passages(section: _Section) -> Iterator[tuple[int, str]]:
    """Join paragraphs into passages and give each the line it starts on."""
    passage: list[str] = []
    start = section.line
    for row, line in enumerate(section.lines):
        if not line.strip() and sum(map(len, passage)) >= PASSAGE_CHARACTERS:
            yield start, "\n".join(passage)
            passage = []
        elif passage or line.strip():
            start = start if passage else section.line + row
            passage.append(line)
    if passage:
        yield start, "\n".join(passage)


def _sections(text: str, file: PurePosixPath) -> list[_Section]:
    """Cut a text at its headings; code fences and front matter hold none."""
    title, text, skipped = _front_matter(text)
    lines = _INVISIBLE.sub(lambda comment: "\n" * comment.group().count("\n"), text).split("\n")
    find_heading = {".txt": _plain_title, ".rst": _underlined}.get(file.suffix.lower(), _markdown_heading)
    fenced = find_heading is _markdown_heading
    path: list[tuple[int, str]] = [(0, title)] if title else []
    sections = [_Section(1 + skipped, (title,) if title else ())]
    levels: list[str] = []
    fence = ""
    row = 0
    while row < len(lines):
        fence = _fence_after(lines[row], fence) if fenced else ""
        heading = None if fence else find_heading(lines, row, levels)
        if heading is None:
            sections[-1].lines.append(lines[row])
            row += 1
            continue
        level, words, height = heading
        path = [(above, name) for above, name in path if above < level] + [(level, words)]
        sections.append(_Section(row + 1 + skipped, tuple(name for _, name in path)))
        row += height
    return sections


def _front_matter(text: str) -> tuple[str, str, int]:
    """Split YAML front matter off; return its title, the rest and how many lines went."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return "", text, 0
    title = re.search(r"^title:[ \t]*(.+?)[ \t]*$", match.group(1), re.MULTILINE)
    return title.group(1).strip("\"'") if title else "", text[match.end() :], match.group().count("\n")


def _fence_after(line: str, fence: str) -> str:
    """Return the code fence that is open after `line`, "" for none."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return match.group(1)
    closes = match.group(1).startswith(fence) and not line.strip().strip(fence[0])
    return "" if closes else fence


Heading = tuple[int, str, int]
"""Level from 1, words, and how many lines it takes."""


def _markdown_heading(lines: list[str], row: int, levels: list[str]) -> Heading | None:
    """`# words`, or words underlined with = (level 1) or - (level 2)."""
    match = _ATX.match(lines[row])
    if match:
        return len(match.group(1)), _clean(match.group(2)), 1
    underlined = _underlined(lines, row, levels)
    if underlined is None or lines[row + 1][0] not in "=-" or lines[row].lstrip()[:1] in "|>-*+":
        return None
    return (1 if lines[row + 1][0] == "=" else 2), underlined[1], 2


def _underlined(lines: list[str], row: int, levels: list[str]) -> Heading | None:
    """Words underlined with a line of punctuation at least as long; levels in the order of appearance."""
    words = lines[row].strip()
    if not words or row + 1 >= len(lines) or (row > 0 and lines[row - 1].strip()):
        return None
    overline = bool(_UNDERLINE.match(words))
    if overline and row + 2 < len(lines) and lines[row + 2].strip() == words and lines[row + 1].strip():
        words, height, mark = lines[row + 1].strip(), 3, words[0] * 2
    elif not overline and _UNDERLINE.match(lines[row + 1]) and len(lines[row + 1].strip()) >= len(words):
        height, mark = 2, lines[row + 1][0]
    else:
        return None
    if mark not in levels:
        levels.append(mark)
    return levels.index(mark) + 1, _clean(words), height


def _plain_title(lines: list[str], row: int, levels: list[str]) -> Heading | None:
    """Take a plain text's first line for its title if it is short and a paragraph of its own."""
    words = lines[row].strip()
    if levels or not words:
        return None
    levels.append("title")  # only the first line that is not blank is asked
    alone = row + 1 < len(lines) and not lines[row + 1].strip()
    if not alone or len(words) > TITLE_CHARACTERS or words.endswith((".", ":", ",", ";")):
        return None
    return 1, _clean(words), 1


def _clean(heading: str) -> str:
    """Reduce a heading to its words: links to their text, no HTML tags, anchors or emphasis marks."""
    heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    heading = re.sub(r"<[^>]+>|\{#[^}]*\}|\*\*|``?", "", heading)
    return " ".join(heading.replace("\\", "").split())
