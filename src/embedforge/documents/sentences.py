"""Where sentences end, and the sentences and short passages of a text: what SimCSE trains on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from embedforge.documents.headings import clean_heading, fence_after
from embedforge.documents.words import count_words

MINIMUM_WORDS = 4
"""A shorter sentence is joined with the next of its paragraph; alone it says too little to embed."""
SENTENCE_CHARACTERS = 500
"""A longer sentence is cut: it is a list or a table."""
FEWEST_LETTERS = 0.5
"""A smaller share of letters is numbers, a formula or ASCII art."""
MOST_SIGNS = 0.2
"""A larger share of signs (neither letters, digits nor space) is code."""

_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s)|[。！？｡][」』”’）]*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[^\W\d_]|e\.g|i\.e|cf|vs|al|approx|ca|dr|mr|mrs|ms|prof|st|fig|figs|eq|eqs|vol|pp"
    r"|jr|sr|eds|resp|bzw|z\. ?b|d\. ?h|u\. ?a|usw|nr|abb|p\. ?ex))\.$",
    re.IGNORECASE,
)
_ITEM = re.compile(r"\s*(?:[-*+•‣]|\d{1,3}[.)])\s+|\s*#{1,6}\s|\s*>\s?")
_NOT_PROSE = re.compile(r"\s*(?:\.\. |\||:\w+:(?=\s|$)|([-=~^*#+_`\"'.])\1{2,}\s*$)")
_ROLE = re.compile(r":[\w:+-]+:`([^`<]*?)(?:\s*<[^>`]*>)?`")
_BETWEEN_HAN = re.compile(r"(?<=[\u3040-\u30ff\u3400-\u9fff，、。！？])\s+(?=[\u3040-\u30ff\u3400-\u9fff])")
_LETTER = re.compile(r"[^\W\d_]")
_SIGN = re.compile(r"[^\w\s]|_")


def sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Yield the positions in `text[start:end]` just after a sentence.

    A full stop ends one unless it belongs to an abbreviation or a lower-case letter follows; the full stops
    of Chinese and Japanese end one wherever they stand.
    """
    for match in _END.finditer(text, start, end):
        mark = match.group()[0]
        if mark in ".…":
            after = text[match.end() : min(match.end() + 8, end)].lstrip()[:1]
            if after.islower():
                continue
            if mark == "." and _ABBREVIATION.search(text, max(start, match.start() - 8), match.start() + 1):
                continue
        yield match.end()


def sentences(text: str) -> list[str]:
    r"""Return the sentences of a piece of prose, each on one line, without marks of Markdown or rst.

    Code fences, tables, directives and lines of punctuation are left out. A sentence of fewer than 4 words
    is joined with its neighbour in the paragraph, and left out where there is none; one of more than 500
    characters is cut.

    >>> sentences("# On doors\n\nNo. See `open`: it *opens* the door. It never closes, e.g. at night.")
    ['No. See open: it opens the door.', 'It never closes, e.g. at night.']
    """
    texts: list[str] = []
    for paragraph in _paragraphs(text):
        texts += _joined(_split(paragraph))
    return texts


def cut_span(text: str, start: int, end: int, most: int, boundaries: Sequence[re.Pattern[str] | None]) -> int:
    """Return where to cut `text[start:end]` so that the first part has at most `most` characters.

    The last position in the second half of what fits where the first of `boundaries` ends that is there at
    all; None stands for the end of a sentence. Where there is none, a word is cut.
    """
    low, high = start + most // 2, min(start + most, end)
    for boundary in boundaries:
        ends = sentence_ends(text, low, high) if boundary is None else _ends(boundary, text, low, high)
        last = max(ends, default=0)
        if last:
            return last
    return high


def _ends(boundary: re.Pattern[str], text: str, low: int, high: int) -> Iterator[int]:
    return (match.end() for match in boundary.finditer(text, low, high))


SPACE = re.compile(r"\s(?=\S)")


def _paragraphs(text: str) -> Iterator[str]:
    """Join the lines of each paragraph, list item and heading; leave out what is not prose."""
    lines: list[str] = []
    fence = above = ""
    for line in text.split("\n"):
        before, fence = fence, fence_after(line, fence, above)
        above = line
        item = _ITEM.match(line)
        if before or fence or not line.strip() or _NOT_PROSE.match(line):
            line = ""
        if lines and (not line or item):
            yield _plain(lines)
            lines = []
        if line:
            lines.append(line[item.end() :] if item else line)
            if item and line.lstrip().startswith("#"):
                yield _plain(lines)
                lines = []
    if lines:
        yield _plain(lines)


def _plain(lines: list[str]) -> str:
    text = _ROLE.sub(r"\1", " ".join(lines))
    text = re.sub(r"(?<![\w*])\*(?=\S)([^*]+)(?<=\S)\*(?![\w*])", r"\1", clean_heading(text))
    return _BETWEEN_HAN.sub("", text)


def _split(paragraph: str) -> Iterator[str]:
    start = 0
    for end in (*sentence_ends(paragraph, 0, len(paragraph)), len(paragraph)):
        while end - start > SENTENCE_CHARACTERS:
            cut = cut_span(paragraph, start, end, SENTENCE_CHARACTERS, [SPACE])
            yield paragraph[start:cut].strip()
            start = cut
        yield paragraph[start:end].strip()
        start = end


def _joined(parts: Iterator[str]) -> list[str]:
    """Join sentences that are too short with the next, the last with the one before."""
    joined: list[str] = []
    waiting = ""
    for part in filter(None, parts):
        together = _BETWEEN_HAN.sub("", f"{waiting} {part}".strip())
        waiting = together if len(together) <= SENTENCE_CHARACTERS else part
        if count_words(waiting) >= MINIMUM_WORDS:
            joined.append(waiting)
            waiting = ""
    if waiting and joined and len(joined[-1]) + len(waiting) < SENTENCE_CHARACTERS:
        joined[-1] = _BETWEEN_HAN.sub("", f"{joined[-1]} {waiting}")
    return [text for text in joined if _is_prose(text)]


def _is_prose(text: str) -> bool:
    letters, signs = len(_LETTER.findall(text)), len(_SIGN.findall(text))
    return letters >= FEWEST_LETTERS * len(text) and signs <= MOST_SIGNS * len(text)
