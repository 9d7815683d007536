"""Markdown, reStructuredText and plain text to a document: where its headings are."""

from __future__ import annotations

import re
from collections.abc import Callable

from embedforge.documents.document import ParsedFile, Section

TITLE_CHARACTERS = 120

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+:.])\1{2,}\s*$")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_INVISIBLE = re.compile(r"<!--.*?-->", re.DOTALL)

Heading = tuple[int, str, int]
"""Level from 1, words, and how many lines it takes."""
FindHeading = Callable[[list[str], int, list[str]], Heading | None]
"""The heading that starts at a row of the lines, given the marks of levels seen so far."""


def prose_document(text: str, file: str, suffix: str, title: str = "") -> ParsedFile:
    r"""Find the headings of a text; code fences and front matter hold none.

    Front matter and comments of HTML are left out of the document's text.

    Args:
        text: the file's text, line ends "\n".
        file: its name in `ParsedFile.file`.
        suffix: decides which headings are looked for: ".rst", ".txt" (at most a title), or else Markdown.
        title: what all headings lie under, unless front matter names another.
    """
    named, text, skipped = _front_matter(text)
    title = named or title
    text = _without_comments(text)
    sections = _sections(text, title, suffix)
    first = next((section.headings[0] for section in sections if section.headings), "")
    return ParsedFile(file, text, "prose", tuple(sections), title or first, 1 + skipped)


def _sections(text: str, title: str, suffix: str) -> list[Section]:
    lines = text.split("\n")
    find_heading: FindHeading = {".txt": _plain_title, ".rst": _underlined}.get(suffix, _markdown_heading)
    fenced = find_heading is _markdown_heading
    path: list[tuple[int, str]] = [(0, title)] if title else []
    starts: list[tuple[tuple[str, ...], int, int]] = [((title,) if title else (), 0, 0)]
    levels: list[str] = []
    fence = ""
    row = at = 0
    while row < len(lines):
        fence = fence_after(lines[row], fence) if fenced else ""
        heading = None if fence else find_heading(lines, row, levels)
        level, words, height = heading or (0, "", 1)
        below = at + sum(len(line) + 1 for line in lines[row : row + height])
        if heading is not None:
            path = [(above, name) for above, name in path if above < level] + [(level, words)]
            starts.append((tuple(name for _, name in path), at, min(below, len(text))))
        row, at = row + height, below
    ends = [start for _, start, _ in starts[1:]] + [len(text)]
    return [Section(*start, end) for start, end in zip(starts, ends, strict=True)]


def _without_comments(text: str) -> str:
    """Blank comments out, keeping their line ends."""
    end = text.rfind("-->") + len("-->")  # beyond it, every opening would search to the end in vain
    return _INVISIBLE.sub(lambda comment: "\n" * comment.group().count("\n"), text[:end]) + text[end:]


def _front_matter(text: str) -> tuple[str, str, int]:
    """Split YAML front matter off; return its title, the rest and how many lines went."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return "", text, 0
    title = re.search(r"^title:[ \t]*(.+?)[ \t]*$", match.group(1), re.MULTILINE)
    return title.group(1).strip("\"'") if title else "", text[match.end() :], match.group().count("\n")


def fence_after(line: str, fence: str, above: str = "") -> str:
    """Return the code fence that is open after `line`, "" for none.

    Args:
        line: the line, without its end.
        fence: the fence that is open before it.
        above: the line above, where texts are not known to be Markdown: tildes right under words are then
            the underline of a heading.
    """
    match = _FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return "" if above.strip() and line.lstrip().startswith("~") else match.group(1)
    closes = match.group(1).startswith(fence) and not line.strip().strip(fence[0])
    return "" if closes else fence


def _markdown_heading(lines: list[str], row: int, levels: list[str]) -> Heading | None:
    """`# words`, or words underlined with = (level 1) or - (level 2)."""
    match = _ATX.match(lines[row])
    if match:
        return len(match.group(1)), clean_heading(match.group(2)), 1
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
    return levels.index(mark) + 1, clean_heading(words), height


def _plain_title(lines: list[str], row: int, levels: list[str]) -> Heading | None:
    """Take a plain text's first line for its title if it is short and a paragraph of its own."""
    words = lines[row].strip()
    if levels or not words:
        return None
    levels.append("title")  # only the first line that is not blank is asked
    alone = row + 1 < len(lines) and not lines[row + 1].strip()
    if not alone or len(words) > TITLE_CHARACTERS or words.endswith((".", ":", ",", ";")):
        return None
    return 1, clean_heading(words), 1


def clean_heading(heading: str) -> str:
    """Reduce a heading to its words: links to their text, no HTML tags, anchors or emphasis marks."""
    heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    heading = re.sub(r"<[^>]+>|\{#[^}]*\}|\*\*|``?", "", heading)
    return " ".join(heading.replace("\\", "").split())
