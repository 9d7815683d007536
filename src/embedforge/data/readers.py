"""Files and hub datasets to Records, one at a time: JSONL, CSV, TSV, TXT, Parquet; `beir` reads BEIR folders.

Reading stops at the first bad record. Text is UTF-8; blank lines of JSONL files are passed over.
What the records must hold is told by the converters (`embedforge.data.kinds`).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, cast

from embedforge.bounds import MOST_LINE_BYTES, require_plain
from embedforge.data.delimited import read_csv, read_tsv
from embedforge.data.names import HUB_PREFIX
from embedforge.data.position import Position, groups_from
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError, did_you_mean, missing_extra
from embedforge.parse import RepeatedKeyError, parse_json

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def read_records(path: str | Path, *, split: str = "train") -> Iterator[Record]:
    """Yield the records of a file, or of a hub dataset `hub:owner/name` or `hub:owner/name:config`.

    The format is told by the ending: .jsonl, .csv, .tsv, .txt (a `text` a line), each also with .gz, or
    .parquet. `split` is for hub datasets.

    Raises:
        EmbedforgeError: missing or empty file, unknown format, a broken line; names file, line, value.
    """
    if str(path).startswith(HUB_PREFIX):
        records = _read_hub(str(path), split)
    else:
        path = Path(path)
        require_file(path)
        records = read_from(path, Position())
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise EmbedforgeError(f"{path}: there is no record in it; check that it was written to its end")


def read_from(path: Path, at: Position) -> Iterator[Record]:
    """Yield the records of a file from a position on; its errors are those of `read_records`."""
    return _reader_of(path)(path, at)


Reader = Callable[[Path, Position], Iterator[Record]]


def _reader_of(path: Path) -> Reader:
    readers: dict[str, Reader] = {
        ".jsonl": _read_jsonl,
        ".csv": lambda path, at: read_csv(path, at, _lines(path, at)),
        ".tsv": lambda path, at: read_tsv(path, at, _lines(path, at)),
        ".txt": _read_txt,
        ".parquet": _read_parquet,
    }
    suffix = format_of(path)
    if suffix not in readers or (suffix == ".parquet" and path.name.endswith(".gz")):
        hint = " A JSON array has to be rewritten with one object a line." if suffix == ".json" else ""
        raise EmbedforgeError(
            f"{path}: the format is told by the ending, and '{''.join(path.suffixes[-2:])}' is none of "
            f".jsonl, .csv, .tsv, .txt (each also .gz), .parquet.{hint}"
        )
    return readers[suffix]


def format_of(path: Path) -> str:
    """Return what the ending says of a file: ".jsonl" for rows.JSONL and rows.jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def require_format(path: Path) -> None:
    """Refuse a file whose ending no reader knows."""
    _reader_of(path)


def require_file(path: Path) -> None:
    """Refuse a path that is no file, with the nearest name that is one."""
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir())
        if "corpus.jsonl" in names or "corpus.jsonl.gz" in names:
            raise EmbedforgeError(f"{path}: this is a BEIR folder; read it with kind: retrieval")
        raise EmbedforgeError(f"{path}: this is a folder; name a file in it ({', '.join(names[:10])})")
    if path.exists():
        require_plain(path)
        return
    if not path.parent.is_dir():
        raise EmbedforgeError(f"{path}: there is no such file, nor the folder {path.parent}")
    near = did_you_mean(path.name, (child.name for child in path.parent.iterdir()))
    raise EmbedforgeError(f"{path}: there is no such file.{near}")


def open_unpacked(path: Path) -> IO[bytes]:
    """Open a file to read its bytes, those of a .gz file unpacked."""
    try:
        return cast("IO[bytes]", gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")
    except OSError as error:
        raise EmbedforgeError(f"{path}: cannot be opened ({error.strerror})") from None


def _lines(path: Path, at: Position) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file, with their ends, numbered from 1; a byte order mark is dropped."""
    number = at.line
    with open_unpacked(path) if at.file is None else nullcontext(at.file) as lines:
        try:
            lines.seek(at.offset)
            bounded = iter(partial(lines.readline, MOST_LINE_BYTES + 1), b"")
            for number, line in enumerate(bounded, start=at.line + 1):
                if len(line) > MOST_LINE_BYTES:
                    raise EmbedforgeError(
                        f"{path}, line {number}: the line has no end within {MOST_LINE_BYTES:,} bytes, and a "
                        "record is not that long; are the line ends missing?"
                    )
                at.offset, at.line = at.offset + len(line), number
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise EmbedforgeError(
                f"{path}, line {number}: not valid UTF-8: byte 0x{error.object[error.start]:02x} at byte "
                f"{error.start} of the line; convert the file (iconv -f latin1 -t utf-8, for example)"
            ) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise EmbedforgeError(
                f"{path}, after line {number}: the gzip data is broken or cut off ({error}); fetch it again"
            ) from None


def _read_jsonl(path: Path, at: Position) -> Iterator[Record]:
    for number, line in _lines(path, at):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except RepeatedKeyError as error:
            raise EmbedforgeError(f"{path}, line {number}: {error}") from None
        except json.JSONDecodeError as error:
            near = line[max(0, error.pos - 20) : error.pos + 20].strip()
            cut = "" if line.endswith("\n") else "; the file ends here and may have been cut off"
            raise EmbedforgeError(
                f"{path}, line {number}: not valid JSON: {error.msg} at character {error.pos}, "
                f"near {near!r}{cut}. Each line holds one whole JSON object"
            ) from None
        if not isinstance(values, dict):
            raise EmbedforgeError(
                f'{path}, line {number}: a record is a JSON object like {{"query": …}}, found {values!r:.60}'
            )
        yield Record(values, str(path), number)


def _read_txt(path: Path, at: Position) -> Iterator[Record]:
    for number, line in _lines(path, at):
        if line.strip():
            yield Record({"text": line.strip()}, str(path), number)


def _read_parquet(path: Path, at: Position) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "data", f"reading {path}") from None
    number = at.row
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if repeated := {column for column in names if names.count(column) > 1}:
                raise EmbedforgeError(f"{path}: two columns are named {sorted(repeated)}; name each once")
            groups, skipped = groups_from(table.metadata, at.row)
            for whole in table.iter_batches(row_groups=groups, columns=at.columns):
                batch = whole.slice(min(skipped, len(whole)))
                skipped -= len(whole) - len(batch)
                for values in batch.to_pylist():
                    number += 1
                    yield Record(values, str(path), number, "row")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise EmbedforgeError(f"{path}, after row {number}: not a readable Parquet file ({error})") from None


def _read_hub(name: str, split: str) -> Iterator[Record]:
    """Stream a hub dataset. Class numbers become their names; code from the hub is never run."""
    if not _HUB_NAME.fullmatch(name.removeprefix(HUB_PREFIX)):
        raise EmbedforgeError(f"'{name}' is no hub dataset; write hub:owner/name or hub:owner/name:config")
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "data", f"reading {name}") from None
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # version 3 would ask on stdin; 4 has no such code
    dataset_id, _, config = name.removeprefix(HUB_PREFIX).partition(":")
    try:
        rows = datasets.load_dataset(dataset_id, config or None, split=split, streaming=True)
        classes = {
            key: feature.names for key, feature in (rows.features or {}).items() if hasattr(feature, "names")
        }
        for number, values in enumerate(rows, start=1):
            for key, names in classes.items():
                if values[key] is not None and 0 <= values[key] < len(names):
                    values[key] = names[values[key]]
            yield Record(values, f"{name} ({split})", number, "row")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise EmbedforgeError(f"{name}: cannot read the split '{split}' ({error})") from error
