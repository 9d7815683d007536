"""The quickstart's figures as a report and as a short table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table as RichTable

from embedforge.evaluate.found import query_examples
from embedforge.evaluate.training_log import losses_by_stage
from embedforge.quickstart.compare import (
    BASE_LAST,
    BASE_MEAN,
    BM25,
    METRICS,
    TRAINED,
    Comparison,
    clustered_rows,
)
from embedforge.quickstart.examples import Pool
from embedforge.quickstart.unit import Unit
from embedforge.report import charts
from embedforge.report.page import (
    Chart,
    Finding,
    Headline,
    QueryExample,
    Report,
    Table,
    against_bm25,
    finding,
)
from embedforge.statistics import Interval

SYSTEMS = (BM25, BASE_LAST, BASE_MEAN, TRAINED)
LABELS = {"ndcg@10": "nDCG@10", "recall@10": "recall@10", "mrr@10": "MRR@10"}
MAP_POINTS = 600


def build_report(
    comparison: Comparison,
    pool: Pool,
    units: Sequence[Unit],
    vectors: Mapping[str, NDArray[np.float32]],
    log: Path,
    *,
    title: str,
    details: Mapping[str, Any],
    seed: int,
) -> Report:
    """Put together the page: verdicts, tables, charts, ten queries with their hits before and after."""
    base, trained = (
        comparison.retrieval[BASE_MEAN]["ndcg@10"].mean,
        comparison.retrieval[TRAINED]["ndcg@10"].mean,
    )
    return Report(
        title=title,
        subtitle=f"{comparison.queries:,} held-out queries against {comparison.documents:,} documents; "
        f"nothing of the queries' packages was trained on",
        summary=_verdicts(comparison),
        headlines=[
            Headline(
                "nDCG@10",
                f"{base:.3f} → {trained:.3f}",
                "untrained decoder (mean) → trained",
                "good" if trained > base else "bad",
            ),
            Headline(
                "BM25", f"{comparison.retrieval[BM25]['ndcg@10'].mean:.3f}", "nDCG@10 of plain word matching"
            ),
        ],
        tables=_tables(comparison),
        charts=_charts(comparison, pool, units, vectors, log, seed),
        examples=_examples(comparison, pool, seed),
        models=(f"before: {BASE_MEAN}", "after: trained", BM25),
        details=details,
    )


def _verdicts(comparison: Comparison) -> list[Finding | str]:
    lines: list[Finding | str] = [
        finding(
            f"Against the untrained decoder ({system.removeprefix('base, ')}), nDCG@10",
            comparison.gains[system],
        )
        for system in (BASE_MEAN, BASE_LAST)
    ]
    lines.append(
        against_bm25(
            comparison.gains[BM25],
            "the trained model",
            "the queries share many words with their documents. Combine both, or train longer or from a "
            "larger base.",
        )
    )
    if comparison.clustering_gain is not None:
        lines.append(finding("Clustering by package (V-measure)", comparison.clustering_gain, unit="halves"))
    return lines


def _tables(comparison: Comparison) -> list[Table]:
    systems = [system for system in SYSTEMS if system in comparison.retrieval]
    tables = [
        Table(
            "Retrieval",
            ["metric", *systems],
            [
                [LABELS[metric], *(comparison.retrieval[system][metric] for system in systems)]
                for metric in METRICS
            ],
            note="Means over the held-out queries with 95 % bootstrap intervals.",
            bold_best=True,
        ),
        Table(
            "Is the gain real?",
            ["nDCG@10: trained minus", "paired test"],
            [[system, test] for system, test in comparison.gains.items()],
            note="Paired bootstrap over queries, and a sign-flip permutation test.",
        ),
    ]
    if comparison.clustering:
        tables.append(
            Table(
                "Clustering by package",
                ["", *comparison.clustering],
                [["V-measure", *comparison.clustering.values()]],
                note=f"k-means on random halves of the held-out documents of {comparison.packages} packages.",
                bold_best=True,
            )
        )
    return tables


def _charts(
    comparison: Comparison,
    pool: Pool,
    units: Sequence[Unit],
    vectors: Mapping[str, NDArray[np.float32]],
    log: Path,
    seed: int,
) -> list[Chart]:
    systems = [system for system in SYSTEMS if system in comparison.retrieval]
    bars: dict[str, list[Interval | float | None]] = {
        system: [comparison.retrieval[system][metric] for metric in METRICS] for system in systems
    }
    found = [
        Chart(
            "Before and after",
            charts.grouped_bars([LABELS[m] for m in METRICS], bars, title="Retrieval of held-out text"),
        ),
        Chart(
            "Scores of right and wrong documents",
            charts.score_distributions(
                {
                    "before: base, mean": comparison.pairs[BASE_MEAN],
                    "after: trained": comparison.pairs[TRAINED],
                },
                title="Cosine of queries with their own and with other documents",
            ),
        ),
    ]
    for stage, curves in losses_by_stage(log).items():
        found.append(
            Chart(f"Training loss, stage {stage}", charts.loss_curves(curves, title=f"Stage {stage}"))
        )
    rows, labels = clustered_rows({name: row for row, name in enumerate(pool.documents)}, units)
    if len(set(labels)) > 1:
        chosen = np.random.default_rng(seed).permutation(len(rows))[:MAP_POINTS]
        places = [rows[place] for place in chosen]
        found.append(
            Chart(
                "A map of held-out documents",
                charts.vector_map(
                    {
                        name: charts.project_2d(vectors[system][places], seed=seed)
                        for name, system in (("before: base, mean", BASE_MEAN), ("after: trained", TRAINED))
                    },
                    [labels[place] for place in chosen],
                    title="Held-out documents, coloured by package",
                ),
                note="t-SNE keeps neighbourhoods, not distances; the largest packages are named.",
            )
        )
    return found


def _examples(comparison: Comparison, pool: Pool, seed: int) -> list[QueryExample]:
    numbers = {identity: number for number, identity in enumerate(pool.documents)}
    return query_examples(
        list(pool.queries.values()),
        list(pool.documents.items()),
        [{numbers[identity] for identity in pool.relevant[query]} for query in pool.queries],
        [comparison.rankings[system] for system in (BASE_MEAN, TRAINED, BM25)],
        seed=seed,
    )


def terminal_table(comparison: Comparison) -> RichTable:
    """Return the short table that the command prints."""
    table = RichTable(
        title=f"{comparison.queries:,} held-out queries, {comparison.documents:,} documents",
        title_justify="left",
        box=box.SIMPLE,
        caption="V: clustering by package. Gain: nDCG@10 of trained minus this, 95 % interval.",
        caption_justify="left",
    )
    table.add_column("")
    for metric in METRICS:
        table.add_column(LABELS[metric], justify="right")
    table.add_column("V", justify="right")
    table.add_column("gain", justify="right")
    for system in (name for name in SYSTEMS if name in comparison.retrieval):
        gain = comparison.gains.get(system)
        clustering = comparison.clustering.get(system)
        table.add_row(
            system,
            *(f"{comparison.retrieval[system][metric].mean:.3f}" for metric in METRICS),
            f"{clustering.mean:.3f}" if clustering else "–",
            f"{gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain else "",
            style="bold" if system == TRAINED else "",
        )
    return table
