"""The part of a text that a hit is shown by, with the query's words in it."""

from __future__ import annotations

from collections import Counter

from embedforge.lexical import word_spans, words_and_identifiers
from embedforge.search.document import Snippet

CHARACTERS = 300
_BEFORE = 60
"""Characters that are shown before the first word, at most."""


def snippet_of(text: str, query: str, characters: int = CHARACTERS) -> Snippet:
    """Return the part of `text` that holds the most of the query's words, or its beginning without any.

    It begins and ends between words. Words are compared as BM25 does: in small letters, without stop words,
    and `lines` is found in `read_lines`.

    >>> found = snippet_of("It opens a file. " * 20 + "read_lines returns the lines of a file.", "lines", 60)
    >>> [found.text[start:end] for start, end in found.matches]
    ['lines']
    """
    wanted = set(words_and_identifiers(query))
    found = [(start, end, word) for word, start, end in word_spans(text) if word in wanted]
    start = 0 if len(text) <= characters else _best_start(found, characters)
    start, end = _between_words(text, start, characters)
    part = text[start:end]
    left = len(part) - len(part.lstrip())
    shown = part.strip()
    start += left
    end = start + len(shown)
    spans = [(a - start, b - start) for a, b, _ in found if a >= start and b <= end]
    before, after = bool(text[:start].strip()), bool(text[end:].strip())
    return Snippet(shown, _joined(spans), cut_before=before, cut_after=after)


def _best_start(found: list[tuple[int, int, str]], characters: int) -> int:
    """Slide a window over the matches; of those with as many different words, the first."""
    best, best_start, first = (0, 0), 0, 0
    inside: Counter[str] = Counter()
    for _, end, word in found:
        inside[word] += 1
        while end - found[first][0] > characters - _BEFORE and first < len(found) - 1:
            inside[found[first][2]] -= 1
            inside += Counter()  # drops what is no longer there
            first += 1
        if (len(inside), inside.total()) > best:
            best, best_start = (len(inside), inside.total()), found[first][0]
    return max(0, best_start - _BEFORE)


def _between_words(text: str, start: int, characters: int) -> tuple[int, int]:
    """Move a window's ends to white space, unless there is none near."""
    if start > 0:
        line = text.find("\n", start, start + _BEFORE)
        space = text.find(" ", start, start + _BEFORE)
        start = next((at + 1 for at in (line, space) if at >= 0), start)
    end = min(len(text), start + characters)
    if end < len(text):
        space = max(text.rfind(" ", end - _BEFORE, end), text.rfind("\n", end - _BEFORE, end))
        end = space if space > start else end
    return start, end


def _joined(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join spans that overlap: identifiers and their parts, pairs of characters."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)
