"""How a folder is best searched: by meaning, by words, or by both, and with which weights.

The weight of meaning (`search.fusion`) is chosen on held-out questions. What the report says of the fused
ranking is not measured on the questions that chose it: each half of them is ranked with the weight that the
other half chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from embedforge.evaluate.found import Ranked
from embedforge.evaluate.retrieval import per_query_metrics
from embedforge.lexical import Bm25
from embedforge.nearest import exact_search
from embedforge.prove.held_out import HeldOut, is_code
from embedforge.prove.systems import Encoded
from embedforge.ranking import NOTHING
from embedforge.search import Mode
from embedforge.search.document import DENSE_SHARE
from embedforge.search.fusion import CANDIDATES, fuse
from embedforge.statistics import paired_difference

DEPTH = 10
SHARES = tuple(round(0.1 * step, 1) for step in range(11))
"""Weights of meaning that are compared; 0 is words alone, 1 meaning alone."""

Scores = NDArray[np.float64]


def by_words(held_out: HeldOut) -> Ranked:
    """Rank the held-out documents by BM25, as deep as a fusion needs."""
    lexical = Bm25(held_out.documents, tokenization="identifiers" if is_code(held_out.pairs) else "words")
    return Ranked(*lexical.search([pair.query for pair in held_out.pairs], CANDIDATES))


def by_meaning(one: Encoded) -> Ranked:
    """Rank the held-out documents by a system's vectors, as deep as a fusion needs."""
    return Ranked(*exact_search(one.queries, one.documents, CANDIDATES))


def best_mode(held_out: HeldOut, one: Encoded, *, seed: int) -> tuple[Mode, float]:
    """Return how an index of this system's vectors is best searched, and the weight of meaning in it."""
    if not held_out.pairs:
        return "fused", DENSE_SHARE
    share = _best_share(_scores(_of_each_share(by_words(held_out), by_meaning(one))), seed)
    mode: Mode = "lexical" if share == 0 else "dense" if share == 1 else "fused"
    return mode, share if mode == "fused" else DENSE_SHARE


def cross_fused(words: Ranked, meaning: Ranked, *, seed: int) -> Ranked:
    """Fuse both rankings, each half of the questions with the weight that is best for the other half."""
    rankings = _of_each_share(words, meaning)
    scores = _scores(rankings)
    default = rankings[DENSE_SHARE]
    fused = Ranked(default.indices.copy(), default.scores.copy())
    halves = np.arange(len(words.indices)) % 2
    for half in (0, 1):
        others = {share: values[halves != half] for share, values in scores.items()}
        if not len(others[DENSE_SHARE]):
            continue
        best = rankings[_best_share(others, seed)]
        fused.indices[halves == half] = best.indices[halves == half]
        fused.scores[halves == half] = best.scores[halves == half]
    return fused


def _best_share(scores: Mapping[float, Scores], seed: int) -> float:
    """Return the weight nearest to the default of those that chance does not tell from the best."""
    best = max(scores, key=lambda share: float(scores[share].mean()))
    for share in sorted(scores, key=lambda share: (abs(share - DENSE_SHARE), share)):
        test = paired_difference(scores[share], scores[best], seed=seed)
        if not test.is_real or test.difference <= 0:
            return share
    return best


def _scores(rankings: Mapping[float, Ranked]) -> dict[float, Scores]:
    """nDCG@10 of each question, [questions], by weight; the answer of question i is document i."""
    return {share: ndcg(ranked.indices) for share, ranked in rankings.items()}


def ndcg(found: NDArray[np.int64]) -> Scores:
    """Return nDCG@10 of each question, [questions]; the answer of question i is document i."""
    relevant = [{row: 1.0} for row in range(len(found))]
    return per_query_metrics(found[:, :DEPTH], relevant, k=DEPTH)["ndcg@10"]


def _of_each_share(words: Ranked, meaning: Ranked) -> dict[float, Ranked]:
    dense = [_found(*row) for row in zip(meaning.indices, meaning.scores, strict=True)]
    lexical = [
        [(key, score) for key, score in _found(*row) if score > 0]
        for row in zip(words.indices, words.scores, strict=True)
    ]
    return {share: _fused(dense, lexical, share) for share in SHARES}


def _found(indices: NDArray[np.int64], scores: NDArray[np.float32]) -> list[tuple[int, float]]:
    return list(zip(indices.tolist(), scores.tolist(), strict=True))


def _fused(
    dense: Sequence[Sequence[tuple[int, float]]], lexical: Sequence[Sequence[tuple[int, float]]], share: float
) -> Ranked:
    indices = np.full((len(dense), DEPTH), NOTHING, dtype=np.int64)
    scores = np.zeros(indices.shape, dtype=np.float32)
    for row, (by_its_meaning, by_its_words) in enumerate(zip(dense, lexical, strict=True)):
        best = fuse(by_its_meaning, by_its_words, share)[:DEPTH]
        indices[row, : len(best)] = [document for document, _ in best]
        scores[row, : len(best)] = [score for _, score in best]
    return Ranked(indices, scores)
