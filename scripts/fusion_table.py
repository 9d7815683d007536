"""How meaning and words are best fused: nDCG@10 of BEIR folders, for docs/search.md.

    python scripts/fusion_table.py FOLDER... --model embedforge:forge-tiny [--split test]

FOLDER: BEIR folders, all found below are taken. Per folder and in the mean: BM25, the model's vectors,
reciprocal rank fusion (1 / (60 + rank)) and the weighted mean
of scaled scores that `embedforge search` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import embedforge
from embedforge.data.beir import read_beir
from embedforge.evaluate.retrieval import per_query_metrics
from embedforge.lexical import Bm25
from embedforge.mine.candidates import fuse as fuse_ranks
from embedforge.nearest import exact_search
from embedforge.ranking import NOTHING
from embedforge.search.fusion import CANDIDATES, fuse

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
Found = Sequence[tuple[int, float]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", default="embedforge:forge-tiny")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    model = embedforge.load(args.model)
    folders = sorted(path.parent for root in args.folders for path in root.rglob("corpus.jsonl*"))
    rows = {folder.name: scores_of(model, folder, args.split) for folder in folders}
    names = list(next(iter(rows.values())))
    print("| | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.3f}" for column in names) + " |")
    means = [float(np.mean([row[column] for row in rows.values()])) for column in names]
    print("| mean | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


def scores_of(model: embedforge.EmbeddingSentenceTransformer, folder: Path, split: str) -> dict[str, float]:
    """Return the mean nDCG@10 of each way to rank."""
    task = read_beir(folder, split, corpus="all")
    documents, rows = list(task.documents.values()), {name: row for row, name in enumerate(task.documents)}
    queries = list(task.queries)
    texts = [task.queries[query] for query in queries]
    relevant = [
        {rows[document]: float(grade) for document, grade in task.grades[query].items()} for query in queries
    ]
    meaning = exact_search(model.encode_query(texts), model.encode_document(documents), CANDIDATES)
    words = Bm25(documents, tokenization="words").search(texts, CANDIDATES)
    dense, lexical = ([found(*row) for row in zip(*side, strict=True)] for side in (meaning, words))
    lexical = [[(row, score) for row, score in one if score > 0] for one in lexical]
    ways: dict[str, list[list[int]]] = {
        "BM25": [[row for row, _ in one] for one in lexical],
        "meaning": [[row for row, _ in one] for one in dense],
        "RRF": fuse_ranks([meaning[0], np.where(words[1] > 0, words[0], NOTHING)]).tolist(),
    }
    for share in SHARES:
        ways[f"{share:g}"] = [
            [row for row, _ in fuse(*sides, share)] for sides in zip(dense, lexical, strict=True)
        ]
    return {name: ndcg(ranking, relevant) for name, ranking in ways.items()}


def ndcg(ranking: Sequence[Sequence[int]], relevant: Sequence[Mapping[int, float]]) -> float:
    """Return the mean nDCG@10."""
    return float(per_query_metrics(ranking, relevant, k=10)["ndcg@10"].mean())


def found(indices: np.ndarray, scores: np.ndarray) -> Found:
    """Pair what was found with its scores."""
    return [(int(row), float(score)) for row, score in zip(indices, scores, strict=True) if row >= 0]


if __name__ == "__main__":
    main()
