"""The texts that forge-tiny is distilled on: sentences, titles, questions, phrases and passages, shuffled.

    python scripts/forge_tiny_texts.py --pretrain DATA/pretrain --open DATA/open --out runs/forge/texts

PRETRAIN holds train-*.jsonl[.gz] of {"text", "source"} (English Wikipedia of 2015, Project Gutenberg,
technical documents, speeches); OPEN the train splits of the open datasets whose licence lets a model be
passed on. Of the open ones only train rows are read, and only their queries and sentences, so no judged
document is among the texts. texts.jsonl holds all of them, open.jsonl those of the open datasets. Every
shard is a fair sample of the whole: half of a run is a run on half of the data.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from embedforge.data.readers import read_records
from embedforge.documents.sentences import sentences
from embedforge.files import write_jsonl
from embedforge.text.same import stable_hash

SHARD = 50_000
SHORT_SOURCES = ("squad", "medquad", "techdoc_titles", "wiki_ict")
LABELLED = ("classification/banking77", "classification/clinc150", "clustering/stackoverflow_titles")


def main() -> None:
    """Write the shards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretrain", type=Path, required=True)
    parser.add_argument("--open", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=600_000)
    parser.add_argument("--long", type=int, default=0, help="and so many long passages of each document")
    args = parser.parse_args()
    opened = list(dict.fromkeys(open_texts(args.open)))
    texts = dict.fromkeys(opened)
    print(f"{len(texts):,} texts of the open train splits")
    drawn = pretrain_texts(args.pretrain, args.long)
    while len(texts) < args.texts and (text := next(drawn, None)) is not None:
        texts[text] = None
    ordered = sorted(texts, key=lambda text: stable_hash("forge-tiny", text))
    args.out.mkdir(parents=True, exist_ok=True)
    kept = set(opened)
    write_jsonl(args.out / "open.jsonl", ({"text": text} for text in ordered if text in kept))
    write_jsonl(args.out / "texts.jsonl", ({"text": text} for text in ordered))
    for start in range(0, len(ordered), SHARD):
        path = args.out / f"texts-{start // SHARD:03}.jsonl"
        write_jsonl(path, ({"text": text} for text in ordered[start : start + SHARD]))
    words = sum(len(text.split()) for text in ordered) / max(1, len(ordered))
    print(f"{len(ordered):,} texts of {words:.1f} words on average in {args.out}")


def open_texts(root: Path) -> Iterator[str]:
    """Yield questions, titles and sentences of the train splits."""
    for name in SHORT_SOURCES:
        folder = root / "retrieval" / name
        judged = {line.split("\t")[0] for line in (folder / "qrels/train.tsv").read_text().splitlines()[1:]}
        for record in read_records(packed(folder / "queries.jsonl")):
            if record.values["_id"] in judged:
                yield record.text("text").strip()
    for name in LABELLED:
        for record in read_records(packed(root / name / "train.jsonl")):
            yield record.text("text").strip()
    for record in read_records(packed(root / "bitext/tatoeba6/train.jsonl")):
        yield record.text("sentence1").strip()
    for record in read_records(packed(root / "classification/movie_reviews/train.jsonl")):
        draw = random.Random(stable_hash("reviews", record.text("text")))
        found = [one for one in sentences(record.text("text")) if 4 <= len(one.split()) <= 60]
        yield from draw.sample(found, min(8, len(found)))


def pretrain_texts(root: Path, long: int) -> Iterator[str]:
    """Yield texts of a few hundred documents at a time, without end of the shards in one of them."""
    for path in sorted(root.glob("train-*.jsonl*")):
        for record in read_records(path):
            text, source = record.text("text"), record.text("source").split(":")[0]
            yield from document_texts(text, source, long)


def document_texts(text: str, source: str, long: int) -> Iterator[str]:
    """Yield some sentences, phrases and passages of a document, its title, and `long` windows of it."""
    draw = random.Random(stable_hash(source, text))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if source == "wikipedia":
        yield lines[0]
    yield from (line for line in lines[1:] if source == "techdocs" and 2 <= len(line.split()) <= 7)
    many = {"wikipedia": 24, "techdocs": 30}.get(source, 9)
    chosen: list[str] = []
    for line in draw.sample(lines, len(lines)):  # Splitting all of them takes longer than all the rest.
        found = [one for one in sentences(line[:1500]) if 4 <= len(one.split()) <= 60]
        chosen += draw.sample(found, min(2, len(found)))
        if len(chosen) >= many:
            break
    yield from chosen
    yield from (phrase(one, draw) for one in chosen[: len(chosen) // 5])
    for line in draw.sample(lines, min(3 if source != "gutenberg" else 1, len(lines))):
        if len(words := line.split()) >= 40:
            begin = draw.randrange(0, max(1, len(words) - 100))
            yield " ".join(words[begin : begin + draw.randint(40, 100)])
    yield from windows(" ".join(lines).split(), long, draw)


def windows(words: list[str], count: int, draw: random.Random) -> Iterator[str]:
    """Yield the beginning of a document and parts of it, across its lines, of 60 to 180 words."""
    for number in range(count):
        many = draw.randint(60, 180)
        begin = draw.randrange(0, max(1, len(words) - many)) if number else 0
        if len(words) - begin >= 40:
            yield " ".join(words[begin : begin + many])


def phrase(sentence: str, draw: random.Random) -> str:
    """Cut two to six words out of a sentence, as people type them into a search box."""
    words = sentence.split()
    many = min(len(words), draw.randint(2, 6))
    begin = draw.randint(0, len(words) - many)
    return " ".join(words[begin : begin + many]).strip(".,;:()\"'")


def packed(path: Path) -> Path:
    """The file, gzipped or not."""
    return path if path.exists() else path.with_name(path.name + ".gz")


if __name__ == "__main__":
    main()
