"""Small datasets of every type that evaluation reads."""

from __future__ import annotations

import json
from pathlib import Path

TOPICS = {
    "bread": ["yeast", "flour", "dough", "oven", "crust", "loaf", "baker", "knead"],
    "sea": ["wave", "salt", "tide", "ship", "harbour", "sailor", "coral", "fish"],
    "law": ["court", "judge", "statute", "appeal", "verdict", "lawyer", "clause", "contract"],
}


def sentence(topic, i):
    words = TOPICS[topic]
    return " ".join(words[(i * k + k) % len(words)] for k in range(1, 5)) + f" number {i}"


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def labelled(start, stop):
    return [{"text": sentence(topic, i), "label": topic} for i in range(start, stop) for topic in TOPICS]


def write_datasets(folder: Path) -> None:
    """Every type of dataset in small, in the layout of the documentation."""
    documents = [(topic, i) for topic in TOPICS for i in range(8)]
    pairs = [(a, b) for a in documents[::3] for b in documents[::5] if a != b]
    retrieval = folder / "retrieval" / "topics"
    write_jsonl(
        retrieval / "corpus.jsonl",
        [
            {"_id": f"d{n}", "title": topic, "text": sentence(topic, i)}
            for n, (topic, i) in enumerate(documents)
        ],
    )
    write_jsonl(
        retrieval / "queries.jsonl",
        [{"_id": f"q{n}", "text": f"{sentence(t, i)[:14]} {i}"} for n, (t, i) in enumerate(documents[:12])],
    )
    (retrieval / "qrels").mkdir()
    judgements = "".join(f"q{n}\td{n}\t2\nq{n}\td{(n + 1) % 24}\t1\n" for n in range(12))
    (retrieval / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judgements)
    write_jsonl(
        folder / "reranking" / "topics" / "test.jsonl",
        [
            {
                "query": sentence(t, 9),
                "positive": [sentence(t, 1)],
                "negative": [sentence(o, 2) for o in TOPICS if o != t],
            }
            for t in TOPICS
        ],
    )
    for split, rows in (("train", labelled(0, 10)), ("test", labelled(10, 16))):
        write_jsonl(folder / "classification" / "topics" / f"{split}.jsonl", rows)
    write_jsonl(folder / "clustering" / "topics" / "test.jsonl", labelled(0, 8))
    write_jsonl(
        folder / "sts" / "topics" / "test.jsonl",
        [
            {
                "sentence1": sentence(*a),
                "sentence2": sentence(*b),
                "score": 5 - abs(a[1] - b[1]) % 4 if a[0] == b[0] else 1,
            }
            for a, b in pairs
        ],
    )
    write_jsonl(
        folder / "nli" / "topics" / "test.jsonl",
        [
            {
                "premise": sentence(*a),
                "hypothesis": sentence(*b),
                "label": "entailment" if a[0] == b[0] else "neutral",
            }
            for a, b in pairs
        ],
    )
    write_jsonl(
        folder / "bitext" / "topics" / "test.jsonl",
        [
            {"sentence1": sentence(t, i), "sentence2": sentence(t, i).upper(), "lang": lang}
            for lang, stop in (("deu", 3), ("fra", 5))
            for t in TOPICS
            for i in range(stop)
        ],
    )
