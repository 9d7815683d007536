"""Metrics of one query and of one clustering: what the quick checks and the paired tests are made of.

The search itself is `embedforge.nearest.exact_search` (vectors) or `embedforge.lexical.Bm25` (words).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.ranking import Floats, Indices


def per_query_metrics(
    ranked: Indices | Sequence[Sequence[int]], relevant: Sequence[Mapping[int, float]], k: int = 10
) -> dict[str, NDArray[np.float64]]:
    """Return `ndcg@k`, `recall@k` and `mrr@k`, each [Q], for rankings of document indices, best first.

    `relevant[q]` maps document index to gain; a gain of 0 or less is a judged, irrelevant document.
    Definitions are trec_eval's: nDCG takes the gain itself (not 2^gain - 1), discounted by
    log2(rank + 1), over the same sum of the ideal ranking cut at k; recall divides by all relevant
    documents, even if more than k. A query without any relevant document is an `EmbedforgeError`.
    """
    if len(ranked) != len(relevant):
        raise EmbedforgeError(f"{len(ranked)} rankings for {len(relevant)} queries with judgements")
    discounts = 1 / np.log2(np.arange(2, k + 2))
    names = (f"ndcg@{k}", f"recall@{k}", f"mrr@{k}")
    rows = np.empty((len(relevant), 3))
    for q, (ranking, judged) in enumerate(zip(ranked, relevant, strict=True)):
        gains = np.array(sorted((g for g in judged.values() if g > 0), reverse=True), dtype=np.float64)
        if not len(gains):
            raise EmbedforgeError(f"query {q} has no relevant document: leave it out, it cannot be scored")
        ranked_gains = np.array([max(judged.get(int(d), 0.0), 0.0) for d in ranking[:k]], dtype=np.float64)
        hits = np.flatnonzero(ranked_gains)
        rows[q] = (
            ranked_gains @ discounts[: len(ranked_gains)] / (gains[:k] @ discounts[: len(gains)]),
            len(hits) / len(gains),
            1 / (hits[0] + 1) if len(hits) else 0.0,
        )
    return dict(zip(names, rows.T.copy(), strict=True))


def v_measure(
    vectors: Floats, labels: Sequence[object], *, repeats: int = 20, seed: int = 0
) -> NDArray[np.float64]:
    """V-measure of mini-batch k-means on random halves of `vectors` [n, D]; returns [repeats].

    k is the number of labels of the half. Halves depend on `seed`, n and `repeats` only, so two models
    are compared half by half (`statistics.half_sample_difference`), and one model's interval is
    `statistics.half_sample_interval` (which says why halves). The score of halves, like mteb's of its
    subsamples, is that of a task of the half's size.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    numbers = np.unique(np.array([str(label) for label in labels]), return_inverse=True)[1]
    if len(numbers) != len(vectors) or len(vectors) < 4:
        raise EmbedforgeError(f"clustering needs a label per text and 4 texts: {len(labels)}, {len(vectors)}")
    rng = np.random.default_rng(seed)
    values = np.empty(repeats)
    for i in range(repeats):
        half = rng.permutation(len(vectors))[: len(vectors) // 2]
        truth = numbers[half]
        kmeans = MiniBatchKMeans(len(np.unique(truth)), batch_size=512, n_init=1, random_state=seed + i)
        values[i] = v_measure_score(truth, kmeans.fit_predict(vectors[half]))
    return values
