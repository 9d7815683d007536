"""Files of vectors: Parquet, Arrow or .npy, written window by window, and counted.

Parquet and Arrow have a row a text: `row` (its number in the whole input, from 0), `id` where ids were asked
for, `vector` (a list of fixed length), `scale` for int8, and the columns that are kept. A .npy file has the
vectors alone, [rows, dim]; the rest lies beside it in a .jsonl file of the same name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedforge.bulk.rows import IdKind, Row
from embedforge.bulk.settings import EncodeSettings
from embedforge.files import replace_file
from embedforge.quantize import quantize
from embedforge.ranking import Floats

ELEMENT = "vector.list.element"
"""How Parquet calls the numbers of the column `vector`."""


class Writer(Protocol):
    """Takes windows of rows with their vectors, float32 [rows, dim]."""

    def __call__(self, rows: Sequence[Row], vectors: Floats) -> None:
        """Write a window."""


@contextlib.contextmanager
def open_writer(
    path: Path,
    target: Path,
    settings: EncodeSettings,
    ids: IdKind | None,
    count: int,
    about: Mapping[str, str],
) -> Iterator[Writer]:
    """Write a file of vectors at `path`, which is whole when this ends.

    Args:
        path: where; its ending does not matter.
        target: what it will be called; what lies beside an .npy file is named after it.
        settings: format, precision, and which columns there are.
        ids: what the ids are.
        count: rows there will be, which an .npy file says in its first bytes.
        about: written into the schema of Parquet and Arrow.
    """
    if settings.format == "npy":
        with (
            replace_file(target.with_suffix(".jsonl"), durable=True) as beside,
            path.open("wb") as numbers,
            beside.open("w", encoding="utf-8") as lines,
        ):
            yield _NpyWriter(numbers, lines, settings, count)
        return
    writer = _TableWriter(path, settings, ids, about)
    try:
        yield writer
    finally:
        writer.close()


class _NpyWriter:
    """The header is made when the first window says how wide the vectors are."""

    def __init__(self, numbers: IO[bytes], lines: IO[str], settings: EncodeSettings, count: int) -> None:
        self._file, self._lines = numbers, lines
        self._settings = settings
        self._count = count

    def __call__(self, rows: Sequence[Row], vectors: Floats) -> None:
        numbers, scale = quantize(vectors, self._settings.precision)
        if self._file.tell() == 0:
            header = {
                "descr": np.lib.format.dtype_to_descr(numbers.dtype),
                "fortran_order": False,
                "shape": (self._count, numbers.shape[1]),
            }
            np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(np.ascontiguousarray(numbers).data)
        for place, row in enumerate(rows):
            line: dict[str, Any] = {"row": row.number}
            if self._settings.id is not None:
                line["id"] = row.id
            if scale is not None:
                line["scale"] = float(scale[place])
            line |= dict(zip(self._settings.keep, row.kept, strict=True))
            self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")


class _TableWriter:
    def __init__(
        self, path: Path, settings: EncodeSettings, ids: IdKind | None, about: Mapping[str, str]
    ) -> None:
        self._path, self._settings, self._ids, self._about = path, settings, ids, dict(about)
        self._writer: Any = None

    def __call__(self, rows: Sequence[Row], vectors: Floats) -> None:
        import pyarrow as pa

        numbers, scale = quantize(vectors, self._settings.precision)
        columns: dict[str, Any] = {"row": pa.array([row.number for row in rows], pa.int64())}
        if self._ids is not None:
            columns["id"] = pa.array(
                [row.id for row in rows], pa.int64() if self._ids == "int" else pa.string()
            )
        flat = pa.array(np.ascontiguousarray(numbers).reshape(-1))
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, numbers.shape[1])
        if scale is not None:
            columns["scale"] = pa.array(scale)
        for place, name in enumerate(self._settings.keep):
            columns[name] = pa.array([row.kept[place] for row in rows], pa.string())
        table = pa.table(columns).replace_schema_metadata(self._about)
        if self._writer is None:
            self._writer = self._open(table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, schema: Any) -> Any:
        import pyarrow as pa
        import pyarrow.parquet

        if self._settings.format == "arrow":
            return pa.ipc.new_file(str(self._path), schema)
        # Vectors do not get smaller by a dictionary or by compression, and cost time by both.
        others = [name for name in schema.names if name != "vector"]
        return pa.parquet.ParquetWriter(
            self._path,
            schema,
            use_dictionary=False,
            compression={**dict.fromkeys(others, "zstd"), ELEMENT: "none"},
            write_statistics=others,
        )


def counted(path: Path, kind: str) -> tuple[int, int]:
    """Return the rows of a file of vectors and the numbers (bytes, of binary ones) of each, from the file.

    Raises:
        OSError, ValueError: it cannot be read (pyarrow's own errors are both of these).
    """
    if kind == "npy":
        vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return vectors.shape[0], vectors.shape[1]
    import pyarrow as pa
    import pyarrow.parquet

    if kind == "parquet":
        with pa.parquet.ParquetFile(path) as table:
            return table.metadata.num_rows, table.schema_arrow.field("vector").type.list_size
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        rows = sum(file.get_batch(number).num_rows for number in range(file.num_record_batches))
        return rows, file.schema.field("vector").type.list_size
