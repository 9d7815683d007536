"""Python source taken apart: what the docstring says, and the code without its docstrings."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from embedforge.documents.document import Described
from embedforge.documents.words import QUERY_CHARACTERS
from embedforge.text.words import shorten

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
Edit = tuple[int, int, bytes]
"""Bytes from, to, and what stands in their place."""

MINIMUM_WORDS = 4
"""A shorter docstring ("Return a copy.") does not say which function it belongs to."""
ENOUGH_WORDS = 8
"""A first paragraph with fewer words is joined by the second."""

_WORD = re.compile(r"[^\W\d_]{2,}")
_BOILERPLATE = re.compile(
    r"(see\b|same as\b|like\s+[\w.`:]+[.(]|alias (of|for)\b|deprecated\b|todo\b|not implemented\b|internal\b"
    r"|inherited\b|overrid\w+\b|implements? (the )?[\w.`:]*(interface|protocol|method|abc)\b|refer to\b)",
    re.IGNORECASE,
)
_END_OF_SUMMARY = re.compile(
    r"\s*(>>> |[:@](param|type|keyword|return|rtype|raise|var|ivar|cvar|arg)|\.\. \w|[-=~]{3,}\s*$"
    r"|\*{0,2}\w+ \([^)]*\)\s*:"
    r"|(args|arguments|params|parameters|keyword arguments|returns?|yields?|raises?|examples?|notes?"
    r"|usage|attributes|see also|references)\s*:{0,2}\s*$)",
    re.IGNORECASE,
)


def python_definitions(source: bytes) -> tuple[list[Described], Counter[str]]:
    """Return every documented function, class and method, and counts of what was passed over.

    Functions inside functions are part of their function. A class is represented by its outline: its own
    statements and the signatures of its methods, which are definitions themselves.

    Args:
        source: the file's bytes; an encoding declaration is honoured.

    Raises:
        SyntaxError, ValueError, RecursionError: not a Python file that this Python can parse.
    """
    text = decode_python(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(text)
    cutter = _Cutter(text)
    described: list[Described] = []
    counts: Counter[str] = Counter()
    for node, kind in _definitions(tree.body, "function"):
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            counts["definitions_undocumented"] += 1
            continue
        query = summary(docstring, node.name)
        if len(_WORD.findall(query)) < MINIMUM_WORDS:
            counts["docstrings_too_short"] += 1
        elif _BOILERPLATE.match(query):
            counts["docstrings_boilerplate"] += 1
        elif all(_is_stub(statement) for statement in node.body[1:]):
            counts["definitions_without_code"] += 1
        else:
            described.append(Described(query, cutter.code(node), node.lineno, kind))
    return described, counts


def summary(docstring: str, name: str) -> str:
    r"""Return what a docstring says in its first paragraph, or first two, on one line.

    A signature before it and anything from doctests, field lists and sections on is left out.

    >>> summary("walk(top) -> iterator\n\n    Walk the tree.\n\n    :param top: a node", "walk")
    'Walk the tree.'
    """
    text = _strip_signature(inspect.cleandoc(docstring), name)
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text)[:2]:
        lines = paragraph.split("\n")
        end = next((row for row, line in enumerate(lines) if _END_OF_SUMMARY.match(line)), len(lines))
        kept += " ".join(lines[:end]).split()
        if end < len(lines) or len(_WORD.findall(" ".join(kept))) >= ENOUGH_WORDS:
            break
    return shorten(" ".join(kept).rstrip(": "), QUERY_CHARACTERS, at=" ")


def _strip_signature(text: str, name: str) -> str:
    """Drop "name(args) -> result" before a summary, as docstrings of C extensions have it."""
    if f"{name}(" not in text:
        return text
    call = rf"(?:[\w.]+\.)?{re.escape(name)}\([^()]*(?:\([^()]*\)[^()]*)*\)"
    signature = rf"{call}(?:\s*->[^\n.:]*?)?[ ]*(?:--?[ ]|:|\.[ ]|\n|$)\s*"
    return re.sub(rf"\A(?:{signature})+", "", text)


def decode_python(source: bytes) -> str:
    r"""Decode Python source as its coding line says, UTF-8 without one; line ends become "\n".

    Raises:
        SyntaxError, ValueError: an unknown encoding, or bytes that are not in it.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return source.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _definitions(
    body: Sequence[ast.stmt], kind: Literal["function", "method"]
) -> Iterator[tuple[Definition, Literal["function", "method", "class"]]]:
    """Walk functions, classes and their methods, also those under `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, Function):
            yield node, kind
        elif isinstance(node, ast.ClassDef):
            yield node, "class"
            yield from _definitions(node.body, "method")
        else:
            for block in ("body", "orelse", "finalbody"):
                yield from _definitions(getattr(node, block, []), kind)
            for handler in getattr(node, "handlers", []):
                yield from _definitions(handler.body, kind)


def _is_stub(node: ast.stmt) -> bool:
    """Tell a statement without content: pass, ..., a bare string, raise NotImplementedError."""
    if isinstance(node, ast.Raise):
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(error, ast.Name) and error.id == "NotImplementedError"
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


class _Cutter:
    """Cuts definitions out of a file's text by the positions in its syntax tree, which count bytes."""

    def __init__(self, text: str) -> None:
        self._bytes = text.encode("utf-8")
        self._lines = [0]
        for line in self._bytes.split(b"\n"):
            self._lines.append(self._lines[-1] + len(line) + 1)

    def code(self, node: Definition) -> str:
        """Return a definition's source as it stands in the file, dedented, without docstrings."""
        start, end = self._span(node)
        start = self._lines[_first_line(node) - 1]
        pieces: list[bytes] = []
        for cut_from, cut_to, replacement in sorted(self._edits(node)):
            pieces += [self._bytes[start:cut_from], replacement]
            start = cut_to
        pieces.append(self._bytes[start:end])
        code = b"".join(pieces).decode("utf-8")
        margin = re.compile(rf"^[ \t]{{1,{node.col_offset}}}", re.MULTILINE) if node.col_offset else None
        return (margin.sub("", code) if margin else code).strip("\n")

    def _edits(self, node: Definition) -> Iterator[Edit]:
        """Docstrings go, nested ones as well; in a class the bodies of methods become "..."."""
        if isinstance(node, ast.ClassDef):
            if ast.get_docstring(node, clean=False) is not None:
                yield self._without_docstring(node)
            for member in node.body:
                if isinstance(member, Function):
                    yield (*self._span(*member.body), b"...")
                elif isinstance(member, ast.ClassDef):
                    yield from self._edits(member)
            return
        for inner in ast.walk(node):
            if isinstance(inner, Definition) and ast.get_docstring(inner, clean=False) is not None:
                yield self._without_docstring(inner)

    def _without_docstring(self, node: Definition) -> Edit:
        """Cut the docstring with its line's indentation and the blank lines after it."""
        start, end = self._span(node.body[0])
        if len(node.body) == 1:
            return start, end, b"..."
        after = re.compile(rb"[ \t]*;?[ \t]*(\n([ \t]*\n)*)?").match(self._bytes, end)
        assert after is not None
        line = self._bytes.rfind(b"\n", 0, start) + 1
        if after.group(1) and not self._bytes[line:start].strip():
            start = line
            return start, after.end(), b""
        return start, end if after.group(1) else after.end(), b""

    def _span(self, *nodes: ast.stmt) -> tuple[int, int]:
        first, last = nodes[0], nodes[-1]
        start = self._lines[_first_line(first) - 1] + first.col_offset
        return start, self._lines[(last.end_lineno or 0) - 1] + (last.end_col_offset or 0)


def _first_line(node: ast.stmt) -> int:
    """Return the line a statement starts on, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
