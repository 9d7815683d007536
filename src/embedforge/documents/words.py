"""Counting words that say something, in scripts with spaces and without."""

from __future__ import annotations

import re

QUERY_CHARACTERS = 500
"""A longer question is cut."""

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana and Han: scripts that put no space between words."""

_WORD = re.compile(rf"[{UNSPACED}]{{2}}|[^\W\d_{UNSPACED}]{{2,}}")


def count_words(text: str) -> int:
    """Count words of two letters or more; in a script without spaces every two characters are a word.

    >>> count_words("a word, and more"), count_words("今日は天気がいい")
    (3, 4)
    """
    return len(_WORD.findall(text))
