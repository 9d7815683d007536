"""Who judges a pair: a model's vectors or BM25, as scores of a query and one or many passages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError

Floats = NDArray[np.float32]
BM25 = "bm25"


class Teacher(Protocol):
    """Turns texts into vectors whose inner product is the score."""

    def queries(self, examples: Sequence[Example]) -> Floats:
        """Return the vectors of the queries, each with its instruction: [examples, dimensions]."""

    def documents(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of documents: [texts, dimensions]."""


class ModelTeacher:
    """Any model that `embedforge.load` reads.

    A model with a contract gets each Example's instruction through its template, another one uses its own
    prompts.

    Args:
        name: a folder or hub id.
        device: cpu, cuda ...; CUDA where there is one when None.
        progress: called with the number of texts finished since the last call.
    """

    def __init__(
        self, name: str, device: str | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        from embedforge.model.encoder import embedding_model, load
        from embedforge.runtime import pick_device

        self._st = load(name, device=str(pick_device(device)))
        self._progress = progress
        try:
            self._model: Any = embedding_model(self._st)
        except EmbedforgeError:
            self._model = None

    def queries(self, examples: Sequence[Example]) -> Floats:
        """Return the vectors of the queries, each with its instruction: [examples, dimensions]."""
        if self._model is None:
            return self._plain(self._st.encode_query, [example.query for example in examples])
        vectors: dict[int, Floats] = {}
        contract = self._model.contract
        for instruction in dict.fromkeys(example.instruction for example in examples):
            rows = [row for row, example in enumerate(examples) if example.instruction == instruction]
            encoded = self._encode(
                [examples[row].query for row in rows],
                contract.query_prefix(instruction),
                contract.query_suffix(instruction),
            )
            vectors.update(zip(rows, encoded, strict=True))
        return np.stack([vectors[row] for row in range(len(examples))])

    def documents(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of documents: [texts, dimensions]."""
        if self._model is None:
            return self._plain(self._st.encode_document, texts)
        contract = self._model.contract
        return self._encode(texts, contract.document_prefix(), contract.document_suffix())

    def _encode(self, texts: Sequence[str], prefix: str, suffix: str) -> Floats:
        from embedforge.encode import encode

        return encode(self._model, texts, prefix, suffix=suffix, progress=self._progress)

    def _plain(self, embed: Callable[..., Any], texts: Sequence[str]) -> Floats:
        vectors = embed(
            list(texts), show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True
        )
        self._progress(len(texts))
        return np.asarray(vectors, dtype=np.float32)
