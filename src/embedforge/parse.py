"""Users' JSON and YAML to values, within bounds; a key given twice is refused, where others let one win."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from embedforge.bounds import MOST_DEPTH, BoundedLoader, check_depth, too_deep

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}:]')
_MERGE = "tag:yaml.org,2002:merge"


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""

    def __init__(self, key: str, line: int) -> None:
        super().__init__(f"the key '{key}' is given twice in one object, and only one can count; remove one")
        self.key = key
        self.line = line
        """Of the second one, counted from 1."""


def parse_json(text: str) -> Any:
    """Read JSON, as `json.loads` does.

    >>> parse_json('{"a": 1, "b": {"a": 2}}')
    {'a': 1, 'b': {'a': 2}}
    >>> parse_json("[" * 65 + "]" * 65)
    Traceback (most recent call last):
    json.decoder.JSONDecodeError: Nested more than 64 levels deep: line 1 column 1 (char 0)

    Raises:
        RepeatedKeyError: an object has a key twice.
        json.JSONDecodeError: it is not JSON, too deep, or holds a number with too many digits.
    """
    try:
        value = _DECODER.decode(text)
    except _Repeated:
        raise _first_repeated(text) from None
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise too_deep(text) from None
    except ValueError:
        raise json.JSONDecodeError("A number with thousands of digits", text, 0) from None
    check_depth(text, value)
    return value


def parse_yaml(text: str) -> Any:
    """Read one YAML document of plain data, with the bounds and the numbers of `BoundedLoader`.

    >>> parse_yaml("{steps: 1:30, rate: 1e-3, half: 0.5}")
    {'steps': '1:30', 'rate': '1e-3', 'half': 0.5}

    Raises:
        yaml.YAMLError: it is not YAML, too deep, too much by its aliases, a value is not what its tag says,
            or a mapping has a key twice; its `problem_mark` has the line.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError(f"nested more than {MOST_DEPTH} levels deep") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise yaml.YAMLError(f"a value that cannot be read: {error}") from None


class _UniqueKeyLoader(BoundedLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check keys as they are written: what `<<` merges in may be given again, it is then a default."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in lines:
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"the key '{key.value}' is given twice in one mapping, first in line "
                    f"{lines[key.tag, key.value]}, and only one can count; remove one",
                    key.start_mark,
                )
            lines[key.tag, key.value] = key.start_mark.line + 1
        return node


class _Repeated(Exception):
    """Some key is; the decoder does not know where."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Repeated
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # made once: a line of JSONL takes less time


def _first_repeated(text: str) -> RepeatedKeyError:
    """Find the first key of a valid JSON text that stands twice in its object."""
    open_objects: list[set[str]] = []
    string = None
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            open_objects.append(set())
        elif token[0] == "}":
            open_objects.pop()
        elif token[0] == ":" and string is not None:
            key = json.loads(string[0])
            if key in open_objects[-1]:
                return RepeatedKeyError(key, text.count("\n", 0, string.start()) + 1)
            open_objects[-1].add(key)
        string = token if token[0].startswith('"') else None
    raise AssertionError("no key is given twice")
