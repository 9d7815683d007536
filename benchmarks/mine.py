"""Hard-negative mining against sentence-transformers' `mine_hard_negatives` and faiss: time and peak memory.

    python benchmarks/mine.py                                  # 200,000 x 384 documents, 5,000 queries
    python benchmarks/mine.py --documents 20000 --queries 500  # a quick look
    python benchmarks/mine.py --documents 1000000 --only embedforge --most-gb 4

Both tools start from their own cache of the same vectors and end with seven negatives for each query by the
same rule (95 % of the positive's score); so the model's time is in neither figure. Every run is a process of
its own; the tools take turns, and medians are given. Needs `faiss-cpu` and `datasets`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NEGATIVES = 7
CANDIDATES = 10 * NEGATIVES + 2
"""What sentence-transformers takes for this rule, the positive included."""
PREPARE, PREPARE_ST = "prepare", "prepare st"
KINDS = ("embedforge", "st faiss", "st torch", "st torch, blocks of 1024", "faiss alone")
SHARD = 50_000


# --- the data ----------------------------------------------------------------------------------------


def document_vectors(count: int, dims: int) -> Iterator[np.ndarray]:
    """Unit vectors round 500 topics, float32 [at most 50,000, dims] at a time."""
    topics = np.random.default_rng(0).standard_normal((500, dims), dtype=np.float32)
    for start in range(0, count, SHARD):
        random = np.random.default_rng([1, start])
        vectors = random.standard_normal((min(SHARD, count - start), dims), dtype=np.float32)
        vectors += topics[random.integers(0, len(topics), len(vectors))]
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def text(row: int) -> str:
    return f"Passage {row} of the collection. " + "It says this and that about its topic. " * 3


def positive_of(query: int, documents: int) -> int:
    return query * 7919 % documents


def prepare(folder: Path, documents: int, queries: int, dims: int) -> None:
    """Write the documents, and the vectors of both sides."""
    from embedforge.mine.corpus import Passage, build_corpus
    from embedforge.mine.pipeline import query_blocks
    from embedforge.mine.vectors import document_files, read_blocks, write_vectors

    corpus = build_corpus(
        folder / "corpus", lambda: (Passage(str(i), text(i)) for i in range(documents)), "b"
    )
    vectors = folder / "vectors"
    for path, shard in zip(document_files(vectors, corpus), document_vectors(documents, dims), strict=True):
        write_vectors(path, [shard])
    wanted = np.array([positive_of(query, documents) for query in range(queries)])
    positives = np.empty((queries, dims), dtype=np.float32)
    for number, path in enumerate(document_files(vectors, corpus)):
        here = wanted // SHARD == number
        positives[here] = np.concatenate(list(read_blocks(path)))[wanted[here] - number * SHARD]
    noise = np.random.default_rng(2).standard_normal(positives.shape, dtype=np.float32) / dims**0.5
    asked = positives + 0.9 * noise
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    for block in query_blocks(examples(documents, queries), 4 * 10**9):
        rows = slice(block.first, block.first + len(block.examples))
        write_vectors(vectors / f"queries-{block.key}.npy", [asked[rows]])
    np.save(folder / "queries.npy", asked)


def examples(documents: int, queries: int) -> list[Any]:
    from embedforge.data.example import Example

    rows = [positive_of(query, documents) for query in range(queries)]
    return [
        Example(f"Query {query}", (text(row),), query_id=str(query), positive_ids=(str(row),))
        for query, row in enumerate(rows)
    ]


def prepare_sentence_transformers(folder: Path, documents: int, queries: int) -> None:
    """Write its cache under the names that `mine_hard_negatives` gives the files."""
    from embedforge.mine.corpus import build_corpus
    from embedforge.mine.vectors import document_files, read_vectors

    corpus = build_corpus(folder / "corpus", list, "b")
    files = document_files(folder / "vectors", corpus)
    names = [f"Query {query}" for query in range(queries)]
    texts = [text(row) for row in range(documents)]
    for kind, hashed in (("query", names), ("corpus", texts)):
        key = hashlib.sha256(repr(("", None, None, hashed)).encode(), usedforsecurity=False).hexdigest()
        vectors = (
            np.load(folder / "queries.npy")
            if kind == "query"
            else np.concatenate(list(map(read_vectors, files)))
        )
        np.save(folder / f"{kind}_embeddings_{key}.npy", vectors)


# --- the runs, each in a process of its own ----------------------------------------------------------


def embedforge(folder: Path, documents: int, queries: int) -> tuple[float, list[list[int]]]:
    from embedforge.data.fields import record_of
    from embedforge.mine.corpus import build_corpus
    from embedforge.mine.dense import DenseRanker
    from embedforge.mine.pipeline import Selection, mined_examples
    from embedforge.nearest import Nearest  # noqa: F401  torch, which the others have before their clock runs

    rows = examples(documents, queries)
    start = time.perf_counter()
    selection = Selection(n_negatives=NEGATIVES, candidates=CANDIDATES)
    corpus = build_corpus(folder / "corpus", list, "b")
    ranker = DenseRanker("given", folder / "vectors", corpus, selection.candidates)
    found: list[list[int]] = []
    with tempfile.TemporaryDirectory() as work, Path(work, "examples.jsonl").open("w") as out:
        for mined in mined_examples(rows, corpus, [ranker], selection, Path(work)):
            out.write(json.dumps(record_of(mined)) + "\n")
            found.append(list(map(int, mined.negative_ids)))
    for state in (folder / "vectors").glob("nearest-*"):
        state.unlink()
    return time.perf_counter() - start, found


def sentence_transformers(
    folder: Path, documents: int, queries: int, **options: Any
) -> tuple[float, list[list[int]]]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from sentence_transformers.util import mine_hard_negatives
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    dims = np.load(folder / "queries.npy", mmap_mode="r").shape[1]
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    # Never asked: every vector comes from the cache.
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_dim=dims)], similarity_fn_name="dot", device="cpu"
    )
    asked = examples(documents, queries)
    pairs = Dataset.from_dict(
        {"anchor": [item.query for item in asked], "positive": [item.positives[0] for item in asked]}
    )
    texts = [text(row) for row in range(documents)]
    start = time.perf_counter()
    mined = mine_hard_negatives(
        pairs,
        model,
        corpus=texts,
        relative_margin=0.05,
        num_negatives=NEGATIVES,
        output_format="n-tuple",
        cache_folder=str(folder),
        verbose=False,
        **options,
    )
    seconds = time.perf_counter() - start
    found: list[list[int]] = [[] for _ in range(queries)]
    for row in mined:
        negatives = [int(row[f"negative_{place}"].split()[1]) for place in range(1, NEGATIVES + 1)]
        found[int(row["anchor"].split()[1])] = negatives
    return seconds, found


def faiss_alone(folder: Path, documents: int, queries: int) -> tuple[float, list[list[int]]]:
    import faiss

    asked = np.load(folder / "queries.npy")
    (path,) = folder.glob("corpus_embeddings_*.npy")
    start = time.perf_counter()
    vectors = np.load(path)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    index.search(asked, CANDIDATES)
    return time.perf_counter() - start, []


RUNS: dict[str, Callable[..., tuple[float, list[list[int]]]]] = {
    "embedforge": embedforge,
    "st faiss": lambda *a: sentence_transformers(*a, use_faiss=True),
    "st torch": sentence_transformers,
    "st torch, blocks of 1024": lambda *a: sentence_transformers(*a, faiss_batch_size=1024),
    "faiss alone": faiss_alone,
}


def worker(kind: str, folder: Path, documents: int, queries: int) -> None:
    """Run once and print seconds, peak memory in MB, and the negatives."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        seconds, found = RUNS[kind](folder, documents, queries)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps({"seconds": seconds, "peak": peak, "found": found}))


