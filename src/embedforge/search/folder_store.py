"""An index in a folder: every word is counted, every vector looked at, whole or (many) by its signs first.

    index.json             the newest generation: model, fingerprint, segments; replaced in one step
    segment-N-XXXX/        see `segment`
    removed-N-XXXX.npy     which documents of a segment are gone, bool [documents]

A writer adds files under new names, replaces index.json, and only then deletes what the new generation does
not need. A reader holds its files open, so it goes on with the generation that it has opened. The folder of
version 1 (vectors.npy, documents.jsonl and offsets.npy beside index.json) is one segment without words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.ranking import Floats, top_k
from embedforge.search.document import DENSE_SHARE, Document
from embedforge.search.filters import Filter
from embedforge.search.inverted import bm25_scores
from embedforge.search.segment import Mask, Segment
from embedforge.search.signs import FARTHEST, Distances, farthest_chosen
from embedforge.search.store import Facts, Key

VERSION = 2
INDEX_FILE = "index.json"
OURS = re.compile(r"(segment|removed)-\d+-[0-9a-f]{8}(\.npy)?")
"""What a segment, or the list of what is removed from it, may be called."""


@dataclass(frozen=True)
class Part:
    """A segment, and which of its documents are still there."""

    segment: Segment
    alive: Mask | None
    """[documents]; None for all."""
    record: Mapping[str, Any]
    """What index.json says of it."""

    def __len__(self) -> int:
        return len(self.segment) if self.alive is None else int(self.alive.sum())

    def passing(self, filters: Sequence[Filter]) -> Mask | None:
        """Return which documents are there and pass all filters, [documents]; None for all."""
        if not filters:
            return self.alive
        passing = self.segment.passing(filters)
        return passing if self.alive is None else passing & self.alive

    def rows(self) -> NDArray[np.int64]:
        """The rows that are still there."""
        return np.arange(len(self.segment)) if self.alive is None else np.flatnonzero(self.alive)


class FolderStore:
    """One generation of an index folder.

    Raises:
        EmbedforgeError: no index, one of a later version, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        record = _read_record(folder)
        while True:
            try:
                self.parts = [_open_part(folder, part, record) for part in record["segments"]]
                break
            except (FileNotFoundError, EmbedforgeError) as error:
                newest = _read_record(folder)
                if newest != record:  # a writer has replaced what index.json named when it was read
                    record = newest
                elif isinstance(error, EmbedforgeError):
                    raise
                else:
                    raise EmbedforgeError(
                        f"{folder}: the index is damaged ({error.filename} is not there); build it again"
                    ) from None
        self.record: Mapping[str, Any] = record
        """What index.json held."""
        self._starts = np.cumsum([0, *(len(part.segment) for part in self.parts)])
        fields = dict.fromkeys(field for part in self.parts for field in part.segment.fields)
        self.facts = Facts(
            model=record["model"],
            fingerprint=record["fingerprint"],
            documents=sum(map(len, self.parts)),
            dimensions=record["dimensions"],
            mode=record["mode"],
            fields=tuple(fields),
            store="folder",
            generation=record["generation"],
            root=record["root"],
            dense_share=record.get("dense_share", DENSE_SHARE),  # earlier versions wrote none
        )

    @property
    def is_old(self) -> bool:
        """Tell an index of version 1: its words are counted anew by every process that searches it."""
        return any(part.segment.is_old for part in self.parts)

    @property
    def size(self) -> tuple[int, int]:
        """The number of segments, and of documents that are removed but take space still."""
        return len(self.parts), int(self._starts[-1]) - self.facts.documents

    def nearest(self, vector: Floats, k: int, filters: Sequence[Filter]) -> list[tuple[Key, float]]:
        """Return the `k` documents of highest inner product; see `Store`, and `signs` for large segments."""
        masks = [part.passing(filters) for part in self.parts]
        rows = self._chosen(vector, k, masks)
        scores = [part.segment.scores(vector, chosen) for part, chosen in zip(self.parts, rows, strict=True)]
        return self._best(scores, rows, k)

    def matching(self, query: str, k: int, filters: Sequence[Filter]) -> list[tuple[Key, float]]:
        """Return the `k` documents of highest BM25 score above 0; see `Store`."""
        scores, rows = self._bm25(query), []
        for part, score in zip(self.parts, scores, strict=True):
            mask = part.passing(filters)
            rows.append(np.flatnonzero(score > 0 if mask is None else (score > 0) & mask))
        return self._best([score[row] for score, row in zip(scores, rows, strict=True)], rows, k)

    def documents(self, keys: Sequence[Key]) -> list[Document]:
        """Read documents."""
        return [part.segment.document(row) for part, row in map(self._place, keys)]

    def dense_scores(self, vector: Floats, keys: Sequence[Key]) -> list[float]:
        """Return inner products."""
        return [float(part.segment.vectors[row] @ vector) for part, row in map(self._place, keys)]

    def lexical_scores(self, query: str, keys: Sequence[Key]) -> list[float | None]:
        """Return BM25 scores."""
        scores = np.concatenate(self._bm25(query)) if keys else np.empty(0)
        return [float(scores[key]) for key in keys]  # type: ignore[call-overload]

    def ids(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each document's id and metadata."""
        for document in self.all_documents():
            yield document.id, document.metadata

    def all_documents(self) -> Iterator[Document]:
        """Yield what is there, in its order."""
        for part in self.parts:
            for row in part.rows().tolist():
                yield part.segment.document(row)

    def newest(self) -> FolderStore | None:
        """Return the newest generation, None where it is this one."""
        if _read_record(self.folder)["generation"] == self.facts.generation:
            return None
        return FolderStore(self.folder)

    def _bm25(self, query: str) -> list[Floats]:
        return bm25_scores(
            query, [part.segment.inverted for part in self.parts], [part.alive for part in self.parts]
        )

    def _chosen(self, vector: Floats, k: int, masks: Sequence[Mask | None]) -> list[NDArray[np.int64] | None]:
        """Return which rows of each part are to be scored, None for all.

        They are those that pass, and of parts with signs only those that may be among the best.
        """
        rows = [None if mask is None else np.flatnonzero(mask) for mask in masks]
        distances: dict[int, Distances] = {}
        for number, (part, mask) in enumerate(zip(self.parts, masks, strict=True)):
            if part.segment.signs is not None:
                distances[number] = part.segment.signs.distances(vector)
                if mask is not None:
                    distances[number][~mask] = FARTHEST
        farthest = farthest_chosen(list(distances.values()), k)
        for number, distance in distances.items():
            rows[number] = np.flatnonzero(distance <= farthest)
        return rows

    def _best(
        self, scores: list[Floats], rows: Sequence[NDArray[np.int64] | None], k: int
    ) -> list[tuple[Key, float]]:
        """Return the best of all parts: `scores` are those of their `rows`, None for all."""
        if not scores:
            return []
        keys = [
            start + (np.arange(len(score)) if row is None else row)
            for start, score, row in zip(self._starts, scores, rows, strict=False)
        ]
        places, best = top_k(np.concatenate(scores)[None], k)
        return list(zip(np.concatenate(keys)[places[0]].tolist(), best[0].tolist(), strict=True))

    def _place(self, key: Key) -> tuple[Part, int]:
        row = int(key)  # type: ignore[call-overload]
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[part], row - int(self._starts[part])


def _read_record(folder: Path) -> dict[str, Any]:
    record = read_object(folder / INDEX_FILE)
    if record.get("version") == 1:
        segment = {"name": ".", "documents": record.get("documents")}
        record = {**record, "segments": [segment], "generation": "0", "mode": "fused", "root": ""}
    elif record.get("version") != VERSION:
        raise EmbedforgeError(
            f"{folder / INDEX_FILE}: an index of version {record.get('version')!r:.20}, this embedforge "
            f"reads 1 and {VERSION}; build it again with this version"
        )
    for key in ("model", "fingerprint", "dimensions", "mode", "generation", "segments", "root"):
        if key not in record:
            raise EmbedforgeError(f"{folder / INDEX_FILE}: the index is damaged (no {key}); build it again")
    return record


def _open_part(folder: Path, part: Mapping[str, Any], record: Mapping[str, Any]) -> Part:
    name = part.get("name", "")
    if name != "." and not OURS.fullmatch(name):
        raise EmbedforgeError(f"{folder / INDEX_FILE}: the index is damaged (a segment named {name!r:.40})")
    segment = Segment(folder / name, part["documents"], record["dimensions"], record["version"] == 1)
    if "removed" not in part:
        return Part(segment, None, part)
    if not OURS.fullmatch(part["removed"]):
        raise EmbedforgeError(f"{folder / INDEX_FILE}: the index is damaged ({part['removed']!r:.40})")
    return Part(segment, ~np.load(folder / part["removed"], allow_pickle=False), part)
