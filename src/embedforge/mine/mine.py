"""Mining: Examples in, the same Examples with hard negatives out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.lexical import Bm25
from embedforge.mine.candidates import dense_candidates, fuse, lexical_candidates
from embedforge.mine.decide import Candidates, Pairs, Verdict, as_pairs, decide, padded
from embedforge.mine.keep import PERCENTAGE, KeepRule
from embedforge.mine.pool import Pool, normal
from embedforge.ranking import Floats, Indices

QUERIES_PER_BLOCK = 1024
CANDIDATES = 100


def mine_negatives(
    examples: Sequence[Example],
    documents: Mapping[str, str],
    *,
    query_vectors: NDArray[Any] | None = None,
    document_vectors: NDArray[Any] | None = None,
    bm25: Bm25 | None = None,
    n_negatives: int = 7,
    rule: KeepRule = PERCENTAGE,
    candidates: int = CANDIDATES,
    seed: int = 0,
) -> list[Example]:
    """Add up to `n_negatives` hard negatives to each Example.

    Candidates are the best `candidates` by the teacher's vectors, by BM25, or by both, fused by reciprocal
    rank. The teacher's scores decide what is kept, BM25's only where there are no vectors. Never a
    negative: the query's own text, any positive listed for the same query (in other Examples too), by id
    or by text, a negative that the Example has, and the second of two equal texts. Texts are equal if
    they differ in case and white space only.

    Args:
        examples: what to mine for; their own negatives stay and come first.
        documents: id -> text; every positive must be among them, by its id or its text.
        query_vectors: the teacher's, [examples, dimensions], unit length for cosine scores.
        document_vectors: the teacher's, [documents, dimensions], in the order of `documents`; may be a
            memory map.
        bm25: an index of the texts of `documents`, in their order.
        n_negatives: most negatives to add; fewer where fewer survive.
        rule: which candidates survive, and how the negatives are chosen from them.
        candidates: how many to take from each ranking.
        seed: for rules that draw; an Example's draw depends on the seed and its place alone.

    Returns:
        One Example for each, in order.

    Raises:
        EmbedforgeError: neither vectors nor BM25, sizes that do not fit, or a positive that is no document.
    """
    _check(len(examples), len(documents), query_vectors, document_vectors, bm25)
    pool = Pool(documents)
    positives = _positives_by_query(examples, pool)
    mined: list[Example] = []
    for start in range(0, len(examples), QUERIES_PER_BLOCK):
        block = examples[start : start + QUERIES_PER_BLOCK]
        vectors = None if query_vectors is None else query_vectors[start : start + len(block)]
        rows = padded(_rankings(block, vectors, document_vectors, bm25, candidates))
        scores, weakest = _scores(block, rows, vectors, document_vectors, bm25, pool)
        verdicts = decide(
            rule,
            Candidates(rows, pool.classes(rows), scores),
            weakest,
            _barred(block, pool, positives),
            n_negatives=n_negatives,
            seed=seed,
            first=start,
        )
        mined += [
            with_negatives(
                example, [(pool.ids[row], pool.texts[row]) for row in own[verdict == Verdict.CHOSEN]]
            )
            for example, own, verdict in zip(block, rows, verdicts, strict=True)
        ]
    return mined


def _scores(
    block: Sequence[Example],
    rows: Indices,
    vectors: NDArray[Any] | None,
    document_vectors: NDArray[Any] | None,
    bm25: Bm25 | None,
    pool: Pool,
) -> tuple[Floats, Floats]:
    """Score candidates, [queries, k], and each query's weakest positive, [queries].

    Of several positives the lowest score sets the limit, the safe side.
    """
    scores = np.empty(rows.shape, dtype=np.float32)
    weakest = np.empty(len(block), dtype=np.float32)
    for place, example in enumerate(block):
        judge = _judge(example.query, None if vectors is None else vectors[place], document_vectors, bm25)
        scores[place] = judge(rows[place])
        weakest[place] = judge(pool.positives(example)).min()
    return scores, weakest


def _barred(block: Sequence[Example], pool: Pool, positives: Mapping[str, set[int]]) -> dict[Verdict, Pairs]:
    """Gather, for each Example, the classes of what is no negative of it."""
    reasons = {
        Verdict.POSITIVE: [positives[normal(example.query)] for example in block],
        Verdict.QUERY: [pool.classes_of([example.query]) for example in block],
        Verdict.GIVEN: [pool.classes_of(example.negatives, example.negative_ids) for example in block],
    }
    return {reason: as_pairs(classes) for reason, classes in reasons.items()}


def _check(
    queries: int,
    documents: int,
    query_vectors: NDArray[Any] | None,
    document_vectors: NDArray[Any] | None,
    bm25: Bm25 | None,
) -> None:
    if (query_vectors is None) != (document_vectors is None):
        raise EmbedforgeError("mining by vectors needs those of the queries and those of the documents")
    if query_vectors is None and bm25 is None:
        raise EmbedforgeError(
            "mining needs the teacher's vectors, a BM25 index, or both; it was given neither"
        )
    if bm25 is not None and len(bm25) != documents:
        raise EmbedforgeError(f"the BM25 index holds {len(bm25)} documents, there are {documents}")
    if query_vectors is None or document_vectors is None:
        return
    for name, vectors, count in (
        ("query", query_vectors, queries),
        ("document", document_vectors, documents),
    ):
        if vectors.ndim != 2 or len(vectors) != count:
            raise EmbedforgeError(
                f"{name} vectors have shape {vectors.shape}, expected [{count}, dimensions]"
            )
    if query_vectors.shape[1] != document_vectors.shape[1]:
        raise EmbedforgeError(
            f"query vectors have {query_vectors.shape[1]} dimensions, document vectors "
            f"{document_vectors.shape[1]}; they must come from one model"
        )


def _positives_by_query(examples: Sequence[Example], pool: Pool) -> dict[str, set[int]]:
    """Gather the classes of all positives a query has, over all Examples that ask it."""
    positives: defaultdict[str, set[int]] = defaultdict(set)
    for example in examples:
        positives[normal(example.query)] |= pool.classes_of(example.positives, example.positive_ids)
    return positives


def _rankings(
    examples: Sequence[Example],
    vectors: NDArray[Any] | None,
    document_vectors: NDArray[Any] | None,
    bm25: Bm25 | None,
    k: int,
) -> list[Indices]:
    rankings = []
    if vectors is not None and document_vectors is not None:
        rankings.append(dense_candidates(vectors, document_vectors, k))
    if bm25 is not None:
        rankings.append(lexical_candidates([example.query for example in examples], bm25, k))
    return fuse(rankings)


def _judge(
    query: str, vector: NDArray[Any] | None, document_vectors: NDArray[Any] | None, bm25: Bm25 | None
) -> Callable[[Indices], Floats]:
    """Return the function that scores documents for a query: the teacher's, else BM25's."""
    if vector is not None and document_vectors is not None:
        single = np.asarray(vector, dtype=np.float32)
        return lambda rows: np.asarray(document_vectors[rows], dtype=np.float32) @ single
    assert bm25 is not None
    scores = bm25.scores(query)
    return lambda rows: scores[rows]


def with_negatives(example: Example, documents: Sequence[tuple[str, str]]) -> Example:
    """Append documents (id, text) to an Example's negatives.

    Ids are given if all of them have one, and so do the negatives that were there.
    """
    texts = tuple(text for _, text in documents)
    ids = tuple(name for name, _ in documents)
    known = all(ids) and (example.negative_ids or not example.negatives)
    return replace(
        example,
        negatives=(*example.negatives, *texts),
        negative_ids=(*example.negative_ids, *ids) if known else (),
    )
