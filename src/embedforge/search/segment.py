"""A part of an index folder: documents with their vectors, words and metadata; never changed once written.

    vectors.npy      float32 [documents, dimensions]
    documents.jsonl  one document a line, in the order of the vectors
    offsets.npy      int64 [documents + 1], the byte at which each line starts
    ids.npy          uint64 [documents], hashes of the documents' ids
    fields.json      key of metadata -> its values, each once
    codes.npy        int32 [keys, documents], which of these values; -1 for none
    (and the inverted file, see `inverted`; of large segments the bits of `signs`)

All is read where it lies, so an index may be larger than memory, and what is open stays readable after
another process has deleted it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import read_json, write_json
from embedforge.ranking import Floats
from embedforge.search.document import Document, Value
from embedforge.search.filters import Filter
from embedforge.search.inverted import InvertedFile, InvertedFileBuilder, hash64, open_array
from embedforge.search.signs import SIGNS_FROM, Signs, write_signs

_ROWS_AT_ONCE = 65_536

Mask = NDArray[np.bool_]


class Segment:
    """A segment on disk, opened; safe to read from several threads.

    One that is old, from an index of version 1, has neither words nor fields.

    Raises:
        EmbedforgeError: files that do not fit together.
        FileNotFoundError: it is not there (any more).
    """

    def __init__(self, folder: Path, documents: int, dimensions: int, is_old: bool = False) -> None:
        self.folder, self.is_old = folder, is_old
        try:
            self.vectors = open_array(folder / "vectors.npy")
            self._offsets = open_array(folder / "offsets.npy")
            self._lines = np.memmap(folder / "documents.jsonl", dtype=np.uint8, mode="r")
            fits = (
                self.vectors.shape == (documents, dimensions)
                and self._offsets.shape == (documents + 1,)
                and self._offsets[-1] == len(self._lines)
            )
            self._inverted = None if is_old else InvertedFile.read(folder)
            self._ids = None if is_old else open_array(folder / "ids.npy")
            self._fields: dict[str, list[Value]] = {} if is_old else read_json(folder / "fields.json")
            self._codes = None if is_old else open_array(folder / "codes.npy")
            self.signs = Signs.read(folder)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise EmbedforgeError(f"{folder}: the index is damaged ({error}); build it again") from None
        if not fits or (self.signs is not None and self.signs.bits.shape[1] != documents):
            raise EmbedforgeError(f"{folder}: the index is damaged (sizes do not fit); build it again")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def fields(self) -> list[str]:
        """The keys of metadata."""
        return list(self._fields)

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """Hashes of the documents' ids, [documents]."""
        if self._ids is not None:
            return self._ids
        return np.array([hash64(self.document(row).id) for row in range(len(self))], dtype=np.uint64)

    @cached_property
    def inverted(self) -> InvertedFile:
        """The words; of an index of version 1, which has none, counted at first use."""
        if self._inverted is not None:
            return self._inverted
        builder = InvertedFileBuilder()
        for row in range(len(self)):
            builder.add(self.document(row).text)
        return builder.result()

    def document(self, row: int) -> Document:
        """Read a document."""
        line = self._lines[int(self._offsets[row]) : int(self._offsets[row + 1])]
        return Document(**json.loads(line.tobytes()))

    def scores(self, query: Floats, rows: NDArray[np.int64] | None = None) -> Floats:
        """Return the inner products with `query` of these rows, or of all, float32 [rows]."""
        count = len(self) if rows is None else len(rows)
        scores = np.empty(count, dtype=np.float32)
        for start in range(0, count, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            np.dot(self.vectors[part if rows is None else rows[part]], query, out=scores[part])
        return scores

    def passing(self, filters: Sequence[Filter]) -> Mask:
        """Return which documents pass all filters, [documents]."""
        passing = np.ones(len(self), dtype=bool)
        for condition in filters:
            values = self._fields.get(condition.field)
            if values is None or self._codes is None:
                return np.zeros(len(self), dtype=bool)
            codes = self._codes[list(self._fields).index(condition.field)]
            allowed = np.array([*(condition.holds(value) for value in values), False])  # the last for none
            passing &= allowed[codes]
        return passing

    def values(self, field: str) -> list[Value | None]:
        """Return every document's value of a field, None where it has none."""
        if field not in self._fields or self._codes is None:
            return [None] * len(self)
        values = [*self._fields[field], None]
        return [values[code] for code in self._codes[list(self._fields).index(field)]]


def write_segment(folder: Path, vectors: NDArray[Any], documents: Iterable[Document]) -> None:
    """Write a segment into `folder`, which exists.

    Raises:
        EmbedforgeError: another number of documents than of vectors, or metadata that is neither text, number
            nor truth value.
    """
    offsets, ids, inverted = [0], [], InvertedFileBuilder()
    columns = _Columns()
    with (folder / "documents.jsonl").open("wb") as file:
        for row, document in enumerate(documents):
            # A lone surrogate (an undecodable file name) becomes \udcxx, which JSON reads back as it was.
            record = asdict(document) | {"metadata": dict(document.metadata)}
            line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
            offsets.append(offsets[-1] + file.write(line + b"\n"))
            ids.append(hash64(document.id))
            inverted.add(document.text)
            columns.add(row, document)
    if len(ids) != len(vectors):
        raise EmbedforgeError(f"there are {len(vectors)} vectors for {len(ids)} documents")
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64), allow_pickle=False)
    np.save(folder / "ids.npy", np.array(ids, dtype=np.uint64), allow_pickle=False)
    np.save(folder / "vectors.npy", np.asarray(vectors, dtype=np.float32), allow_pickle=False)
    if len(vectors) >= SIGNS_FROM:
        write_signs(folder, vectors)
    inverted.result().write(folder)
    columns.write(folder, len(ids))


class _Columns:
    """Metadata, column by column."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[tuple[type, Value], int]] = {}
        self._rows: dict[str, tuple[list[int], list[int]]] = {}

    def add(self, row: int, document: Document) -> None:
        for key, value in document.metadata.items():
            if not isinstance(value, (str, int, float)):
                raise EmbedforgeError(
                    f"document '{document.id}': metadata '{key}' must be text, a number, true or false, "
                    f"found {value!r:.60}"
                )
            numbers = self._numbers.setdefault(key, {})
            rows, codes = self._rows.setdefault(key, ([], []))
            rows.append(row)
            codes.append(numbers.setdefault((type(value), value), len(numbers)))

    def write(self, folder: Path, documents: int) -> None:
        codes = np.full((len(self._rows), documents), -1, dtype=np.int32)
        for column, (rows, numbers) in zip(codes, self._rows.values(), strict=True):
            column[rows] = numbers
        np.save(folder / "codes.npy", codes, allow_pickle=False)
        values = {key: [value for _, value in numbers] for key, numbers in self._numbers.items()}
        write_json(folder / "fields.json", values)
