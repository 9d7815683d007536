"""A corpus to the files that a recipe trains on: Examples with mined hard negatives, as JSONL."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

from embedforge.data.example import Example
from embedforge.data.fields import record_of
from embedforge.files import write_text
from embedforge.mine.documents import open_corpus
from embedforge.mine.lexical_ranker import LexicalRanker
from embedforge.mine.pipeline import Selection, mined_examples
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


def mine(corpus: Corpus, work: Path, *, is_code: bool, seed: int) -> list[Example]:
    """Return the training part's retrieval Examples with negatives by BM25.

    Only documents of the training part are candidates. The positive-aware rule is NV-Retriever's: a
    candidate must score below 95 % of the positive. A query that loses all candidates to the rule (its
    positive is scored low) gets documents drawn by chance, so that it has something to tell apart.

    Args:
        corpus: the corpus.
        work: a new folder, for the miner.
        is_code: split identifiers for BM25.
        seed: for draws.
    """
    pool, examples = retrieval_pool(corpus.train), retrieval_examples(corpus.train)
    stored = open_corpus(None, examples, work)
    name = "bm25:identifiers" if is_code else "bm25"
    queries = [example.query for example in examples]
    ranker = LexicalRanker(name, work / "words", stored, queries, CANDIDATES)
    mined = mined_examples(examples, stored, [ranker], Selection(MINED_NEGATIVES, CANDIDATES), work)
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
