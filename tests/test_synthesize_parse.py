"""Language models' answers, in all the forms that they come in."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedforge.synthesize.parse import UnreadableError, parse_object, parse_tasks


@pytest.mark.parametrize(
    "answer",
    [
        '{"a": "x", "b": "y"}',
        'Here it is:\n```json\n{"a": "x", "b": "y"}\n```\nEnjoy {it}!',
        '[{"a": "x", "b": "y"}]',
        '{"example": {"a": "x", "b": "y"}}',
        '{"a": "x", "b": "y",}',
        "{'a': 'x', 'b': 'y'}",
        '<think>maybe {"a": "no", "b": "no"}</think>{"a": " x ", "b": "y", "c": 1}',
        'reasoning without a beginning {"a": 1} </think> {"a": "x", "b": "y"}',
        'First {"a": "half"} then {"a": "x", "b": "y"}',
        '"title": {"a": "x", "b": "y"',
    ],
)
def test_objects_are_found_whatever_is_around_them(answer):
    if answer.endswith("}") or "```" in answer or answer.endswith("]"):
        assert parse_object(answer, ("a", "b")) == {"a": "x", "b": "y"}
    else:
        with pytest.raises(UnreadableError):
            parse_object(answer, ("a", "b"))


def test_strings_keep_commas_brackets_and_line_ends():
    assert parse_object('{"a": "one,] two,}\nthree", }', ("a",)) == {"a": "one,] two,}\nthree"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "does not parse"),
        ("no JSON", "does not parse"),
        ('{"a": "x"', "does not parse"),
        ('["a", "b"]', "does not parse"),
        ('{"a": "x"}', "missing fields"),
        ('{"a": "x", "b": ["y"]}', "wrong types"),
        ('{"a": "x", "b": true}', "wrong types"),
        ('{"a": "x", "b": "  "}', "empty fields"),
    ],
)
def test_what_cannot_be_read_says_why(answer, reason):
    with pytest.raises(UnreadableError) as caught:
        parse_object(answer, ("a", "b"))
    assert caught.value.reason == reason


def test_half_a_surrogate_pair_becomes_text():
    (text,) = parse_object('{"a": "x\\ud83d"}', ("a",)).values()
    assert text.encode("utf-8")


@given(st.text(max_size=200))
def test_any_answer_is_read_or_refused(answer):
    with contextlib.suppress(UnreadableError):
        assert parse_object(answer, ("a",))["a"]
    assert all(" " in task or not task.isascii() for task in parse_tasks(answer))


TWO = ["Given a dog, find its owner.", "Given a cat, find its prey."]


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(TWO),
        json.dumps({"tasks": TWO}),
        json.dumps({"note": "ok", "list": TWO}),
        json.dumps([{"task": text} for text in TWO]),
        json.dumps([{"id": "1", "task": text} for text in TWO]),
        f"```python\n{TWO!r}\n```",
        f"Sure!\n1. {TWO[0]}\n2. {TWO[1]}\n",
        f'- **{TWO[0]}**\n- "{TWO[1]}"\n',
        json.dumps([*TWO, TWO[0].upper(), "dog"]),
        f"<think>1. not this one\n2. nor this one</think>\n1) {TWO[0]}\n2) {TWO[1]}",
    ],
)
def test_tasks_are_read_from_any_list(answer):
    assert parse_tasks(answer) == TWO


def test_half_a_list_of_tasks_still_has_none():
    assert parse_tasks('["Given a dog, find') == []