def own_process(kind: str, folder: Path, documents: int, queries: int, dims: int) -> str:
    """Run this script as a worker; return what it printed."""
    command = [sys.executable, __file__, "--worker", kind, "--folder", str(folder), "--dims", str(dims)]
    command += ["--documents", str(documents), "--queries", str(queries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def measured(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    printed = own_process(kind, folder, options.documents, options.queries, options.dims)
    return dict(json.loads(printed.splitlines()[-1]))


# --- the comparison ----------------------------------------------------------------------------------


def differing(ours: list[list[int]], theirs: list[list[int]], folder: Path) -> tuple[int, int]:
    """Return how many of their full rows differ from ours by more than ties, and how many are full.

    sentence-transformers leaves out queries with fewer than seven negatives in this format.
    """
    from embedforge.mine.corpus import build_corpus
    from embedforge.mine.vectors import document_files, pair_scores

    corpus = build_corpus(folder / "corpus", list, "b")
    full = [query for query, row in enumerate(theirs) if row]
    unequal = [query for query in full if ours[query] != theirs[query]]
    asked, files, beyond = np.load(folder / "queries.npy"), document_files(folder / "vectors", corpus), 0
    for query in unequal:
        rows = [np.array(row) for row in (ours[query], theirs[query])]
        scores = [pair_scores(asked, files, np.full(len(row), query), row) for row in rows]
        beyond += len(rows[0]) != len(rows[1]) or not np.allclose(*scores, atol=1e-6, rtol=0)
    return beyond, len(full)


def main() -> None:
    """Compare, or run one of the tools (`--worker`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=KINDS, help="run one of them")
    parser.add_argument("--most-gb", type=float, help="fail where embedforge's peak is above it")
    parser.add_argument("--worker", choices=(PREPARE, PREPARE_ST, *KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == PREPARE:
        return prepare(options.folder, options.documents, options.queries, options.dims)
    if options.worker == PREPARE_ST:
        return prepare_sentence_transformers(options.folder, options.documents, options.queries)
    if options.worker:
        return worker(options.worker, options.folder, options.documents, options.queries)
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))
    return None


def compare(options: argparse.Namespace, folder: Path) -> None:
    kinds = [options.only] if options.only else list(KINDS)
    if missing := [name for name in ("faiss", "datasets") if kinds == list(KINDS) and not find_spec(name)]:
        raise SystemExit(f"{', '.join(missing)} cannot be imported: pip install 'embedforge[data,faiss]'")
    # In processes of their own: on Linux a process starts with the peak of the one that started it.
    for step in (PREPARE,) if kinds == ["embedforge"] else (PREPARE, PREPARE_ST):
        own_process(step, folder, options.documents, options.queries, options.dims)
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(options.repeats):
        for kind in kinds:
            runs[kind].append(measured(kind, options, folder))
    print(
        f"{options.documents:,} documents, {options.queries:,} queries, {options.dims} dimensions; ", end=""
    )
    print(f"median of {options.repeats}\n")
    table = {kind: (median(own, "seconds"), median(own, "peak")) for kind, own in runs.items()}
    for kind, (seconds, peak) in table.items():
        spread = ", ".join(f"{run['seconds']:.2f}" for run in runs[kind])
        print(f"{kind:26} {seconds:8.2f} s {peak:8.0f} MB   ({spread})")
    if options.most_gb is not None and table["embedforge"][1] > options.most_gb * 1000:
        raise SystemExit(f"embedforge took {table['embedforge'][1] / 1000:.2f} GB")
    if len(kinds) > 1:
        verdict(table, runs, folder)


def median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def verdict(
    table: dict[str, tuple[float, float]], runs: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    seconds, peak = table["embedforge"]
    best = min((kind for kind in table if kind.startswith("st ")), key=lambda kind: table[kind][0])
    print(f"\nagainst its fastest setting ({best}): {table[best][0] / seconds:.2f} times as fast, ", end="")
    print(f"{peak / table[best][1]:.2f} of its peak memory")
    print(f"against faiss alone: {table['faiss alone'][0] / seconds:.2f} times as fast")
    beyond, full = differing(runs["embedforge"][0]["found"], runs[best][0]["found"], folder)
    print(f"negatives: {beyond} of {full:,} queries differ by more than ties")


if __name__ == "__main__":
    main()
