"""CSV and TSV files to Records: rows under a header line, empty cells are None, and lists are JSON.

CSV cells may be quoted, and then hold separators, quotes (doubled) and line ends. TSV cells are what stands
between two tabs, as in the field's dumps (MS MARCO, qrels), where a quote is a character like any other.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embedforge.data.list_text import OPENINGS, literal, text_of_list
from embedforge.data.position import Position
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError
from embedforge.parse import RepeatedKeyError, parse_json

_LIST_COLUMN = re.compile(r"(positive|negative)s?|negative_\d+|vector")
"""Columns of documents and of vectors, in which a cell may be a list."""
_QUOTED = re.compile(r'"[^"]*(""[^"]*)*"')


def read_csv(path: Path, at: Position, lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    """Yield the rows of a CSV file; a record's line is its last."""
    csv.field_size_limit(2**31 - 1)  # the default, 131072 characters, is less than a long document
    rows = csv.reader((line for _, line in lines), strict=True)
    try:
        header = at.header = next(rows, []) if at.header is None else at.header
        _check_header(path, header)
        for row in rows:
            if row:
                yield _record(path, at.line, header, row, "quote a cell that holds the separator")
    except csv.Error as error:
        raise EmbedforgeError(
            f"{path}, line {at.line}: not valid CSV ({error}); a quoted cell ends with a quote, "
            "and a quote inside is doubled"
        ) from None


def read_tsv(path: Path, at: Position, lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    """Yield the rows of a TSV file, a line each."""
    header = at.header or []
    for number, line in lines:
        row = line.rstrip("\r\n").split("\t")
        if row == [""]:
            continue
        for cell in row:
            if _QUOTED.fullmatch(cell) and (not header or '""' in cell[1:-1]):
                raise EmbedforgeError(
                    f"{path}, line {number}: the cell {cell:.60} is quoted as in CSV files, and in a TSV "
                    "file quotes are text; write it without, or save the file as .csv or .jsonl"
                )
        if not header:
            _check_header(path, header := row)
            at.header = header
        else:
            way_out = (
                "no cell of a TSV file, quoted or not, holds a tab or a line end; such texts go into CSV"
            )
            yield _record(path, number, header, row, way_out)


def _check_header(path: Path, header: Sequence[str]) -> None:
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise EmbedforgeError(f"{path}, line 1: the header repeats {sorted(repeated)}; name each column once")


def _record(path: Path, number: int, header: Sequence[str], row: Sequence[str], way_out: str) -> Record:
    if len(row) != len(header):
        raise EmbedforgeError(
            f"{path}, line {number}: {len(row)} cells under {len(header)} columns "
            f"({', '.join(header)}); {way_out}. The row: {row!r:.80}"
        )
    record = Record({}, str(path), number)
    for name, cell in zip(header, row, strict=True):
        is_list = _LIST_COLUMN.fullmatch(name) and cell.strip().startswith(OPENINGS)
        record.values[name] = _structured(record, name, cell.strip()) if is_list else cell or None
    return record


def _structured(record: Record, name: str, cell: str) -> Any:
    """Return the list or the document that a cell holds as JSON; what only begins like one is a text."""
    try:
        value = parse_json(cell)
    except json.JSONDecodeError:
        if not text_of_list(cell) and not _is_document(literal(cell)):
            return cell
        raise record.error(
            f"'{name}' is a list as Python or NumPy prints it, {cell!r:.60}; write it as JSON, in pandas "
            f"table['{name}'].map(list).map(json.dumps), or save JSONL instead"
        ) from None
    except RepeatedKeyError as error:
        raise record.error(f"'{name}': {error}") from None
    return value if isinstance(value, list) or _is_document(value) else cell


def _is_document(value: Any) -> bool:
    return isinstance(value, dict) and "text" in value
