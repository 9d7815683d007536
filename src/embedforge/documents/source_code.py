"""Source code in languages that are not parsed: a comment above a definition describes it.

Nothing is known of a language but its comments. A definition is what follows a block of comment lines
without a blank line between, up to where its indentation ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from embedforge.documents.document import Described
from embedforge.documents.words import QUERY_CHARACTERS, count_words
from embedforge.text.words import shorten

SLASHES = re.compile(r"\s*(//|/\*|\*)")
HASHES = re.compile(r"\s*#(?!!)")
DASHES = re.compile(r"\s*(--|/\*|\*)")
PERCENTS = re.compile(r"\s*%")
SEMICOLONS = re.compile(r"\s*;")

_WITH_SLASHES = (
    ".js .mjs .cjs .jsx .ts .tsx .java .go .rs .c .h .cc .cpp .cxx .hpp .hh .cs .kt .kts .swift .scala .php"
    " .dart .groovy .m .mm .zig .proto .cu .cuh .glsl .v .sv"
)
_WITH_HASHES = ".py .rb .sh .bash .zsh .pl .pm .r .jl .ex .exs .nim .tcl .ps1 .cmake .mk"
_WITH_DASHES = ".sql .lua .hs .elm .ada .adb .ads .vhd .vhdl"
_WITH_SEMICOLONS = ".lisp .el .clj .scm .rkt .asm"
COMMENTS = {
    ".erl": PERCENTS,
    **dict.fromkeys(_WITH_SLASHES.split(), SLASHES),
    **dict.fromkeys(_WITH_HASHES.split(), HASHES),
    **dict.fromkeys(_WITH_DASHES.split(), DASHES),
    **dict.fromkeys(_WITH_SEMICOLONS.split(), SEMICOLONS),
}
"""How a line of comment begins, by suffix."""

LINE_CHARACTERS = 400
"""Longer lines on average are minified or generated."""
MINIMUM_WORDS = 4
FEWEST_LINES = 3
"""Of a definition: a shorter one is a constant or a declaration."""

_DECORATION = re.compile(r"^\s*(?:/\*+!?|\*+/|\*|//+[/!]?|#+[:']?|--+\|?|%+|;+)?\s?|\s*\*+/\s*$")
_BRIEF = re.compile(r"[@\\](?:brief|summary|description)\s+|</?summary>")
_TAG = re.compile(r"[@\\]\w|```|#+\s|<(?:param|returns|remarks|para)\b")
_NOT_DESCRIBING = re.compile(
    r"copyright|licen[cs]e|spdx|todo|fixme|eslint|nolint|noqa|generated|coding[:=]|@ts-|#region|vim:",
    re.IGNORECASE,
)
_NOT_DEFINING = re.compile(
    r"\s*(?:import|from|use|using|package|require|include|#include|#if|#define|module\.exports|return|if|else"
    r"|for|while|do|switch|try|case|namespace)\b"
)
_CLOSING = re.compile(r"\s*(?:[)\]}]|end\b|\{\s*$)")
_LAST = re.compile(r"\s*(?:\}|end\b)")


def is_generated(text: str) -> bool:
    """Tell minified code, tables and bundles by the length of their lines."""
    return len(text) > LINE_CHARACTERS * (text.count("\n") + 1)


def described_code(text: str, comment: re.Pattern[str]) -> list[Described]:
    """Return the definitions that have a comment right above them, without it.

    Args:
        text: the file's text.
        comment: how a line of comment begins, from `COMMENTS`.
    """
    lines = text.split("\n")
    described: list[Described] = []
    for first, code in _comment_blocks(lines, comment):
        description = _words(lines[first:code])
        if count_words(description) < MINIMUM_WORDS or _NOT_DESCRIBING.search(description):
            continue
        end = _definition_end(lines, code)
        if end - code >= FEWEST_LINES and not _NOT_DEFINING.match(lines[code]):
            body = _dedented(lines[code:end])
            described.append(Described(description, body, code + 1, "definition"))
    return described


def _comment_blocks(lines: Sequence[str], comment: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Yield the first row of each block of comment that stands right above code, and the code's row."""
    first = -1
    closed = True  # outside /* ... */
    for row, line in enumerate(lines):
        if not closed or comment.match(line):
            first = row if first < 0 else first
            opens = closed and line.lstrip().startswith("/*")
            if opens or not closed:
                closed = "*/" in (line.lstrip()[2:] if opens else line)
            continue
        if first >= 0 and line.strip():
            yield first, row
        first = -1


def _definition_end(lines: Sequence[str], start: int) -> int:
    """Return the row after a definition: where a line stands no deeper than its first and closes nothing."""
    margin = _indentation(lines[start])
    end = start + 1
    for row in range(start + 1, len(lines)):
        line = lines[row]
        if line.strip() and _indentation(line) <= margin:
            if not _CLOSING.match(line) or _indentation(line) < margin:
                break
            end = row + 1
            if _LAST.match(line):
                break
        elif line.strip():
            end = row + 1
    return end


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _dedented(lines: Sequence[str]) -> str:
    margin = _indentation(lines[0])
    return "\n".join(line[min(margin, _indentation(line)) :].rstrip() for line in lines)


def _words(comment: Sequence[str]) -> str:
    """Return what a comment says before its tags, on one line."""
    said: list[str] = []
    for line in comment:
        words = _BRIEF.sub("", _DECORATION.sub("", line)).strip()
        if _TAG.match(words) or (said and not words):
            break
        if words and not set(words) <= set("-=*#/~_ "):
            said.append(words)
    return shorten(" ".join(" ".join(said).split()), QUERY_CHARACTERS, at=" ")
