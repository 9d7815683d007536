"""Before and after, on text that training never saw: retrieval, clustering, and whether the gain is real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.evaluate.found import Ranked, pair_scores
from embedforge.evaluate.retrieval import per_query_metrics, v_measure
from embedforge.lexical import Bm25
from embedforge.nearest import exact_search
from embedforge.quickstart.examples import Pool
from embedforge.quickstart.unit import Unit
from embedforge.statistics import (
    Interval,
    PairedTest,
    as_dict,
    bootstrap_interval,
    half_sample_difference,
    half_sample_interval,
    paired_difference,
)

BM25, BASE_LAST, BASE_MEAN, TRAINED = "BM25", "base, last", "base, mean", "trained"
METRICS = ("ndcg@10", "recall@10", "mrr@10")
DEPTH = 10


@dataclass(frozen=True)
class Comparison:
    """All figures of the report."""

    retrieval: dict[str, dict[str, Interval]]
    """System -> metric -> mean over the queries with its 95 % bootstrap interval."""
    gains: dict[str, PairedTest]
    """System -> paired test of nDCG@10, trained minus that system."""
    clustering: dict[str, Interval]
    clustering_gain: PairedTest | None
    rankings: dict[str, Ranked]
    per_query: dict[str, dict[str, NDArray[np.float64]]]
    queries: int
    documents: int
    packages: int
    pairs: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    """System -> scores of queries with their own documents, and with documents of others."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "queries": self.queries,
            "documents": self.documents,
            "packages": self.packages,
            "retrieval": {
                system: {metric: as_dict(interval) for metric, interval in row.items()}
                for system, row in self.retrieval.items()
            },
            "ndcg@10, trained minus": {system: as_dict(test) for system, test in self.gains.items()},
            "clustering, v-measure": {
                system: as_dict(interval) for system, interval in self.clustering.items()
            },
            "clustering, trained minus base, mean": as_dict(self.clustering_gain)
            if self.clustering_gain
            else None,
        }


def compare(
    pool: Pool,
    units: Sequence[Unit],
    query_vectors: dict[str, NDArray[np.float32]],
    document_vectors: dict[str, NDArray[np.float32]],
    *,
    is_code: bool,
    seed: int,
) -> Comparison:
    """Rank the pool's documents for its queries by BM25 and by each set of vectors; cluster by package.

    Args:
        pool: held-out queries, and the documents they are searched in.
        units: the held-out units, whose documents are clustered by their package.
        query_vectors: system -> unit vectors of the pool's queries, in its order.
        document_vectors: system -> unit vectors of the pool's documents, in its order.
        is_code: split identifiers for BM25, which is what makes it a strong baseline on code.
        seed: of the bootstrap and of k-means.
    """
    names = {identity: number for number, identity in enumerate(pool.documents)}
    relevant = [{names[identity]: 1.0 for identity in pool.relevant[query]} for query in pool.queries]
    lexical = Bm25(list(pool.documents.values()), tokenization="identifiers" if is_code else "words")
    rankings = {BM25: Ranked(*lexical.search(list(pool.queries.values()), DEPTH))}
    for system, vectors in document_vectors.items():
        rankings[system] = Ranked(*exact_search(query_vectors[system], vectors, DEPTH))
    per_query = {
        system: per_query_metrics(found.indices, relevant, k=10) for system, found in rankings.items()
    }
    clustering, clustering_gain, packages = _cluster(names, units, document_vectors, seed)
    return Comparison(
        retrieval={
            system: {metric: bootstrap_interval(values[metric], seed=seed) for metric in METRICS}
            for system, values in per_query.items()
        },
        gains={
            system: paired_difference(values["ndcg@10"], per_query[TRAINED]["ndcg@10"], seed=seed)
            for system, values in per_query.items()
            if system != TRAINED
        },
        clustering=clustering,
        clustering_gain=clustering_gain,
        rankings=rankings,
        per_query=per_query,
        queries=len(pool.queries),
        documents=len(pool.documents),
        packages=packages,
        pairs={
            system: pair_scores(query_vectors[system], vectors, relevant, seed=seed)
            for system, vectors in document_vectors.items()
        },
    )


def clustered_rows(names: dict[str, int], units: Sequence[Unit]) -> tuple[list[int], list[str]]:
    """Return the documents of packages with at least two held-out texts, and their packages."""
    of_package: dict[str, list[int]] = {}
    for unit in units:
        if unit.id in names:
            of_package.setdefault(unit.package, []).append(names[unit.id])
    rows = [(row, package) for package, rows in of_package.items() if len(rows) > 1 for row in rows]
    return [row for row, _ in rows], [package for _, package in rows]


def _cluster(
    names: dict[str, int], units: Sequence[Unit], vectors: dict[str, NDArray[np.float32]], seed: int
) -> tuple[dict[str, Interval], PairedTest | None, int]:
    rows, labels = clustered_rows(names, units)
    packages = len(set(labels))
    if packages < 2 or len(rows) < 20:
        return {}, None, packages
    values = {system: v_measure(found[rows], labels, seed=seed) for system, found in vectors.items()}
    gain = half_sample_difference(values[BASE_MEAN], values[TRAINED])
    return {system: half_sample_interval(scores) for system, scores in values.items()}, gain, packages
