"""Catalogue entries to Records: rows in the column layout they were published in, with our keys.

| layout | published as | becomes |
| --- | --- | --- |
| columns | one row a record, columns named by the entry | the same, keys renamed, texts joined |
| beir | configurations `corpus`, `queries`, `default` (judgements), as mteb's | one record a query |
| sets | lists of `sentences` and `labels` in a row, as mteb's clusterings | one record a sentence |
| files | a file for each label | one record a row, the file's name as its label |
| titles | rows that name documents by title, and a BEIR corpus that has them | one record a row |
| by_hand | nowhere: a file of Examples that the user brings | the same |

Rows with an empty text, which published data has, are passed over and counted in a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from embedforge.data.beir import answered, document_text, graded, join_title
from embedforge.data.catalog import Entry, find_entry
from embedforge.data.names import CATALOG_PREFIX, HUB_PREFIX
from embedforge.data.notes import Notes, warn
from embedforge.data.readers import read_records
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError, missing_extra

logger = logging.getLogger(__name__)

PREPARED_FOLDER = "data"
PREPARED_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


class Opened(NamedTuple):
    """A catalogue entry, ready to be converted."""

    kind: str
    """The converter that its records need."""
    records: Iterator[Record]


def open_entry(path: str, *, split: str, kind: str, folder: str | Path | None = None) -> Opened:
    """Open a catalogue entry: your prepared file if there is one, else the published dataset.

    A prepared file is `data/NAME.jsonl`, `.jsonl.gz` or `.parquet` below `folder`, or in a folder of `data`:
    what curation and mining made of the dataset. It holds Examples, or rows with the keys of the entry.

    Args:
        path: `catalog:NAME`.
        split: of the published dataset.
        kind: the source's; which converter the published rows go to.
        folder: where relative paths start; the current folder when None.

    Raises:
        EmbedforgeError: no such entry, or one to bring by hand whose file is not there.
    """
    name, entry = path.removeprefix(CATALOG_PREFIX), find_entry(path)
    prepared = prepared_file(name, folder)
    if prepared is not None:
        logger.info("%s: reading the prepared file %s", path, prepared)
        return Opened(_kind_of_file(prepared, kind), read_records(prepared))
    if entry.layout == "by_hand":
        wanted = Path(folder or "") / PREPARED_FOLDER / f"{name}.jsonl.gz"
        raise EmbedforgeError(
            f"{path}: '{entry.title}' is on no hub in a form that can be read; write {wanted} with Examples "
            f"(docs/data.md). {entry.note}".strip()
        )
    return Opened(kind, read_entry(entry, split=split))


def prepared_file(name: str, folder: str | Path | None = None) -> Path | None:
    """Return the prepared file of an entry, None where there is none.

    Raises:
        EmbedforgeError: there are several, and which one is meant cannot be told.
    """
    data = Path(folder or "") / PREPARED_FOLDER
    files = [name + ending for ending in PREPARED_ENDINGS]
    paths = [
        path for file in files for path in (data / file, *sorted(data.glob(f"*/{file}"))) if path.is_file()
    ]
    if len(paths) > 1:
        raise EmbedforgeError(f"catalog:{name}: {paths[0]} and {paths[1]} are both there; keep one")
    return paths[0] if paths else None


def read_entry(entry: Entry, *, split: str | None = None) -> Iterator[Record]:
    """Yield the records of a published dataset, with the keys of its kind.

    Args:
        entry: an entry with a hub id.
        split: another than the entry's, if given.

    Raises:
        EmbedforgeError: the dataset cannot be read, or its columns are not those of the entry; names them.
    """
    readers: dict[str, Callable[[Entry, str], Iterator[Record]]] = {
        "columns": _read_columns,
        "beir": _read_beir,
        "sets": _read_sets,
        "files": _read_files,
        "titles": _read_titles,
    }
    skipped = 0
    for record in readers[entry.layout](entry, split or entry.split):
        if any(value is None or value == [] or _is_blank(value) for value in record.values.values()):
            skipped += 1
        else:
            yield record
    if skipped:
        logger.warning("%s: %d rows have an empty text and are passed over", entry.hub, skipped)


def _kind_of_file(path: Path, kind: str) -> str:
    """A file of Examples says so by its first row; otherwise its rows are of the entry's kind."""
    first = next(read_records(path))
    return kind if {"query", "anchor"}.isdisjoint(first.values) else "examples"


def _rows(entry: Entry, split: str) -> Iterator[Record]:
    """Yield the rows of all configurations, one after the other."""
    for config in entry.configs or ("",):
        yield from read_records(f"{HUB_PREFIX}{entry.hub}{':' if config else ''}{config}", split=split)


def _read_columns(entry: Entry, split: str) -> Iterator[Record]:
    for row in _rows(entry, split):
        yield _renamed(entry, row)


