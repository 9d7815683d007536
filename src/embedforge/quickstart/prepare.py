"""A corpus to the files that a recipe trains on: Examples with mined hard negatives, as JSONL."""

from __future__ import annotations

import dataclasses
import json
import random
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
    Pool,
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
    candidate must score below 95 % of the positive. A query that loses all candidates to the rule (its
    positive is scored low) gets documents drawn by chance, so that it has something to tell apart.

    Args:
        corpus: the corpus.
        query_vectors: of the training part's pool, in its order, centred.
        document_vectors: likewise.
        is_code: split identifiers for BM25.
        seed: for draws.
    """
    pool = retrieval_pool(corpus.train)
    mined = mine_negatives(
        retrieval_examples(corpus.train),
        pool.documents,
        query_vectors=query_vectors,
        document_vectors=document_vectors,
        bm25=Bm25(list(pool.documents.values()), tokenization="identifiers" if is_code else "words"),
        n_negatives=MINED_NEGATIVES,
        candidates=CANDIDATES,
        seed=seed,
    )
    draw = random.Random(seed)
    return [example if example.negatives else _with_drawn_negatives(example, pool, draw) for example in mined]


def _with_drawn_negatives(example: Example, pool: Pool, draw: random.Random) -> Example:
    others = [identity for identity in pool.documents if identity not in example.positive_ids]
    ids = tuple(draw.sample(others, MINED_NEGATIVES))
    return dataclasses.replace(
        example, negatives=tuple(pool.documents[identity] for identity in ids), negative_ids=ids
    )


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write Examples in the format that the readers read back."""
    write_text(
        path, "".join(json.dumps(record_of(example), ensure_ascii=False) + "\n" for example in examples)
    )


def write_training_files(folder: Path, corpus: Corpus, mined: Sequence[Example], seed: int) -> None:
    """Write the two sources of `recipe/shipped/tiny.yaml`."""
    write_examples(folder / RETRIEVAL_FILE, mined)
    write_examples(folder / CLUSTER_FILE, cluster_examples(corpus.train, seed, CLUSTER_NEGATIVES))
