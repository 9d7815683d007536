"""A model's vectors, embedded once and kept, and what mteb sees of them in each variant. Needs mteb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from mteb._create_dataloaders import create_dataloader
from mteb.models.model_meta import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType
from numpy.typing import NDArray

from embedforge.compress.variants import Variant, bits
from embedforge.evaluate.encoders import SEARCH_TYPES, Encoder
from embedforge.files import hash_of, replace_file
from embedforge.quantize import Floats
from embedforge.ranking import top_k as best_of

CANDIDATES = 100
"""Documents that a search by bits hands on to be rescored."""
_QUERIES_AT_ONCE = 256


class KeptVectors:
    """The vectors of a model, each set of texts embedded once, in memory for a task and on the disk.

    Args:
        encoder: of the model.
        folder: of the files, which another start reads.
        key: what decides about the vectors besides text and task.
    """

    def __init__(self, encoder: Encoder, folder: Path, key: Mapping[str, Any]) -> None:
        self.encoder, self._folder, self._key = encoder, folder, dict(key)
        self._held: dict[str, Floats] = {}

    def of(self, inputs: Any, task_metadata: Any, prompt_type: PromptType | None = None) -> Floats:
        """Return the whole vectors of a data loader's texts: float32 [texts, dim]."""
        texts = [text for batch in inputs for text in batch["text"]]
        role = None if prompt_type is None else prompt_type.value
        instruction = self.encoder.instruction(task_metadata)
        name = hash_of([self._key, task_metadata.name, task_metadata.type, instruction, role, texts])
        if name not in self._held:
            file = self._folder / f"{name}.npy"
            if not file.exists():
                found = self.encoder.encode(
                    [{"text": texts}], task_metadata=task_metadata, prompt_type=prompt_type
                )
                with replace_file(file) as partial, partial.open("wb") as stream:
                    np.save(stream, found)
            self._held[name] = np.load(file)
        return self._held[name]

    def of_texts(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of texts as documents."""
        plain = SimpleNamespace(name="texts", type="Retrieval", prompt=None)
        return self.of([{"text": list(texts)}], plain, PromptType.document)

    def forget(self) -> None:
        """Let go of what is in memory."""
        self._held.clear()


class VariantEncoder:
    """mteb's encoder protocol over kept vectors in a variant."""

    def __init__(
        self, kept: KeptVectors, variant: Variant, rotation: NDArray[np.float64] | None = None
    ) -> None:
        self._kept, self._variant, self._rotation = kept, variant, rotation

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The name under which mteb files the results."""
        return ModelMeta.create_empty({"name": "embedforge/variant", "revision": "local"})

    def encode(
        self, inputs: Any, *, task_metadata: Any, prompt_type: PromptType | None = None, **_: Any
    ) -> Floats:
        """Return the stored vectors of a data loader's texts: float32 [texts, dim]."""
        return self._variant.stored(self._kept.of(inputs, task_metadata, prompt_type), self._rotation)

    def similarity(self, a: Any, b: Any) -> Any:
        """Cosine of every pair: [n, dim] and [m, dim] to [n, m]."""
        return cos_sim(a, b)

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        """Cosine of row i with row i: [n, dim] twice to [n]."""
        return pairwise_cos_sim(a, b)


class RescoredSearch:
    """mteb's search protocol in two steps: candidates by their bits, then in the order of finer scores."""

    def __init__(
        self,
        kept: KeptVectors,
        variant: Variant,
        rotation: NDArray[np.float64] | None = None,
        candidates: int = CANDIDATES,
    ) -> None:
        self._kept, self._variant, self._rotation = kept, variant, rotation
        self._candidates = candidates
        self._ids: list[str] = []
        self._documents: Floats = np.empty((0, 0), dtype=np.float32)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The name under which mteb files the results."""
        return ModelMeta.create_empty({"name": "embedforge/variant", "revision": "local"})

    def index(self, corpus: Any, *, task_metadata: Any, **_: Any) -> None:
        """Embed every document."""
        self._ids = list(corpus["id"])
        self._documents = self._embed(corpus, task_metadata, PromptType.document)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Return query id -> document id -> score of the `top_k` best, or of the given candidates."""
        vectors = self._embed(queries, task_metadata, PromptType.query)
        places = {name: place for place, name in enumerate(self._ids)} if top_ranked else {}
        results: dict[str, dict[str, float]] = {}
        for start in range(0, len(vectors), _QUERIES_AT_ONCE):
            some = slice(start, start + _QUERIES_AT_ONCE)
            coarse = bits(vectors[some]) @ bits(self._documents).T / np.float32(self._variant.dim)
            for query, name, scores in zip(vectors[some], queries["id"][some], coarse, strict=True):
                if top_ranked:
                    rows = np.array([places[document] for document in top_ranked[name]])
                    found = self._fine(query, rows)
                else:
                    rows, found = self._ranked(query, scores, top_k)
                results[name] = {self._ids[row]: float(score) for row, score in zip(rows, found, strict=True)}
        return results

    def _ranked(self, query: Floats, coarse: Floats, k: int) -> tuple[Any, Any]:
        """Rescore the first candidates, and leave those behind them in the order of their bits."""
        rows, scores = (part[0] for part in best_of(coarse[None], max(k, self._candidates)))
        first = self._candidates
        fine = self._fine(query, rows[:first]) + np.float32(4)  # above every cosine of those behind
        scores = np.concatenate([fine, scores[first:]])
        order = np.argsort(-scores, kind="stable")[:k]
        return rows[order], scores[order]

    def _fine(self, query: Floats, rows: NDArray[np.int64]) -> Floats:
        """Cosines of a query in full numbers with stored documents: [rows]."""
        stored = self._variant.stored_of(self._documents[rows])
        lengths = np.maximum(np.linalg.norm(stored, axis=1), 1e-12)
        return np.asarray(stored @ query / lengths, dtype=np.float32)

    def _embed(self, texts: Any, task_metadata: Any, role: PromptType) -> Floats:
        loader = create_dataloader(texts, task_metadata=task_metadata, prompt_type=role, batch_size=256)
        return self._variant.whole(self._kept.of(loader, task_metadata, role), self._rotation)


def runner_of(
    kept: KeptVectors,
    variant: Variant,
    task: Any,
    rotation: NDArray[np.float64] | None,
    candidates: int = CANDIDATES,
) -> VariantEncoder | RescoredSearch:
    """Return what scores a variant on a task: two steps where it is a search and the variant has two."""
    if variant.rescores and task.metadata.type in SEARCH_TYPES:
        return RescoredSearch(kept, variant, rotation, candidates)
    return VariantEncoder(kept, variant, rotation)