def _renamed(entry: Entry, row: Record, **fixed: Any) -> Record:
    """Return the row with our keys; `fixed` are values that stand in no column."""
    values = {key: _text_of(row, column) for key, column in entry.columns.items()} | fixed
    if "label" in values:
        values["label"] = _label(entry, values["label"])
    return Record(values, row.path, row.number, row.unit)


def _text_of(row: Record, column: str | tuple[str, ...]) -> Any:
    """Return a column's value, or several columns' texts joined by a space."""
    if isinstance(column, str):
        return _value(row, column)
    return " ".join(text.strip() for text in (_value(row, name) for name in column) if text).strip()


def _value(row: Record, column: str) -> Any:
    """Follow `texts.0` to the first item of a list, `facts.key` to the key of each item of one."""
    name, *path = column.split(".")
    if name not in row.values:
        raise row.error(
            f"there is no column '{name}', the columns are: {', '.join(row.values)}; "
            "has the dataset changed since the catalogue was written?"
        )
    value = row.values[name]
    for part in path:
        if part.isdigit():
            value = value[int(part)] if value and len(value) > int(part) else None
        elif isinstance(value, list):
            value = [item[part] for item in value]
        else:
            value = (value or {}).get(part)
    return value


def _label(entry: Entry, value: Any) -> Any:
    if entry.first_word_of_label and isinstance(value, str):
        value = value.split()[0] if value.split() else None
    return entry.label_names.get(str(value), value)


def _read_beir(entry: Entry, split: str) -> Iterator[Record]:
    """Read judgements first, then only the texts that they name: memory is that of the judged documents."""
    notes, hub = Notes(), f"{HUB_PREFIX}{entry.hub}"
    grades, _ = graded(read_records(f"{hub}:default", split=split), notes)
    queries = _texts_by_id(f"{hub}:queries", "queries", grades.keys())
    wanted = {name for of_query in grades.values() for name, grade in of_query.items() if grade > 0}
    documents = _texts_by_id(f"{hub}:corpus", "corpus", wanted)
    lacking = {name for name in wanted if not documents.get(name)}
    if lacking:  # of published data, which its user cannot mend
        notes["relevant documents that are missing or have no text, passed over"] = len(lacking)
    grades = answered(grades, lacking, notes)
    warn(f"{hub} ({split})", notes)
    for number, (query_id, of_query) in enumerate(grades.items(), start=1):
        names = [name for name, grade in of_query.items() if grade > 0]
        positives = [{"id": name, "text": documents[name]} for name in names]
        values = {"query": queries.get(query_id), "query_id": query_id, "positives": positives}
        yield Record(values, f"{hub} ({split})", number, "query")


def _texts_by_id(dataset: str, split: str, wanted: Any) -> dict[str, str]:
    """Return the texts of the `wanted` ids, a title before its text, "" where there is neither."""
    return {
        name: document_text(row)
        for row in read_records(dataset, split=split)
        if (name := row.identifier("_id")) in wanted
    }


def _read_sets(entry: Entry, split: str) -> Iterator[Record]:
    for row in _rows(entry, split):
        sentences, labels = row.require("sentences"), row.require("labels")
        if len(sentences) != len(labels):
            raise row.error(f"{len(sentences)} sentences have {len(labels)} labels")
        for text, label in zip(sentences, labels, strict=True):
            yield Record({"text": text, "label": _label(entry, label)}, row.path, row.number, row.unit)


def _read_files(entry: Entry, split: str) -> Iterator[Record]:
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "data", f"reading {entry.hub}") from None
    for file in entry.files:
        path = f"{HUB_PREFIX}{entry.hub}/{file}"
        label = file.partition(".jsonl")[0]
        try:
            rows = datasets.load_dataset(str(entry.hub), data_files=file, split=split, streaming=True)
            for number, values in enumerate(rows, start=1):
                yield _renamed(entry, Record(values, path, number, "row"), label=label)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise EmbedforgeError(f"{path}: cannot be read ({error})") from error


def _read_titles(entry: Entry, split: str) -> Iterator[Record]:
    rows = [_renamed(entry, row) for row in _rows(entry, split)]
    wanted = {title for row in rows for title in row.values["positive"] or ()}
    documents: dict[str, str] = {}
    for document in read_records(f"{HUB_PREFIX}{entry.corpus}:corpus", split="corpus"):
        title = document.optional_text("title")
        if title in wanted:
            documents.setdefault(title, join_title(title, document.values.get("text") or ""))
    for row in rows:
        titles: Mapping[str, None] = dict.fromkeys(row.values["positive"] or ())
        positives = [documents[title] for title in titles if title in documents]
        yield Record({"query": row.values["query"], "positives": positives}, row.path, row.number, row.unit)


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()
