"""From a language model's answer to the fields that were asked for, forgiving its habits.

Read as if it were not there: what a reasoning model thought, code fences, prose around the JSON, line ends
inside strings, trailing commas, Python's quotes, one object in a list, or in an object. An answer that was
cut off is not completed: the end of a document would be missing.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>|^.*?</think(?:ing)?>", re.DOTALL)
_FENCE = re.compile(r"```[\w-]*[ \t]*\n?(.*?)```", re.DOTALL)
_STRING = r'"(?:[^"\\]|\\.)*"'
_TRAILING_COMMA = re.compile(rf"({_STRING})|,(\s*[\]}}])", re.DOTALL)
_NUMBERED = re.compile(r"^\s*(?:\d{1,3}\s*[.):]|[-*•–])\s+(.+)$")
_QUOTES = re.compile(r"""^["'“‘`*]+|["'”’`*]+[,;]?$""")
_STARTS = 50
"""Places in an answer where JSON is looked for."""


class UnreadableError(ValueError):
    """The answer does not hold what was asked for; the first argument is the filter that counts it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def parse_object(answer: str, keys: Sequence[str]) -> dict[str, str]:
    """Return the texts under `keys`, stripped.

    Raises:
        UnreadableError: "does not parse", "missing fields", "wrong types" or "empty fields".
    """
    values = [value for value in _values(answer, "{[") if isinstance(value, dict | list)]
    objects = [inner for value in values for inner in _objects(value)]
    if not objects:
        raise UnreadableError("does not parse", _excerpt(answer))
    fields = max(objects, key=lambda item: sum(key in item for key in keys))
    missing = [key for key in keys if key not in fields]
    if missing:
        raise UnreadableError(
            "missing fields", f"no {', '.join(missing)} among {', '.join(map(str, fields)) or 'no keys'}"
        )
    return {key: _text(key, fields[key]) for key in keys}


def parse_tasks(answer: str) -> list[str]:
    """Return the tasks of a brainstorming answer, in order, each once; [] where there are none.

    They are a list, a list in an object, a list of objects with one text each, or lines that begin with a
    number or a dash.
    """
    for value in _values(answer, "[{"):
        tasks = _unique(_strings(value))
        if len(tasks) > 1:
            return tasks
    lines = (_NUMBERED.match(line) for line in _without_thoughts(answer).splitlines())
    return _unique(match[1] for match in lines if match)


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnreadableError("wrong types", f"{key} must be a text, found {value!r:.60}")
    text = str(value).strip()
    if not text:
        raise UnreadableError("empty fields", f"{key} has no text")
    # Half of a surrogate pair, which JSON can hold, is no character that a tokenizer or a file could take.
    return text.encode("utf-8", "replace").decode("utf-8")


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield an object, the objects of a list, and an object alone in another."""
    if isinstance(value, dict):
        yield value
        yield from (inner for inner in value.values() if isinstance(inner, dict))
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = max(lists, key=len) if lists else list(value.values())
    if not isinstance(value, list):
        return []
    texts = []
    for item in value:
        inside = (
            [text for text in item.values() if isinstance(text, str)] if isinstance(item, dict) else [item]
        )
        texts += inside[:1] if len(inside) == 1 else [text for text in inside if " " in str(text)][:1]
    return [text for text in texts if isinstance(text, str)]


def _unique(texts: Any) -> list[str]:
    """Clean the texts and keep the first of equal ones; a task has two words at least."""
    kept: dict[str, str] = {}
    for text in texts:
        clean = " ".join(_QUOTES.sub("", _QUOTES.sub("", text.strip())).split())
        if " " in clean or (len(clean) > 5 and not clean.isascii()):
            kept.setdefault(clean.casefold().rstrip("."), clean)
    return list(kept.values())


def _values(answer: str, openings: str) -> Iterator[Any]:
    """Yield the JSON values, or Python's, that begin at the first positions where one can."""
    text = _without_thoughts(answer)
    parts = [*(match[1] for match in _FENCE.finditer(text)), text]
    for part in parts:
        end = -1
        starts = [position for position, char in enumerate(part) if char in openings][:_STARTS]
        for start in starts:
            if start < end:
                continue  # inside a value already found
            value, length = _decode(part[start:])
            if length:
                end = start + length
                yield value


def _without_thoughts(answer: str) -> str:
    return _THOUGHTS.sub("", answer, count=1)


def _decode(text: str) -> tuple[Any, int]:
    """Return the value at the start of `text` and its length; 0 where there is none."""
    decoder = json.JSONDecoder(strict=False)  # Line ends inside strings are a common slip.
    for candidate in (text, _TRAILING_COMMA.sub(lambda match: match[1] or match[2], text)):
        try:
            value, length = decoder.raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        return value, length
    return _decode_python(text)


def _decode_python(text: str) -> tuple[Any, int]:
    """Read a Python list or dict of strings, as models answer that were asked for a "list"."""
    end = text.rfind("]" if text[0] == "[" else "}") + 1
    try:
        return ast.literal_eval(text[:end]), end
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None, 0


def _excerpt(answer: str) -> str:
    answer = " ".join(answer.split())
    return f"answered {answer[:120]!r}" if answer else "the answer is empty"
