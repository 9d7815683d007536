"""A run of `mine` in a process of its own, slow enough to be killed between any two files.

python tests/mining_for_tests.py SOURCE_AS_JSON OUT SECONDS
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from embedforge.mine import corpus, dense, pipeline, run, vectors
from embedforge.mine.keep import KeepRule
from embedforge.mine.pipeline import Choice
from embedforge.recipe import Source

CHOICE = Choice(n_negatives=3, candidates=12, rule=KeepRule("margin", 0.0))
SHARD_ROWS = 3


class WordHashes:
    """Texts as the sums of vectors of their words: no model to wait for in each process."""

    name = "word hashes"
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
    return run.mine(source, out, run.Teachers(("word hashes", "bm25")), CHOICE, device="cpu", **options)


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
