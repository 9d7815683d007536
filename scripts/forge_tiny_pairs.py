"""The pairs of forge-tiny's retrieval stage: questions with answers, titles, sentences with passages.

    python scripts/forge_tiny_pairs.py --pretrain DATA/pretrain --open DATA/open --out runs/forge/pairs.jsonl

Of the open datasets the train splits whose licence lets a model be passed on; of the pre-training text
the titles of Wikipedia's articles with their first lines. No test or dev query is read; a document
that one of them is judged by is left out as well.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forge_tiny_texts import packed

from embedforge.data.readers import read_records
from embedforge.files import write_jsonl
from embedforge.text.same import stable_hash

OPEN = ("squad", "medquad", "techdoc_titles", "wiki_ict")
PASSAGE_WORDS = 110


def main() -> None:
    """Write the pairs, shuffled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretrain", type=Path, required=True)
    parser.add_argument("--open", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pairs = [pair for name in OPEN for pair in open_pairs(args.open / "retrieval" / name)]
    pairs += titles(args.pretrain)
    pairs.sort(key=lambda pair: stable_hash("forge-tiny", pair["query"], pair["positive"]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out, pairs)
    print(f"{len(pairs):,} pairs in {args.out}")


def open_pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the train queries of a BEIR folder, each with its best document."""
    judged, best = set(), defaultdict[str, list[tuple[int, str]]](list)
    for split in ("dev", "test"):
        judged |= {row[1] for row in judgements(folder, split)}
    for query, document, grade in judgements(folder, "train"):
        if int(grade) > 0 and document not in judged:
            best[query].append((-int(grade), document))
    chosen = {query: min(found)[1] for query, found in best.items()}
    wanted = set(chosen.values())
    texts = {}
    for record in read_records(packed(folder / "corpus.jsonl")):
        if (number := str(record.values["_id"])) in wanted:
            title, text = record.optional_text("title").strip(), record.text("text").strip()
            texts[number] = f"{title}. {text}" if title else text
    for record in read_records(packed(folder / "queries.jsonl")):
        if (number := str(record.values["_id"])) in chosen:
            yield {"query": record.text("text").strip(), "positive": texts[chosen[number]]}


def titles(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the titles of Wikipedia's articles, each with the beginning of its article."""
    for path in sorted(root.glob("train-*.jsonl*")):
        for record in read_records(path):
            if not record.text("source").startswith("wikipedia:"):
                continue
            title, _, rest = record.text("text").partition("\n")
            words = rest.split()
            if len(words) >= 20:
                yield {"query": title.strip(), "positive": " ".join(words[:PASSAGE_WORDS])}


def judgements(folder: Path, split: str) -> list[tuple[str, str, str]]:
    """Read the judgements of a split; none where it has no such split."""
    path = folder / "qrels" / f"{split}.tsv"
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return [(row[0], row[1], row[2]) for row in (line.split("\t") for line in lines)]


if __name__ == "__main__":
    main()
