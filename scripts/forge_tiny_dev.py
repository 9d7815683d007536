"""A small folder of tasks from the development splits, to choose forge-tiny's ingredients by.

    python scripts/forge_tiny_dev.py --open DATA/open --out runs/forge/dev
    embedforge evaluate MODEL bm25 --tasks runs/forge/dev --out runs/forge/dev-MODEL

The dev split of each dataset becomes the test split of a smaller one: at most 300 queries, 700 documents
(those that are relevant first), 800 texts. The test splits are not read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forge_tiny_texts import packed

from embedforge.data.readers import read_records
from embedforge.files import write_jsonl
from embedforge.text.same import stable_hash

RETRIEVAL = ("techdoc_titles", "medquad", "wiki_ict", "squad", "cranfield")
CLASSIFICATION = ("banking77", "clinc150", "sst2", "tweet_emotion", "trec_fine", "ag_news")
CLUSTERING = ("stackoverflow_titles", "googlenews_titles")
PAIRS = ("sts/stsb", "sts/sts12-15", "reranking/mediqa_qa")
QUERIES, DOCUMENTS, TEXTS = 300, 700, 800

Row = dict[str, Any]


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--open", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for name in RETRIEVAL:
        retrieval(args.open / "retrieval" / name, args.out / "retrieval" / name)
    for name in CLASSIFICATION:
        folder, out = args.open / "classification" / name, args.out / "classification" / name
        write(out / "train.jsonl", rows(folder / "train.jsonl"))
        write(out / "test.jsonl", some(rows(folder / "dev.jsonl"), TEXTS))
    for name in CLUSTERING:
        texts = some(rows(args.open / "clustering" / name / "dev.jsonl"), TEXTS)
        write(args.out / "clustering" / name / "test.jsonl", texts)
    for name in PAIRS:
        write(args.out / name / "test.jsonl", some(rows(args.open / name / "dev.jsonl"), TEXTS))


def retrieval(folder: Path, out: Path) -> None:
    """Cut a retrieval set down to some queries, their documents, and others."""
    lines = [line.split("\t") for line in (folder / "qrels/dev.tsv").read_text().splitlines()]
    kept = set(sorted({line[0] for line in lines[1:]}, key=stable_hash)[:QUERIES])
    judged = [line for line in lines[1:] if line[0] in kept]
    relevant = {line[1] for line in judged}
    corpus = rows(folder / "corpus.jsonl")
    others = some([row for row in corpus if row["_id"] not in relevant], max(0, DOCUMENTS - len(relevant)))
    chosen = relevant | {row["_id"] for row in others}
    write(out / "corpus.jsonl", [row for row in corpus if row["_id"] in chosen])
    write(out / "queries.jsonl", [row for row in rows(folder / "queries.jsonl") if row["_id"] in kept])
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    (out / "qrels/test.tsv").write_text("\n".join("\t".join(line) for line in [lines[0], *judged]) + "\n")


def some(found: Sequence[Row], many: int) -> list[Row]:
    """Draw rows, the same each time."""
    return sorted(found, key=lambda row: stable_hash(repr(row)))[:many]


def rows(path: Path) -> list[Row]:
    """Read a file, gzipped or not."""
    return [dict(record.values) for record in read_records(packed(path))]


def write(path: Path, found: Sequence[Row]) -> None:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, found)


if __name__ == "__main__":
    main()
