"""What systems found for queries: rankings, a few of them to read, and the scores of right and wrong ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedforge.report.page import Hit, QueryExample

EXAMPLES = 10
HITS_SHOWN = 3


@dataclass(frozen=True)
class Ranked:
    """What one system found: document numbers and scores, [queries, depth], best first."""

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]


def query_examples(
    queries: Sequence[str],
    documents: Sequence[tuple[str, str]],
    relevant: Sequence[Collection[int]],
    rankings: Sequence[Ranked],
    *,
    seed: int,
) -> list[QueryExample]:
    """Return ten queries, drawn by chance, neither the best nor the worst, and what each system found.

    Args:
        queries: their texts.
        documents: title and text of each.
        relevant: the right documents' numbers of each query.
        rankings: one a system, in the order of the report's columns.
        seed: of the draw.
    """
    drawn = np.random.default_rng(seed).permutation(len(queries))[:EXAMPLES]
    return [
        QueryExample(queries[row], [_hits(ranked, row, documents, relevant[row]) for ranked in rankings])
        for row in sorted(drawn.tolist())
    ]


def _hits(
    ranked: Ranked, row: int, documents: Sequence[tuple[str, str]], right: Collection[int]
) -> list[Hit]:
    best = zip(ranked.indices[row, :HITS_SHOWN].tolist(), ranked.scores[row, :HITS_SHOWN], strict=True)
    return [
        Hit(documents[column][1], column in right, float(score), documents[column][0])
        for column, score in best
    ]


def pair_scores(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    relevant: Sequence[Mapping[int, float]],
    *,
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score each query with one of its own documents and with five drawn from all others.

    Args:
        queries: unit vectors [queries, dim].
        documents: unit vectors [documents, dim].
        relevant: of each query, the numbers of its own documents.
        seed: of the draw.

    Returns:
        Cosines with the own documents [queries], and with others [at most 5 * queries].
    """
    draw = np.random.default_rng(seed)
    own = np.array([next(iter(judged)) for judged in relevant])
    positives = (queries * documents[own]).sum(axis=1)
    others = draw.integers(0, len(documents), size=(len(queries), 5))
    is_other = np.array(
        [[column not in judged for column in row] for row, judged in zip(others, relevant, strict=True)]
    )
    negatives = np.einsum("qd,qnd->qn", queries, documents[others])[is_other]
    return positives, negatives
