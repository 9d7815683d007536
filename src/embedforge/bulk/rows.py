"""A record of the input as a row of the output: its number, id, text, instruction, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from embedforge.bulk.settings import EncodeSettings
from embedforge.data.record import Record

IdKind = Literal["text", "int"]

ROWS_PER_WINDOW = 4096
CHARACTERS_PER_WINDOW = 8 * 2**20
"""A window is what is held in memory at a time, whatever the size of shards and input."""


class Row(NamedTuple):
    """What is known of a text besides its vector."""

    number: int
    """Of the whole input, from 0."""
    id: str | int | None
    text: str
    instruction: str
    kept: tuple[str | None, ...]


def row_of(record: Record, number: int, settings: EncodeSettings, ids: IdKind | None) -> Row:
    """Return the row of a record.

    Raises:
        EmbedforgeError: the text or the id is not there or of no use; names file, line and value.
    """
    instruction = settings.instruction_column
    return Row(
        number,
        None if settings.id is None else _id(record, settings.id, ids),
        _text(record, settings),
        "" if instruction is None else record.optional_text(instruction),
        tuple(_as_text(record.values.get(name)) for name in settings.keep),
    )


def id_kind(record: Record, name: str) -> IdKind:
    """Return what the ids are, from one of them."""
    value = record.require(name)
    return "int" if isinstance(value, int) and not isinstance(value, bool) else "text"


def _id(record: Record, name: str, kind: IdKind | None) -> str | int:
    value = record.require(name)
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise record.error(f"'{name}' is {value}, more than 64 bits hold; write the ids as text")
        return value
    if kind == "text" and isinstance(value, str):
        return record.check_text(value, name)
    wanted = "a whole number" if kind == "int" else "text"
    raise record.error(f"'{name}' must be {wanted}, as the first record's is, found {value!r:.60}")


def _text(record: Record, settings: EncodeSettings) -> str:
    if (last := settings.column[-1]) not in record.values:
        record.text(last)  # an error: it names the columns that are there
    return " ".join(filter(None, (_words(record, name) for name in settings.column)))


def _words(record: Record, name: str) -> str:
    value = record.values.get(name)
    return "" if isinstance(value, str) and not value.strip() else record.optional_text(name)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Gather rows until a window is full; a single long text may stand alone."""
    window: list[Row] = []
    characters = 0
    for row in rows:
        window.append(row)
        characters += len(row.text)
        if len(window) == ROWS_PER_WINDOW or characters >= CHARACTERS_PER_WINDOW:
            yield window
            window, characters = [], 0
    if window:
        yield window
