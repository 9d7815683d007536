"""Texts to measure with: passages of the docstrings in Python's library; nothing is downloaded."""

from __future__ import annotations

import ast
import os
import random
import warnings
from functools import cache
from pathlib import Path


def passages(count: int, words: int = 110, seed: int = 0) -> list[str]:
    """Passages with lengths spread as those of real ones: median `words`, from 10 to 4 times that."""
    draw = random.Random(seed)
    stream = _words()
    made: list[str] = []
    start = draw.randrange(len(stream))
    for _ in range(count):
        length = min(4 * words, max(10, int(draw.lognormvariate(0, 0.6) * words)))
        if start + length > len(stream):
            start = draw.randrange(100)
        made.append(" ".join(stream[start : start + length]))
        start += length
    return made


@cache
def _words() -> list[str]:
    found: list[str] = []
    for file in sorted(Path(os.__file__).parent.glob("*.py")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found += (ast.get_docstring(node) or "").split()
    return found
