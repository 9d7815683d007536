"""What a file may hold at most, found out before it costs time or memory: kinds of file, lines, nesting.

Text is read with bounds that no honest file comes near. A file that is none (a pipe, a device) would be
waited for without end, a line without end fills the memory, and a few hundred bytes of YAML aliases stand for
more values than any machine holds.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from embedforge.errors import EmbedforgeError

MOST_DEPTH = 64
"""Levels of lists and mappings within each other."""
MOST_NODES = 20_000
"""Values of a YAML file, each counted as often as an alias repeats it."""
MOST_YAML_BYTES = 2**20
MOST_JSON_BYTES = 2**30
"""Of a JSON file that is read whole; the largest tokenizers have 30 MB."""
MOST_LINE_BYTES = 64 * 2**20
"""Of a line of a data file, so of a record."""
_KINDS = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def require_plain(path: Path, most: int | None = None) -> None:
    """Refuse what is there and is no plain file, and a file of more than `most` bytes; nothing is opened.

    Raises:
        EmbedforgeError: a pipe, a device or a socket, or too large.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # not there, forbidden, no name: for the reader to say
        return
    for is_kind, name in _KINDS.items():
        if is_kind(status.st_mode):
            raise EmbedforgeError(f"{path}: this is {name}, not a file; write what it gives to a file first")
    if most is not None and status.st_size > most:
        raise EmbedforgeError(
            f"{path}: {status.st_size:,} bytes, and such a file has at most {most:,}; is it the right one?"
        )


def require_plain_files(folder: Path) -> None:
    """Refuse a folder that has a pipe, a device or a socket among its files, or one level below."""
    with contextlib.suppress(OSError):
        for item in folder.iterdir():
            require_plain(item)
            if item.is_dir():
                for below in item.iterdir():
                    require_plain(below)


def check_depth(text: str, value: Any) -> None:
    """Refuse JSON of more than `MOST_DEPTH` levels, after it was read.

    Raises:
        json.JSONDecodeError: too deep.
    """
    if text.count("[") + text.count("{") > MOST_DEPTH and _depth_of(value) > MOST_DEPTH:
        raise too_deep(text)


def too_deep(text: str) -> json.JSONDecodeError:
    """Return the error of JSON that is nested too deep."""
    return json.JSONDecodeError(f"Nested more than {MOST_DEPTH} levels deep", text, 0)


def _depth_of(value: Any) -> int:
    """Count the levels of what JSON has given, without recursion."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [below for item in level for below in (item.values() if isinstance(item, dict) else item)]
    return depth


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which looks at a document's size before it makes anything of it.

    A number is one that looks like it: "1:30" is text and not ninety, "010" is not eight (as in YAML 1.2).
    """

    _depth = _count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and stop where there are too many, or one within too many others."""
        self._depth, self._count = self._depth + 1, self._count + 1
        _check_bounds(self._depth, self._count, self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Return the document's node, checked."""
        node: yaml.Node | None = super().get_single_node()
        _check_nodes(node)
        return node


def _check_nodes(root: yaml.Node | None) -> None:
    """Walk a document as if every alias were written out; the walk ends at the bounds."""
    waiting, count = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        _check_bounds(depth, count, node.start_mark if node is not None else None)
        waiting += [(below, depth + 1) for below in _below(node)]


def _check_bounds(depth: int, count: int, mark: Any) -> None:
    what = ""
    if depth > MOST_DEPTH:
        what = f"nested more than {MOST_DEPTH} levels deep, or an alias that holds itself"
    elif count > MOST_NODES:
        what = f"more than {MOST_NODES:,} values, those that aliases repeat counted"
    if what:
        raise yaml.MarkedYAMLError(problem=what, problem_mark=mark)


def _below(node: yaml.Node | None) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value


def _without_base_60(loader: type[yaml.SafeLoader]) -> None:
    """Give a loader the numbers of YAML 1.2's core schema, but for 1e3, which stays text as in 1.1."""
    numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in numbers]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    whole = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
    real = re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$"
        r"|\.(?:nan|NaN|NAN)$"
    )
    loader.add_implicit_resolver(numbers[1], real, list("-+0123456789."))
    loader.add_implicit_resolver(numbers[0], whole, list("-+0123456789"))


_without_base_60(BoundedLoader)
