"""Docstrings and their code, for forge-tiny: of the packages that embedforge is installed with, by name.

    python scripts/forge_tiny_code.py --packages SITE_PACKAGES --out runs/forge --dev runs/forge/dev

Those that are trained on are Apache-2.0, MIT, BSD or, matplotlib, under a licence like them. code.jsonl holds
pairs of a description and its code, code-texts.jsonl the descriptions and beginnings of code, for
distillation, and DEV/retrieval/packages_code is a task of the development folder, of other packages. The
standard library, which quickstart is measured on, is not read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedforge.documents import Pair, read_folder
from embedforge.files import write_jsonl
from embedforge.text.same import stable_hash

TRAIN = """
    accelerate aiohttp anyio datasets faiss fastapi fsspec huggingface_hub lancedb matplotlib mypy nncf nltk
    numpy onnx onnxruntime onnxscript openai openvino pandas peft pip pyarrow pydantic
    ray safetensors
    scipy sklearn sqlalchemy starlette sympy torch transformers
""".split()  # noqa: SIM905
DEV = "fontTools hypothesis jinja2 mteb networkx rich typer uvicorn".split()  # noqa: SIM905
QUERIES, DOCUMENTS = 300, 700
EACH = 6_000
"""Most pairs of one package, so that no one of them is most of the data."""
BEGINNING = 320
"""Characters of code that are distilled, of every BEGINNINGS-th pair."""
BEGINNINGS = 4


def main() -> None:
    """Write the pairs, the texts and the task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    args = parser.parse_args()
    dev = shuffled(pair for name in DEV for pair in pairs_of(args.packages, name))[:DOCUMENTS]
    known = {text for pair in dev for text in (pair.query, pair.document)}
    train = [
        pair
        for pair in shuffled(pair for name in TRAIN for pair in pairs_of(args.packages, name))
        if pair.query not in known and pair.document not in known
    ]
    write_jsonl(args.out / "code.jsonl", ({"query": pair.query, "positive": pair.document} for pair in train))
    texts = [pair.query for pair in train] + [pair.document[:BEGINNING] for pair in train[::BEGINNINGS]]
    texts = sorted(dict.fromkeys(texts), key=lambda text: stable_hash("forge-tiny", text))
    write_jsonl(args.out / "code-texts.jsonl", ({"text": text} for text in texts))
    write_task(args.dev / "retrieval/packages_code", dev)
    print(f"{len(train):,} pairs and {len(texts):,} texts in {args.out}; {len(dev)} documents in the task")


def pairs_of(packages: Path, name: str) -> Iterator[Pair]:
    """Yield the described definitions of a package; all that is not a test of its own."""
    if not (packages / name).is_dir():
        print(f"{name} is not in {packages}; passed over")
        return
    folder = read_folder(
        packages / name, max_files=4000, max_pairs=EACH, max_train_pairs=EACH, chunks_needed=1
    )
    for pair in shuffled((*folder.pairs, *folder.train_pairs))[:EACH]:
        if pair.kind == "description" and pair.file.endswith(".py") and "test" not in pair.file:
            yield pair


def shuffled(pairs: Iterator[Pair] | Sequence[Pair]) -> list[Pair]:
    """Put pairs in an order that has nothing to do with their packages, the same each time."""
    return sorted(pairs, key=lambda pair: stable_hash("forge-tiny", pair.query, pair.document))


def write_task(out: Path, pairs: Sequence[Pair]) -> None:
    """Write a BEIR folder: every document's description finds it, the first of them are asked."""
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    write_jsonl(
        out / "corpus.jsonl",
        ({"_id": f"d{row}", "title": "", "text": pair.document} for row, pair in enumerate(pairs)),
    )
    write_jsonl(
        out / "queries.jsonl",
        ({"_id": f"q{row}", "text": pair.query} for row, pair in enumerate(pairs[:QUERIES])),
    )
    lines = ["query-id\tcorpus-id\tscore", *(f"q{row}\td{row}\t1" for row in range(len(pairs[:QUERIES])))]
    (out / "qrels/test.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
