"""A teacher's vectors on disk as a ranking: exact, shard by shard, going on where it was killed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import hash_of, write_arrays
from embedforge.mine.candidates import QueryBlock
from embedforge.mine.corpus import Corpus
from embedforge.mine.faiss_index import FaissIndex
from embedforge.mine.vectors import ROWS_PER_READ, document_files, pair_scores, read_blocks, read_vectors
from embedforge.ranking import Floats, Indices

if TYPE_CHECKING:
    import torch


class DenseRanker:
    """Ranks by inner products with vectors that `embed_corpus` and `write_vectors` have written.

    Args:
        name: the teacher's.
        folder: with the vectors of one teacher.
        corpus: the documents.
        k: candidates of a query.
        device: where the products are computed.
        index: ranks approximately, by faiss, instead; the scores are exact all the same.
        memory: bytes; blocks of documents take a few hundredths of it.
        progress: called with (queries times documents) seen since the last call.
    """

    kind: Literal["vectors"] = "vectors"

    def __init__(
        self,
        name: str,
        folder: Path,
        corpus: Corpus,
        k: int,
        *,
        device: str | torch.device = "cpu",
        index: FaissIndex | None = None,
        memory: int = 4 * 10**9,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.key = f"{folder.name} {'exact' if index is None else index.factory}"
        self._folder, self._k, self._device = folder, min(k, len(corpus)), device
        self._files = document_files(folder, corpus)
        self._rows = [shard.rows for shard in corpus.shards]
        self._index, self._memory = index, memory
        self._progress = progress

    def query_file(self, block: QueryBlock) -> Path:
        """Return where the vectors of a block's queries lie, whether written or not."""
        return self._folder / f"queries-{block.key}.npy"

    def candidates(self, block: QueryBlock) -> tuple[Indices, Floats]:
        """See `Ranker`."""
        queries = read_vectors(self.query_file(block))
        if self._index is not None:
            result = self._index.search(queries, self._k, self._files)
            self._progress(len(queries) * sum(self._rows))
            return result
        return self._exact(block, queries)

    def _exact(self, block: QueryBlock, queries: Floats) -> tuple[Indices, Floats]:
        """Go through the shards; what is found so far is stored after each, and read back after a kill."""
        state = self._folder / f"nearest-{hash_of([block.key, self._k, [f.name for f in self._files]])}.npz"
        from embedforge.nearest import Nearest  # torch, once there is something to compute

        nearest, done = Nearest(queries, self._k, device=self._device), 0
        if (stored := load_arrays(state)) is not None:
            done = int(stored["shards"])
            nearest.restore(stored["indices"], stored["scores"], sum(self._rows[:done]))
        self._progress(len(queries) * sum(self._rows[:done]))
        rows = max(256, min(ROWS_PER_READ, self._memory // 50 // (4 * queries.shape[1])))
        for shard, path in enumerate(self._files[done:], start=done):
            for vectors in read_blocks(path, rows):
                nearest.add(vectors)
            self._progress(len(queries) * self._rows[shard])
            if len(self._files) > 1:
                indices, scores = nearest.result()
                write_arrays(state, {"indices": indices, "scores": scores, "shards": np.array(shard + 1)})
        return nearest.result()

    def scores(self, block: QueryBlock, query: Indices, document: Indices) -> Floats:
        """See `Ranker`."""
        return pair_scores(read_vectors(self.query_file(block)), self._files, query, document)


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Read an .npz file; None where there is none.

    Raises:
        EmbedforgeError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise EmbedforgeError(f"{path}: damaged ({error}); delete it and run again") from None
