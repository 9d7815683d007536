"""BM25 as an mteb model: the baseline that any embedding model has to beat on retrieval. Needs mteb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mteb.models.model_meta import ModelMeta

from embedforge.errors import EmbedforgeError
from embedforge.lexical import Bm25

BM25_NAME = "bm25"
BM25_TYPES = frozenset({"Retrieval", "Reranking"})
"""The task types that ranking by words can do."""


class Bm25Search:
    """mteb's search protocol over `embedforge.lexical.Bm25`."""

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self._progress = progress or (lambda _: None)
        self._ids: list[str] = []
        self._index: Bm25 | None = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The name under which mteb files the results."""
        return ModelMeta.create_empty({"name": f"embedforge/{BM25_NAME}", "revision": "1"})

    def index(self, corpus: Any, **_: Any) -> None:
        """Index the `text` (and `title`, where mteb has one) of every document."""
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
        self._ids = list(corpus["id"])
        self._index = Bm25([f"{t or ''} {x}".strip() for t, x in zip(titles, corpus["text"], strict=True)])
        self._progress(len(self._ids))

    def search(
        self,
        queries: Any,
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Return query id -> document id -> score of the `top_k` best, or of the given candidates.

        Of a whole corpus only documents that share a word with the query are returned; the rest would
        be ranked by nothing but their order in the file.
        """
        if self._index is None:
            raise EmbedforgeError("BM25 has to index a corpus before it can search")
        positions = {name: i for i, name in enumerate(self._ids)} if top_ranked else {}
        results: dict[str, dict[str, float]] = {}
        for query_id, text in zip(queries["id"], queries["text"], strict=True):
            if top_ranked:
                scores = self._index.scores(text)
                results[query_id] = {d: float(scores[positions[d]]) for d in top_ranked[query_id]}
            else:
                documents, values = self._index.search([text], top_k)
                rows = zip(documents[0], values[0], strict=True)
                hits = {self._ids[d]: float(score) for d, score in rows if score > 0}
                # A query without any hit must still be counted, as a failure.
                results[query_id] = hits or {self._ids[-1]: 0.0}
            self._progress(1)
        return results
