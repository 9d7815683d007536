"""An index in a folder, searched exactly: every vector is looked at, every word counted.

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
from embedforge.search.store import Facts, Key

VERSION = 2
INDEX_FILE = "index.json"
_OPENINGS = 5
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
        for opening in range(_OPENINGS):
            record = _read_record(folder)
            try:
                self.parts = [_open_part(folder, part, record) for part in record["segments"]]
                break
            except (
                FileNotFoundError
            ) as error:  # replaced since index.json was read: then there is a newer one
                if opening == _OPENINGS - 1 or _read_record(folder) == record:
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
        """Return the `k` documents of highest inner product; see `Store`."""
        scores = [part.segment.scores(vector) for part in self.parts]
        return self._best(scores, k, filters, least=-np.inf)

    def matching(self, query: str, k: int, filters: Sequence[Filter]) -> list[tuple[Key, float]]:
        """Return the `k` documents of highest BM25 score above 0; see `Store`."""
        return self._best(self._bm25(query), k, filters, least=0.0)

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

    def _best(
        self, scores: list[Floats], k: int, filters: Sequence[Filter], least: float
    ) -> list[tuple[Key, float]]:
        for part, score in zip(self.parts, scores, strict=True):
            if part.alive is not None:
                score[~part.alive] = -np.inf
            if filters:
                score[~part.segment.passing(filters)] = -np.inf
        together = np.concatenate(scores) if scores else np.empty(0, dtype=np.float32)
        passing = np.flatnonzero(together > least)
        rows, best = top_k(together[None, passing], k)
        return list(zip(passing[rows[0]].tolist(), best[0].tolist(), strict=True))

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
    segment = Segment(folder / name, part["documents"], record["dimensions"])
    if "removed" not in part:
        return Part(segment, None, part)
    if not OURS.fullmatch(part["removed"]):
        raise EmbedforgeError(f"{folder / INDEX_FILE}: the index is damaged ({part['removed']!r:.40})")
    return Part(segment, ~np.load(folder / part["removed"], allow_pickle=False), part)
