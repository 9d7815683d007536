"""Approximate search by faiss, for corpora where exact search takes too long; needs `faiss-cpu`.

The index finds candidates, four times as many as asked for; their scores come from the vectors on disk, so
only the recall is approximate, and it is measured: see `FaissIndex.recall`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedforge.errors import EmbedforgeError, missing_extra
from embedforge.files import hash_of
from embedforge.mine.vectors import pair_scores, read_blocks, shape_of
from embedforge.ranking import NOTHING, Floats, Indices

WIDER = 4
"""Candidates taken from the index for each one asked for; the best by exact score stay."""
TRAINING_VECTORS = 65_536
_SHARE_OF_LISTS = 16
"""One in so many lists of an inverted file is searched; at least 8."""
QUERIES_MEASURED = 100


class FaissIndex:
    """An index over a teacher's vectors, built on first use and kept beside them.

    Args:
        factory: what to build, in faiss's words: `IVF4096,SQ8`, `HNSW32_SQ8`, `IVF16384,PQ48` ...
        folder: of the teacher's vectors.
        files: the vectors, shard by shard.
        memory: bytes that the index may take.

    Raises:
        EmbedforgeError: no faiss, a factory that it does not understand, or too large an index.
    """

    def __init__(self, factory: str, folder: Path, files: Sequence[Path], memory: int) -> None:
        try:
            import faiss
        except ImportError:
            raise missing_extra("faiss-cpu", "faiss", f"--index {factory}") from None
        self._faiss: Any = faiss
        self.factory = factory
        self._files = list(files)
        self._rows, self._width = _total(files)
        self._path = folder / f"{hash_of([factory, [file.name for file in files]])}.faiss"
        self._index = self._opened(memory)
        self._widen()

    def _opened(self, memory: int) -> Any:
        if self._path.exists():
            return self._faiss.read_index(str(self._path))
        try:
            index = self._faiss.index_factory(self._width, self.factory, self._faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise EmbedforgeError(
                f"--index {self.factory}: faiss does not know this index ({_said(error)}); "
                "for example IVF4096,SQ8"
            ) from None
        needed = self._rows * (index.sa_code_size() + 8) if hasattr(index, "sa_code_size") else 0
        if needed > memory:
            raise EmbedforgeError(
                f"--index {self.factory}: takes {needed / 1e9:.1f} GB for {self._rows:,} vectors, and "
                f"{memory / 1e9:.1f} are left by --memory-gb; a smaller code (SQ8, PQ48) takes less"
            )
        self._train(index)
        for block in self._blocks():
            index.add(block)
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        self._faiss.write_index(index, str(partial))
        partial.replace(self._path)
        return index

    def _train(self, index: Any) -> None:
        """Train on vectors drawn evenly from the whole corpus."""
        step = max(1, self._rows // TRAINING_VECTORS)
        sample = np.concatenate([block[::step] for block in self._blocks()])
        try:
            index.train(sample)
        except RuntimeError as error:
            raise EmbedforgeError(
                f"--index {self.factory}: cannot be trained on {len(sample):,} vectors "
                f"({_said(error)}); use fewer lists, or --index exact"
            ) from None

    def _blocks(self) -> Iterator[Floats]:
        for path in self._files:
            yield from read_blocks(path)

    def _widen(self) -> None:
        """Search more than faiss's default of a single list."""
        try:
            inverted = self._faiss.extract_index_ivf(self._index)
        except RuntimeError:
            return
        inverted.nprobe = min(inverted.nlist, max(8, inverted.nlist // _SHARE_OF_LISTS))

    def search(self, queries: Floats, k: int, files: Sequence[Path]) -> tuple[Indices, Floats]:
        """Return the best `k` of what the index finds, scored exactly: int64 and float32 [queries, k]."""
        width = min(WIDER * k, self._rows)
        _, documents = self._index.search(queries, width)
        query, column = np.nonzero(documents != NOTHING)
        scores = np.full(documents.shape, -np.inf, dtype=np.float32)
        scores[query, column] = pair_scores(queries, files, query, documents[query, column])
        order = np.lexsort((documents, -scores), axis=1)[:, :k]
        return np.take_along_axis(documents, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def recall(self, queries: Floats, k: int) -> float:
        """Return which share of the true best `k` the index finds, over at most 100 of the queries."""
        some = queries[:: max(1, len(queries) // QUERIES_MEASURED)][:QUERIES_MEASURED]
        from embedforge.nearest import Nearest  # torch, once there is something to compute

        nearest = Nearest(some, min(k, self._rows))
        for block in self._blocks():
            nearest.add(block)
        truth, _ = nearest.result()
        retrieved, _ = self.search(some, k, self._files)
        return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(truth, retrieved, strict=True)]))


def _said(error: RuntimeError) -> str:
    """Return faiss's message without the place in its source and the condition that failed."""
    return re.sub(r"^Error in .*?\.\w+:\d+: (Error: '.*?' failed: )?", "", str(error).splitlines()[-1])


def _total(files: Sequence[Path]) -> tuple[int, int]:
    shapes = [shape_of(file) for file in files]
    return sum(rows for rows, _ in shapes), shapes[0][1]
