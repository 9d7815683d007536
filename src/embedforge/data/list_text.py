"""Texts that a list was turned into: what pandas writes into a cell of a CSV file, or `str` makes of one."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

_PRINTED = re.compile(r"(?:array\()?\[\s*(['\"]).*\1\s*\](?:(?:,\s*dtype=[^()]+)?\))?", re.DOTALL)
"""Also what NumPy writes: items without commas, and arrays within arrays."""
_BRACKETS = {("[", "]"), ("{", "}"), ("(", ")")}
OPENINGS = ("[", "{", "(", "array(")


def text_of_list(cell: str) -> bool:
    """Say whether a text is one that a list of texts was turned into, by JSON, Python or NumPy.

    >>> [text_of_list(text) for text in ('["a"]', "['a', 'b']", "['a' 'b']", "('a', 'b')", "{'a'}")]
    [True, True, True, True, True]
    >>> [text_of_list(text) for text in ("[1] Smith", "[sic]", "(1, 2)", '("Yes," he said)', "{'a': 1}")]
    [False, False, False, False, False]
    """
    text = cell.strip()
    if _PRINTED.fullmatch(text):
        return True
    value = literal(text)
    return isinstance(value, list) or (
        isinstance(value, tuple | set) and all(isinstance(item, str) for item in value)
    )


def literal(text: str) -> Any:
    """Return the list, tuple, set or mapping that a text is in Python, else None."""
    if (text[:1], text[-1:]) not in _BRACKETS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a backslash in the text
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
