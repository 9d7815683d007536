"""What the words of a text are, and how a text is cut short."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from typing import NamedTuple

# Scripts without spaces between words: one character counts as a word, with the marks that it bears.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
_SOUTH_EAST = ((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800))
"""Thai and Lao, Burmese, Khmer."""
_MARKUP = "|~^`"
"""Symbols by their Unicode category, which Markdown and tables use as punctuation."""


class _Patterns(NamedTuple):
    """What words, and words and symbols, look like."""

    words: re.Pattern[str]
    words_and_symbols: re.Pattern[str]
    hidden: re.Pattern[str] | None
    """Characters that do not show: soft hyphens, joiners, byte order marks, variation selectors."""


_ASCII = _Patterns(re.compile("[a-z0-9]+"), re.compile("[a-z0-9]+#?|[$+<=>%]+"), None)


@functools.cache
def _unicode() -> _Patterns:
    r"""Build the patterns for any text; `re` has no classes for Unicode's categories.

    Letters and symbols are listed for the first plane, where `re` finds them in a table; of the others `\w`
    knows the letters, and the emoji stand together.
    """
    selectors = range(0xFE00, 0xFE10)
    kinds = ["" if code in selectors else unicodedata.category(chr(code)) for code in range(0x10000)]
    cjk = re.compile(f"[{_CJK}]")
    alone = [False] * len(kinds)
    marks = [False] * len(kinds)
    for first, after in _SOUTH_EAST:
        alone[first:after] = [kind.startswith("L") for kind in kinds[first:after]]
        marks[first:after] = [kind.startswith("M") for kind in kinds[first:after]]
    letters = _ranges(
        [
            kind[:1] in tuple("LMN") and not single and not cjk.match(chr(code))
            for code, (kind, single) in enumerate(zip(kinds, alone, strict=True))
        ]
    )
    symbols = _ranges([kind in ("Sm", "Sc", "So") and chr(c) not in _MARKUP for c, kind in enumerate(kinds)])
    hidden = _ranges([kind in ("", "Cf") for kind in kinds])
    characters = f"[{_CJK}]|[{_ranges(alone)}][{_ranges(marks)}]*"
    words = rf"{characters}|(?:[{letters}]+|[^\W\x00-\uffff{_CJK}])+"
    return _Patterns(
        re.compile(words),
        re.compile(f"(?:{words})#?|[%{symbols}\U0001f000-\U0001faff]+"),
        re.compile(f"[{hidden}\U000e0000-\U000e0fff]+"),
    )


def _ranges(belongs: list[bool]) -> str:
    """Return the inside of a character class of the characters with these numbers."""
    steps = itertools.pairwise([False, *belongs, False])
    edges = [code for code, (before, now) in enumerate(steps) if before != now]
    return "".join(
        f"{re.escape(chr(first))}-{re.escape(chr(after - 1))}"
        for first, after in zip(edges[::2], edges[1::2], strict=True)
    )


def _prepared(text: str) -> tuple[str, _Patterns]:
    """Return the text in one case and one way to write each character, and what its words look like."""
    if text.isascii():
        return text.lower(), _ASCII
    patterns = _unicode()
    assert patterns.hidden is not None
    return unicodedata.normalize("NFKC", patterns.hidden.sub("", text)).casefold(), patterns


def words_of(text: str) -> list[str]:
    """Return the words, lower case, without punctuation; of scripts without spaces the characters.

    A word is a run of letters, digits and their marks: vowel signs and accents belong to it, however they are
    encoded. Of Chinese, Japanese, Korean, Thai, Lao, Burmese and Khmer each character counts as a word.
    Characters that do not show, such as soft hyphens, are passed over.

    >>> words_of("Paris, in 1815: 東京!")
    ['paris', 'in', '1815', '東', '京']
    """
    plain, patterns = _prepared(text)
    return patterns.words.findall(plain)


def words_and_symbols_of(text: str) -> list[str]:
    """Return the words as `words_of` does, and runs of symbols between them.

    Symbols are those of mathematics and currencies, emoji, %, and # after a word. Where two texts are to be
    one for good, as duplicates are, 1 + 1 is not 1 = 1.

    >>> words_and_symbols_of("C++, or C#?")
    ['c', '++', 'or', 'c#']
    """
    plain, patterns = _prepared(text)
    return patterns.words_and_symbols.findall(plain)


def shorten(text: str, most: int, *, at: str = "", mark: str = "") -> str:
    """Return a text of at most `most` characters as it is, of a longer one the beginning.

    Args:
        text: to be cut.
        most: characters that are kept.
        at: cut at the last of these if there is one in the second half; "" for anywhere.
        mark: follows what was cut, for a reader; " …" is usual.

    >>> shorten("one two three", 9, at=" "), shorten("one two three", 9, mark=" …")
    ('one two', 'one two t …')
    """
    if len(text) <= most:
        return text
    end = text.rfind(at, most // 2, most + 1) if at else most
    cut = text[: end if end > 0 else most]
    return cut.rstrip() + mark if mark else cut
