"""Searching the index that a server was started with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from embedforge.errors import EmbedforgeError
from embedforge.search import Index
from embedforge.serve.errors import RefusedError
from embedforge.serve.requests import SearchRequest
from embedforge.serve.service import Embedded, Service, frame_of

_THREADS = 2
_REFRESH_SECONDS = 2.0
"""How often a newer generation of the index is looked for."""


class IndexFacts(BaseModel):
    """What is known of the index."""

    documents: int
    dimensions: int
    mode: str
    """How it is searched unless a request says otherwise."""
    fields: list[str]
    """Metadata that filters may name."""
    store: str
    generation: str


class Searcher:
    """An open index, searched in threads of its own with vectors from the service's queue.

    Args:
        service: embeds the queries.
        where: the index's folder, a run's folder, or a store's URL.

    Raises:
        EmbedforgeError: no index, a damaged one, or one of another model; both are named.
    """

    def __init__(self, service: Service, where: str | Path) -> None:
        self.service = service
        self.index = Index.open(where, model=service.st)
        self._pool = ThreadPoolExecutor(_THREADS, "embedforge-search")
        # Words are counted and files mapped at the first search, which is nobody's.
        self.index.search("warm", 1, mode="fused", vector=np.full(service.dim, service.dim**-0.5, np.float32))
        self._under_way = 0
        self._refreshed = time.monotonic()

    def facts(self) -> IndexFacts:
        """Return what is known of the index now."""
        facts = self.index.facts
        return IndexFacts(
            documents=facts.documents,
            dimensions=facts.dimensions,
            mode=facts.mode,
            fields=list(facts.fields),
            store=facts.store,
            generation=facts.generation,
        )

    async def search(
        self, request: SearchRequest, gone: Callable[[], Any]
    ) -> tuple[dict[str, Any], Embedded | None]:
        """Return what /v1/search answers, and how the query was embedded (None by words alone).

        Raises:
            RefusedError: too many searches, or what `Service.embed` and the index refuse.
        """
        limits = self.service.limits
        if self._under_way >= limits.searches:
            raise RefusedError(
                429, "too many searches under way; try again in 1 s", "overloaded", retry_after=1
            )
        self._under_way += 1
        try:
            start = time.perf_counter()
            mode = request.mode or self.index.facts.mode
            embedded = None if mode == "lexical" else await self._embed(request, gone)
            hits = await asyncio.get_running_loop().run_in_executor(self._pool, self._hits, request, embedded)
        finally:
            self._under_way -= 1
        facts = self.facts()
        return {
            "hits": [hit.as_json() for hit in hits],
            "mode": mode,
            "documents": facts.documents,
            "generation": facts.generation,
            "instruction": "" if embedded is None else embedded.instruction,
            "truncated": embedded is not None and bool(embedded.truncated),
            "seconds": round(time.perf_counter() - start, 6),
        }, embedded

    def close(self) -> None:
        """Finish what is under way and let go of the index."""
        self._pool.shutdown()
        self.index.close()

    async def _embed(self, request: SearchRequest, gone: Callable[[], Any]) -> Embedded:
        frame = frame_of(self.service.contract, "query", request.instruction)
        return await self.service.embed([request.query], frame, truncate=request.truncate, gone=gone)

    def _hits(self, request: SearchRequest, embedded: Embedded | None) -> list[Any]:
        now = time.monotonic()
        try:
            if now - self._refreshed > _REFRESH_SECONDS:
                self._refreshed = now
                self.index.refresh()
            return self.index.search(
                request.query,
                request.k,
                filters=request.filters,
                mode=request.mode,
                per_file=request.per_file,
                vector=None if embedded is None else embedded.vectors[0],
            )
        except EmbedforgeError as error:
            raise RefusedError(400, str(error), "invalid_search") from None
