"""Files and hub datasets to Records, one at a time: JSONL, CSV, TSV, TXT, Parquet, BEIR folders.

Reading stops at the first bad record. Text is UTF-8; blank lines of JSONL files are passed over.
What the records must hold is told by the converters (`embedforge.data.kinds`).
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, cast

from embedforge.bounds import MOST_LINE_BYTES, parse_json, require_plain
from embedforge.data.names import HUB_PREFIX
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError, did_you_mean, missing_extra

_QRELS = "qrels"
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
        records = _reader_of(path)(path)
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise EmbedforgeError(f"{path}: there is no record in it; check that it was written to its end")


def _reader_of(path: Path) -> Callable[[Path], Iterator[Record]]:
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".txt": _read_txt,
        ".parquet": _read_parquet,
    }
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in readers or (suffix == ".parquet" and path.name.endswith(".gz")):
        hint = " A JSON array has to be rewritten with one object a line." if suffix == ".json" else ""
        raise EmbedforgeError(
            f"{path}: the format is told by the ending, and '{''.join(path.suffixes[-2:])}' is none of "
            f".jsonl, .csv, .tsv, .txt (each also .gz), .parquet.{hint}"
        )
    return readers[suffix]


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


def _open(path: Path) -> IO[bytes]:
    try:
        return cast("IO[bytes]", gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")
    except OSError as error:
        raise EmbedforgeError(f"{path}: cannot be opened ({error.strerror})") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file, with their ends, numbered from 1; a byte order mark is dropped."""
    number = 0
    with _open(path) as lines:
        try:
            for number, line in enumerate(iter(partial(lines.readline, MOST_LINE_BYTES + 1), b""), start=1):
                if len(line) > MOST_LINE_BYTES:
                    raise EmbedforgeError(
                        f"{path}, line {number}: the line has no end within {MOST_LINE_BYTES:,} bytes, and a "
                        "record is not that long; are the line ends missing?"
                    )
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


def _read_jsonl(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
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


def _read_txt(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if line.strip():
            yield Record({"text": line.strip()}, str(path), number)


def _read_csv(path: Path) -> Iterator[Record]:
    """Rows under a header line; TSV files are quoted as CSV files are. A record's line is its last."""
    csv.field_size_limit(MOST_LINE_BYTES)  # the default, 131072 characters, is less than a long document
    tabs = path.name.removesuffix(".gz").lower().endswith(".tsv")
    rows = csv.reader((line for _, line in _lines(path)), delimiter="\t" if tabs else ",", strict=True)
    try:
        header = next(rows, [])
        repeated = {name for name in header if header.count(name) > 1}
        if repeated:
            raise EmbedforgeError(
                f"{path}, line 1: the header repeats {sorted(repeated)}; name each column once"
            )
        for row in rows:
            if len(row) != len(header):
                if not row:
                    continue
                raise EmbedforgeError(
                    f"{path}, line {rows.line_num}: {len(row)} cells under {len(header)} columns "
                    f"({', '.join(header)}); quote a cell that holds the separator. The row: {row!r:.80}"
                )
            cells = {name: cell or None for name, cell in zip(header, row, strict=True)}
            yield Record(cells, str(path), rows.line_num)
    except csv.Error as error:
        raise EmbedforgeError(
            f"{path}, line {rows.line_num}: not valid CSV ({error}); a quoted cell ends with a quote, "
            "and a quote inside is doubled"
        ) from None


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "data", f"reading {path}") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Record(values, str(path), number, "row")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
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


class Judgement(NamedTuple):
    """One line of a qrels file."""

    query_id: str
    document_id: str
    score: int
    line: int


class Retrieval(NamedTuple):
    """One split of a BEIR folder: the judged queries and documents by id, and the judgements."""

    queries: dict[str, str]
    documents: dict[str, str]
    judgements: list[Judgement]


def read_beir(folder: str | Path, split: str) -> Retrieval:
    """Read the judgements of `qrels/{split}.tsv` and the texts that they name, and no others.

    Raises:
        EmbedforgeError: a file or the split is missing, or a judgement names an unknown id.
    """
    folder = Path(folder)
    judgements = list(read_qrels(folder, split))
    queries = dict(read_queries(folder, only={judgement.query_id for judgement in judgements}))
    documents = dict(read_corpus(folder, only={judgement.document_id for judgement in judgements}))
    for judgement in judgements:
        for what, texts, name in (
            ("query", queries, judgement.query_id),
            ("document", documents, judgement.document_id),
        ):
            if name not in texts:
                raise EmbedforgeError(
                    f"{_qrels_path(folder, split)}, line {judgement.line}: there is no {what} '{name}' in "
                    f"{_beir_file(folder, 'queries' if what == 'query' else 'corpus')}; "
                    "remove the judgement or add the text"
                )
    return Retrieval(queries, documents, judgements)


def read_corpus(folder: Path, only: set[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of a BEIR corpus; a title stands before the text, with a space, as in mteb."""
    for record in _beir_records(folder, "corpus", only):
        title = record.optional_text("title")
        yield (
            record.values["_id"],
            join_title(title, record.optional_text("text") if title else record.text("text")),
        )


def read_queries(folder: Path, only: set[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of the queries of a BEIR folder."""
    for record in _beir_records(folder, "queries", only):
        yield record.values["_id"], record.text("text")


def join_title(title: str, text: str) -> str:
    """Return the document as it is embedded: title, space, text."""
    return f"{title} {text}".strip() if title else text


def _beir_records(folder: Path, stem: str, only: set[str] | None) -> Iterator[Record]:
    seen: set[str] = set()
    for record in read_records(_beir_file(folder, stem)):
        name = record.text("_id")
        if only is not None and name not in only:
            continue
        if name in seen:
            raise record.error(f"the _id '{name}' stands in the file twice; ids must differ")
        seen.add(name)
        yield record


def _beir_file(folder: Path, stem: str) -> Path:
    plain, zipped = folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"
    return zipped if zipped.exists() and not plain.exists() else plain


def is_beir(path: str | Path) -> bool:
    """Say whether a path is a BEIR folder: one with judgements."""
    return (Path(path) / _QRELS).is_dir()


def _qrels_path(folder: Path, split: str) -> Path:
    return folder / _QRELS / f"{split}.tsv"


def read_qrels(folder: Path, split: str) -> Iterator[Judgement]:
    """Yield the judgements of a split: tab-separated under the header `query-id corpus-id score`."""
    path = _qrels_path(folder, split)
    if not folder.is_dir():
        near = did_you_mean(folder.name, (p.name for p in folder.parent.glob("*")))
        state = "is a file, and" if folder.exists() else "does not exist;"
        raise EmbedforgeError(f"{folder}: {state} retrieval data is a BEIR folder.{near}")
    if not path.exists():
        splits = sorted(p.stem for p in path.parent.glob("*.tsv"))
        raise EmbedforgeError(
            f"{path}: there is no such file; the splits are: {', '.join(splits) or 'none'}."
            + did_you_mean(split, splits)
        )
    for record in read_records(path):
        if {"query-id", "corpus-id", "score"} - set(record.values):
            raise EmbedforgeError(
                f"{path}, line 1: the header must be query-id, corpus-id, score with tabs between; "
                f"found {', '.join(record.values)}"
            )
        score = record.number_of("score")
        if score != int(score):
            raise record.error(f"'score' must be a whole number, found {record.values['score']!r}")
        yield Judgement(record.text("query-id"), record.text("corpus-id"), int(score), record.number)
