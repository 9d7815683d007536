"""Parts of a file by their first record and their number: found once, and read each from where it begins.

Whoever reads one part need not read what stands before it, as long as the file is not packed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from embedforge.data.position import Position
from embedforge.data.readers import format_of, open_unpacked, read_from
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError, missing_extra

PARQUET = ".parquet"


class Range(NamedTuple):
    """Records of a file that follow one another."""

    first: int
    """Counted from 0."""
    rows: int
    offset: int = 0
    """Where it begins in a text file, in bytes (of what a .gz file holds)."""
    line: int = 0
    """Lines before it."""


def cut(
    path: Path,
    rows: int,
    check: Callable[[Record], object] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Range]:
    """Cut a file into ranges of `rows` records, the last of what is left.

    A text file is read to its end; of a Parquet file only the number of rows is read.

    Args:
        path: a file that `read_records` reads.
        rows: at least 1.
        check: called with each record of a text file; raises for one that is of no use.
        progress: called with the number of records found since the last call.

    Raises:
        EmbedforgeError: see `read_records`; no record at all.
    """
    if format_of(path) == PARQUET:
        total = parquet_rows(path)
        ranges = [Range(first, min(rows, total - first)) for first in range(0, total, rows)]
        progress(total)
    else:
        ranges = list(_cut_text(path, rows, check, progress))
    if not ranges:
        raise EmbedforgeError(f"{path}: there is no record in it; check that it was written to its end")
    return ranges


def _cut_text(
    path: Path, rows: int, check: Callable[[Record], object], progress: Callable[[int], None]
) -> Iterator[Range]:
    at = Position()
    records = read_from(path, at)
    first, begin = 0, (0, 0)
    while True:
        count = 0
        for record in itertools.islice(records, rows):
            check(record)
            count += 1
        if not count:
            return
        yield Range(first, count, *begin)
        progress(count)
        first, begin = first + count, (at.offset, at.line)


def parquet_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file, from its footer."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "data", f"reading {path}") from None
    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise EmbedforgeError(f"{path}: not a readable Parquet file ({error})") from None


class RangeReader:
    """A file that is open, to read ranges of it; best in ascending order, so that a .gz is unpacked once.

    Args:
        path: a file that `read_records` reads.
        columns: those to read of a Parquet file; all when None.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self._path = path
        self._columns = columns
        self._file = None if format_of(path) == PARQUET else open_unpacked(path)
        self._header = self._read_header() if format_of(path) in (".csv", ".tsv") else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, part: Range) -> Iterator[Record]:
        """Yield the records of a range.

        Raises:
            EmbedforgeError: see `read_records`; there are fewer, so the file is not the one that was cut.
        """
        header = None if part.first == 0 else self._header  # the first range begins with the header
        at = Position(part.offset, part.line, part.first, header, self._columns, self._file)
        found = 0
        for record in itertools.islice(read_from(self._path, at), part.rows):
            found += 1
            yield record
        if found < part.rows:
            raise EmbedforgeError(
                f"{self._path}: {found} records where {part.rows} were, from record {part.first + 1} on; the "
                "file was changed"
            )

    def _read_header(self) -> list[str] | None:
        at = Position(file=self._file)
        next(read_from(self._path, at), None)
        return at.header
