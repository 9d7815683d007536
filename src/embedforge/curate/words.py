"""How curation sees a text: its words, what makes two texts equal, and its n-grams as numbers."""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Scripts without spaces between words: one character counts as a word.
_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CHARACTER}]|[^\W{_CHARACTER}]+")
_FACTOR = 0x9E3779B97F4A7C15


def words_of(text: str) -> list[str]:
    """Return the words, lower case, without punctuation; of Chinese, Japanese and Korean the characters.

    >>> words_of("Paris, in 1815: 東京!")
    ['paris', 'in', '1815', '東', '京']
    """
    return _WORD.findall(text.lower())


def normalized(text: str) -> str:
    """Return the words with one space between: equal for texts that differ in case, space or punctuation.

    A text without a word stands for itself, without the white space round it.
    """
    return " ".join(words_of(text)) or text.strip()


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
