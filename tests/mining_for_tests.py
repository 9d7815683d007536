"""A run of `mine` in a process of its own, slow enough to be killed between any two files.

python tests/mining_for_tests.py SOURCE_AS_JSON OUT SECONDS
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from embedforge.data.example import Example
from embedforge.mine import corpus, dense, pipeline, run, vectors
from embedforge.mine.corpus import Passage
from embedforge.mine.keep import KeepRule
from embedforge.mine.lexical_ranker import LexicalRanker
from embedforge.mine.pipeline import Selection
from embedforge.recipe import Source

CHOICE = Selection(n_negatives=3, candidates=12, rule=KeepRule("margin", 0.0))
SHARD_ROWS = 3


class GivenVectors:
    """A teacher whose vectors are there already, by text."""

    name = "given"
    identity: dict[str, Any] = {"teacher": name}

    def __init__(self, queries: Mapping[str, np.ndarray], documents: Mapping[str, np.ndarray]) -> None:
        self._queries, self._documents = queries, documents

    def queries(self, texts: Sequence[str], instructions: Sequence[str]) -> np.ndarray:
        return np.array([self._queries[text] for text in texts], dtype=np.float32)

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self._documents[text] for text in texts], dtype=np.float32)


def mine_documents(
    examples: Sequence[Example],
    documents: Mapping[str, str],
    selection: Selection,
    *,
    vectors: tuple[np.ndarray, np.ndarray] | None = None,
    bm25: bool = False,
) -> list[Example]:
    """Mine among documents, id -> text, by vectors of queries and documents, by BM25, or by both."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stored = corpus.build_corpus(
            work / "corpus", lambda: itertools.starmap(Passage, documents.items()), ""
        )
        queries = [example.query for example in examples]
        rankers: list[Any] = []
        if vectors is not None:
            by_text = [
                dict(zip(texts, of, strict=True))
                for texts, of in zip((queries, documents.values()), vectors, strict=True)
            ]
            blocks = pipeline.query_blocks(examples, 10**9)
            where = pipeline.embed(GivenVectors(*by_text), work, stored, blocks)
            rankers.append(dense.DenseRanker("given", where, stored, selection.candidates))
        if bm25:
            rankers.append(LexicalRanker("bm25", work / "words", stored, queries, selection.candidates))
        return list(pipeline.mined_examples(examples, stored, rankers, selection, work, 10**9))


class WordHashes:
    """Texts as the sums of vectors of their words: no model to wait for in each process."""

    name = "word-hashes"
    identity: dict[str, Any] = {"teacher": name}

    def queries(self, texts: Sequence[str], instructions: Sequence[str]) -> np.ndarray:
        return self.documents(texts)

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        words = [[crc32(word.encode()) for word in text.lower().split()] for text in texts]
        vectors = np.array([sum(np.random.default_rng(n).standard_normal(16) for n in own) for own in words])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def mine_by_word_hashes(source: Source, out: Path, **options: Any) -> dict[str, Any]:
    """Mine as the command does, up to where it would load a model."""
    run._open = lambda *_: WordHashes()
    corpus.SHARD_ROWS = SHARD_ROWS
    return run.mine(source, out, run.Teachers(("word-hashes", "bm25")), CHOICE, device="cpu", **options)


def slowly(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments)

    return call


if __name__ == "__main__":
    wait = float(sys.argv[3])
    dense.write_arrays = slowly(dense.write_arrays, wait)
    pipeline.write_arrays = slowly(pipeline.write_arrays, wait)
    vectors.write_vectors = slowly(vectors.write_vectors, wait)
    mine_by_word_hashes(Source.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
