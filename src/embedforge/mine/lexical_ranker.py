"""BM25 over a corpus on disk as a ranking, shard by shard; see `embedforge.lexical.QueryTerms`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

import numpy as np

from embedforge.files import hash_of, write_arrays
from embedforge.lexical import Collection, Postings, QueryTerms, Tokenization
from embedforge.mine.candidates import QueryBlock
from embedforge.mine.corpus import VERSION, Corpus
from embedforge.mine.dense import load_arrays
from embedforge.mine.vectors import TEXTS_PER_WINDOW
from embedforge.ranking import NOTHING, Floats, Indices, top_k

NAMES: dict[str, Tokenization] = {"bm25": "words", "bm25:words": "words", "bm25:identifiers": "identifiers"}


class LexicalRanker:
    """Ranks by BM25; a document that shares no word with the query is no candidate.

    Args:
        name: one of `NAMES`.
        folder: where each shard's counts are kept.
        corpus: the documents.
        queries: of all Examples, in their order.
        k: candidates of a query.
        progress: called with the number of documents counted since the last call.

    Raises:
        EmbedforgeError: no word in the queries, or none in the documents.
    """

    kind: Literal["words"] = "words"

    def __init__(
        self,
        name: str,
        folder: Path,
        corpus: Corpus,
        queries: Sequence[str],
        k: int,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.name = name
        self._corpus, self._k = corpus, min(k, len(corpus))
        self._terms = QueryTerms(queries, NAMES[name])
        key = hash_of([VERSION, NAMES[name], list(self._terms.numbers)])
        self.key = f"bm25 {NAMES[name]}"
        self._files = [folder / key / f"{shard.texts}.npz" for shard in corpus.shards]
        for shard, path in zip(corpus.shards, self._files, strict=True):
            if not path.exists():
                texts = itertools.chain.from_iterable(corpus.windows(shard, TEXTS_PER_WINDOW))
                counted = self._terms.postings(texts)
                write_arrays(path, {field.name: getattr(counted, field.name) for field in fields(counted)})
            progress(shard.rows)
        self._collection = Collection.of(postings for _, postings in self._parts())

    def _parts(self) -> Iterator[tuple[int, Postings]]:
        """Yield each shard's first document and counts."""
        for shard, path in zip(self._corpus.shards, self._files, strict=True):
            yield shard.first, Postings(**(load_arrays(path) or {}))

    def candidates(self, block: QueryBlock) -> tuple[Indices, Floats]:
        """See `Ranker`."""
        count = len(block.examples)
        indices = np.full((count, self._k), NOTHING, dtype=np.int64)
        scores = np.zeros((count, self._k), dtype=np.float32)
        for first, postings in self._parts():
            block_queries = range(block.first, block.first + count)
            for query, scored in self._terms.scores(postings, self._collection, block_queries):
                row = query - block.first
                better = np.flatnonzero(scored > scores[row, -1])
                if len(better):
                    merged = np.concatenate([scores[row], scored[better]])
                    numbers = np.concatenate([indices[row], better + first])
                    order, best = top_k(merged[None], self._k)
                    indices[row], scores[row] = numbers[order[0]], best[0]
        return indices, scores

    def scores(self, block: QueryBlock, query: Indices, document: Indices) -> Floats:
        """See `Ranker`."""
        result = np.zeros(len(query), dtype=np.float32)
        for first, postings in self._parts():
            pairs: defaultdict[int, list[int]] = defaultdict(list)
            for position in np.flatnonzero((document >= first) & (document < first + len(postings.lengths))):
                pairs[block.first + int(query[position])].append(int(position))
            for number, scored in self._terms.scores(postings, self._collection, pairs):
                result[pairs[number]] = scored[document[pairs[number]] - first]
        return result
