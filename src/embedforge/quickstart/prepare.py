"""A corpus to the files that a recipe trains on: Examples with mined hard negatives, as JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedforge.data.example import Example
from embedforge.data.fields import record_of
from embedforge.files import write_text
from embedforge.lexical import Bm25
from embedforge.mine.mine import mine_negatives
from embedforge.quickstart.corpus import Corpus
from embedforge.quickstart.examples import (
    cluster_examples,
    retrieval_examples,
    retrieval_pool,
)

RETRIEVAL_FILE, CLUSTER_FILE = "retrieval.jsonl", "same-package.jsonl"
MINED_NEGATIVES = 4
CLUSTER_NEGATIVES = 3
CANDIDATES = 30


def centred(vectors: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the mean direction out of unit vectors, and make them unit vectors again.

    The states of a causal decoder share one large component: all cosines lie near 1 and no percentage of
    them means anything. Without it they spread over -1..1.
    """
    moved = vectors - mean
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9)


def mine(
    corpus: Corpus,
    query_vectors: NDArray[np.float32],
    document_vectors: NDArray[np.float32],
    *,
    is_code: bool,
    seed: int,
) -> list[Example]:
    """Return the training part's retrieval Examples with negatives from BM25 and the base model.

    Only documents of the training part are candidates. The positive-aware rule is NV-Retriever's: a
    candidate must score below 95 % of the positive.

    Args:
        corpus: the corpus.
        query_vectors: of the training part's pool, in its order, centred.
        document_vectors: likewise.
        is_code: split identifiers for BM25.
        seed: for draws.
    """
    pool = retrieval_pool(corpus.train)
    return mine_negatives(
        retrieval_examples(corpus.train),
        pool.documents,
        query_vectors=query_vectors,
        document_vectors=document_vectors,
        bm25=Bm25(list(pool.documents.values()), tokenization="identifiers" if is_code else "words"),
        n_negatives=MINED_NEGATIVES,
        candidates=CANDIDATES,
        seed=seed,
    )


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write Examples in the format that the readers read back."""
    write_text(
        path, "".join(json.dumps(record_of(example), ensure_ascii=False) + "\n" for example in examples)
    )


def write_training_files(folder: Path, corpus: Corpus, mined: Sequence[Example], seed: int) -> None:
    """Write the two sources of `recipes/tiny.yaml`."""
    write_examples(folder / RETRIEVAL_FILE, mined)
    write_examples(folder / CLUSTER_FILE, cluster_examples(corpus.train, seed, CLUSTER_NEGATIVES))
