"""What the words of a text are, what makes two texts equal, and n-grams of words as numbers."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Scripts without spaces between words: one character counts as a word.
_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
_MARKUP = "|~^`"
"""Symbols by their Unicode category, which Markdown and tables use as punctuation."""
_FACTOR = 0x9E3779B97F4A7C15


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
    kinds = ["" if place in selectors else unicodedata.category(chr(place)) for place in range(0x10000)]
    apart = re.compile(f"[{_CHARACTER}]")
    letters = _ranges([kind[:1] in tuple("LMN") and not apart.match(chr(c)) for c, kind in enumerate(kinds)])
    symbols = _ranges([kind in ("Sm", "Sc", "So") and chr(c) not in _MARKUP for c, kind in enumerate(kinds)])
    hidden = _ranges([kind in ("", "Cf") for kind in kinds])
    words = rf"[{_CHARACTER}]|(?:[{letters}]+|[^\W\x00-\uffff{_CHARACTER}])+"
    return _Patterns(
        re.compile(words),
        re.compile(f"(?:{words})#?|[%{symbols}\U0001f000-\U0001faff]+"),
        re.compile(f"[{hidden}\U000e0000-\U000e0fff]+"),
    )


def _ranges(belongs: list[bool]) -> str:
    """Return the inside of a character class of the characters with these numbers."""
    edges = [
        place for place, pair in enumerate(itertools.pairwise([False, *belongs, False])) if pair[0] != pair[1]
    ]
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
    """Return the words, lower case, without punctuation; of Chinese, Japanese and Korean the characters.

    A word is a run of letters, digits and their marks: vowel signs and accents belong to it, however they are
    encoded. Characters that do not show, such as soft hyphens, are passed over.

    >>> words_of("Paris, in 1815: 東京!")
    ['paris', 'in', '1815', '東', '京']
    """
    plain, patterns = _prepared(text)
    return patterns.words.findall(plain)


def normalized(text: str) -> str:
    """Return the words with one space between: equal for texts that differ in case, space or punctuation.

    A text without a word stands for itself, without the white space round it.
    """
    return " ".join(words_of(text)) or text.strip()


def words_and_symbols_of(text: str) -> list[str]:
    """Return the words as `words_of` does, and runs of symbols between them; none of a text without a word.

    Symbols are those of mathematics and currencies, emoji, %, and # after a word. Where two texts are to be
    one for good, as duplicates are, 1 + 1 is not 1 = 1.

    >>> words_and_symbols_of("C++, or C#?")
    ['c', '++', 'or', 'c#']
    """
    plain, patterns = _prepared(text)
    found = patterns.words_and_symbols.findall(plain)
    return found if patterns.words.search(plain) else []


def canonical(text: str) -> str:
    """Return the words and symbols with one space between: as `normalized`, but C++, C# and C differ."""
    plain, patterns = _prepared(text)
    return " ".join(patterns.words_and_symbols.findall(plain)) or text.strip()


def text_hash(text: str) -> int:
    """Return 64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


class NgramHasher:
    """Turns a text into the hashes of its n-grams of words.

    A word is hashed once and remembered. An n-gram's hash is a polynomial in its words' hashes, modulo 2^64:
    among a billion n-grams there are two with one hash with a probability of about 3 %.
    """

    def __init__(self, words: int) -> None:
        self.words = words
        self._known: dict[str, int] = {}
        powers = [pow(_FACTOR, place, 2**64) for place in range(words)]
        self._powers = np.array(powers, dtype=np.uint64)

    def hashes(self, words: list[str]) -> Hashes:
        """Return the hash of every n-gram, in order: uint64 [max(0, words - n + 1)]."""
        runs = len(words) - self.words + 1
        if runs <= 0:
            return np.empty(0, dtype=np.uint64)
        known = self._known
        for word in words:
            if word not in known:
                known[word] = text_hash(word)
        ids = np.array([known[word] for word in words], dtype=np.uint64)
        total = np.zeros(runs, dtype=np.uint64)
        for place in range(self.words):
            total += ids[place : place + runs] * self._powers[place]
        return total
