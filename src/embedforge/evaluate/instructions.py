"""Which instruction stands before the texts of a task."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from embedforge.errors import EmbedforgeError, did_you_mean


@functools.cache
def _table() -> dict[str, Any]:
    source = resources.files("embedforge.evaluate").joinpath("instructions.json")
    table: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    return table


def instruction_of(
    name: str, task_type: str, own: Mapping[str, str] | None = None, published: str | None = None
) -> str | None:
    """Return the instruction of a task; None asks for the model's own default.

    In this order: the caller's `own` (by task name, else by task type), the shipped table by name (a
    version such as ".v2" left aside), the `published` prompt of the task, the shipped table by type.

    >>> instruction_of("SciFact", "Retrieval")
    'Given a scientific claim, retrieve documents that support or refute the claim'
    """
    own, table = own or {}, _table()
    unversioned = re.sub(r"(\.v\d+|HardNegatives)+$", "", name)
    for instruction in (
        own.get(name),
        own.get(task_type),
        table["tasks"].get(unversioned),
        published,
        table["types"].get(task_type),
    ):
        if instruction is not None:
            return str(instruction)
    return None


def instructs_documents(name: str) -> bool:
    """Say whether documents of this retrieval task are of the query's kind and get the instruction too."""
    return name in _table()["instruct_documents"]


def check_names(own: Mapping[str, str], names: Sequence[str], types: Sequence[str]) -> None:
    """Refuse an instruction for a task that is not evaluated: it would be ignored without a word."""
    known = {*names, *types}
    for name in own:
        if name not in known:
            raise EmbedforgeError(
                f"--instruction {name}=...: no such task or task type is evaluated; "
                f"these are: {', '.join(sorted(known))}.{did_you_mean(name, known)}"
            )
