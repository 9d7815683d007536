"""Definitions of Python source: what the docstring says, and the code without it."""

from __future__ import annotations

import ast
import textwrap
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedforge.documents.document import Described
from embedforge.documents.python_source import python_definitions, summary

SOURCE = '''
import functools

@functools.cache
def area(width, height):  # in metres
    """Return the area of a rectangle.

    >>> area(2, 3)
    6
    """

    # a comment that stays
    return width * height

class Shape(Base):
    """A closed figure in the plane."""

    sides = 4

    def é(self):
        """Say what the letter é stands for here.

        Args:
            self: this
        """
        def inner():
            """Not a unit, and not shown."""
            return "é" ; return None
        return inner

    async def draw(self, *, colour): "Draw the figure in a colour."; await paint(colour)

    class Corner:
        """Where two sides of a figure meet."""
        x = 0

if area:
    try:
        def conditional():
            """Exist only under a condition."""
            yield 1
    except ImportError:
        pass

def stub():
    """Promise something for a later day."""
    raise NotImplementedError("later")

def undocumented():
    return 1

def short():
    """Too short."""
    return 1
'''


def described(source: str | bytes) -> list[Described]:
    return python_definitions(source.encode() if isinstance(source, str) else source)[0]


def test_every_documented_definition_is_described_without_its_docstring():
    units = {unit.description: unit for unit in described(SOURCE)}
    assert units["Return the area of a rectangle."].code == (
        "@functools.cache\ndef area(width, height):  # in metres\n"
        "    # a comment that stays\n    return width * height"
    )
    assert units["Say what the letter é stands for here."].code == (
        'def é(self):\n    def inner():\n        return "é" ; return None\n    return inner'
    )
    assert units["Draw the figure in a colour."].code == (
        "async def draw(self, *, colour): await paint(colour)"
    )
    assert units["Exist only under a condition."].code == "def conditional():\n    yield 1"
    assert len(units) == 6
    assert Counter(unit.kind for unit in units.values()) == {"function": 2, "method": 2, "class": 2}


def test_a_class_is_its_outline():
    (outline,) = (unit.code for unit in described(SOURCE) if unit.description.startswith("A closed"))
    assert outline == (
        "class Shape(Base):\n    sides = 4\n\n    def é(self):\n        ...\n\n"
        "    async def draw(self, *, colour): ...\n\n    class Corner:\n        x = 0"
    )


def test_what_is_passed_over_is_counted():
    assert python_definitions(SOURCE.encode())[1] == {
        "definitions_undocumented": 1,
        "docstrings_too_short": 1,
        "definitions_without_code": 1,
    }


def test_a_definition_has_its_line():
    lines = {unit.description: unit.line for unit in described(SOURCE)}
    assert lines["Return the area of a rectangle."] == 5


def test_other_encodings_and_line_ends_are_read():
    latin = '# coding: latin-1\r\ndef f():\r\n    """Return the letter é in Latin."""\r\n    return "é"\r\n'
    (unit,) = described(latin.encode("latin-1"))
    assert unit.description == "Return the letter é in Latin."
    assert unit.code == 'def f():\n    return "é"'


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        (
            "Copy the whole file over there.\n\nSecond paragraph.",
            "Copy the whole file over there. Second paragraph.",
        ),
        (
            "Copy a file to another place and keep the mode bits.\n\nMore.",
            "Copy a file to another place and keep the mode bits.",
        ),
        ("f(a, b=(1, 2)) -> int\n\nAdd two numbers.", "Add two numbers."),
        ("f(a,\n  b) -- add two numbers", "add two numbers"),
        ("module.f(a) -> int.  Add one.", "Add one."),
        ("f(a) adds one to a.", "f(a) adds one to a."),
        ("Add numbers.\n:param a: one\n:return: sum", "Add numbers."),
        ("Add numbers::\n\n    >>> f(1)\n", "Add numbers"),
        ("Add.\n\nParameters\n----------\na : int", "Add."),
        ("hidden_states (`Tensor`): the input", ""),
    ],
)
def test_summaries_say_what_is_done(docstring: str, query: str):
    assert summary(docstring, "f") == query


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["x = 'é'", "# ü", "", "if x:\n    pass", "def g():\n  '''Doc.'''\n  return 'ß'"])
    ),
    st.sampled_from(["    ", "\t", "  "]),
    st.sampled_from(["Return some four words.", "Say é and ß and ü and more.\n\nMore."]),
)
def test_a_unit_is_code_that_compiles_to_the_function_without_docstrings(body, indent, docstring):
    code = "\n".join([f'"""{docstring}"""', *body, "return 1"])
    source = f"class A:\n{indent}def f(self):\n{textwrap.indent(code, indent * 2)}"
    (unit,) = described(source)
    expected = ast.parse(source).body[0].body[0]
    for node in ast.walk(expected):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    assert ast.dump(ast.parse(unit.code).body[0]) == ast.dump(expected)
