"""Where reading begins in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any


@dataclass(slots=True)
class Position:
    """Where reading begins in a file; of a text file it moves along, to the end of the record read last."""

    offset: int = 0
    """Bytes before it, of what a .gz file holds."""
    line: int = 0
    """Lines before it."""
    row: int = 0
    """Rows before it, in a Parquet file."""
    header: list[str] | None = None
    """Of a CSV file; read there if it is None."""
    columns: Sequence[str] | None = None
    """Those to read of a Parquet file; all if it is None."""
    file: IO[bytes] | None = None
    """A text file that is open already, and stays open; so that a .gz is unpacked once."""


def groups_from(metadata: Any, row: int) -> tuple[list[int], int]:
    """Return the row groups from the one with `row` on, and the rows of that one before it."""
    for group in range(metadata.num_row_groups):
        if row < metadata.row_group(group).num_rows:
            return list(range(group, metadata.num_row_groups)), row
        row -= metadata.row_group(group).num_rows
    return [], 0
