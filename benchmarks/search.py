"""Stores for `embedforge search`: embedforge's own folder, LanceDB and Milvus Lite, dense and by words.

    python benchmarks/search.py                                     # 6,800 and 100,000 x 384
    python benchmarks/search.py --documents 1000000 --only folder "lancedb flat" "lancedb ivf_hnsw_sq"

Each store is built by one process and asked by another, which starts cold; a third asks without a pause while
a fourth replaces the whole index with another one, and looks whether each answer is all of one of the two.
Vectors are ready made, so that no model's time is in a figure. Building is told in processor seconds
too, which company on the machine does not change. Needs `lancedb`, `pymilvus` and `milvus-lite`.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

DIMENSIONS, K, SHARD = 384, 10, 50_000
QUERIES = 100
VOCABULARY, WORDS = 30_000, 60
KINDS = (
    "folder",
    *(f"lancedb {index}" for index in ("flat", "ivf_sq", "ivf_pq", "ivf_hnsw_sq")),
    *(f"milvus {index}" for index in ("flat", "hnsw")),
)
TABLE = "documents"


# --- the data ----------------------------------------------------------------------------------------


def shards(count: int) -> Iterator[tuple[int, np.ndarray, list[str]]]:
    """First number, unit vectors round 500 topics, and texts whose words are as frequent as a language's."""
    topics = np.random.default_rng(0).standard_normal((500, DIMENSIONS), dtype=np.float32)
    for start in range(0, count, SHARD):
        random = np.random.default_rng([1, start])
        size = min(SHARD, count - start)
        vectors = random.standard_normal((size, DIMENSIONS), dtype=np.float32)
        vectors += topics[random.integers(0, len(topics), size)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield start, vectors, _texts(random, size)


def _texts(random: np.random.Generator, size: int) -> list[str]:
    ranks = np.exp(random.random((size, WORDS)) * np.log(VOCABULARY)).astype(int)
    return [" ".join(f"word{rank}" for rank in row) for row in ranks]


def queries() -> tuple[np.ndarray, list[str]]:
    """Vectors near documents of the first shard, [100, 384], and three words for each, not of the rarest."""
    random = np.random.default_rng(2)
    vectors = next(shards(5000))[1][:QUERIES]
    vectors = vectors + 0.9 * random.standard_normal(vectors.shape, dtype=np.float32) / DIMENSIONS**0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ranks = np.exp(random.uniform(np.log(50), np.log(5000), (QUERIES, 3))).astype(int)
    return vectors, [" ".join(f"word{rank}" for rank in row) for row in ranks]


def exact(count: int) -> np.ndarray:
    """The true ten of each query, [100, 10]."""
    asked = queries()[0]
    best, scores = np.empty((QUERIES, 0), int), np.empty((QUERIES, 0), np.float32)
    for start, vectors, _ in shards(count):
        best = np.concatenate([best, np.tile(np.arange(start, start + len(vectors)), (QUERIES, 1))], axis=1)
        scores = np.concatenate([scores, asked @ vectors.T], axis=1)
        order = np.argsort(-scores, axis=1)[:, :K]
        best, scores = np.take_along_axis(best, order, 1), np.take_along_axis(scores, order, 1)
    return best


# --- the stores --------------------------------------------------------------------------------------


class Store(Protocol):
    def build(self, folder: Path, count: int, mark: str) -> None: ...
    def open(self, folder: Path) -> None: ...
    def dense(self, vector: np.ndarray) -> list[tuple[int, str]]: ...
    def lexical(self, words: str) -> list[tuple[int, str]]: ...


class Folder:
    """embedforge's own, exact."""

    def build(self, folder: Path, count: int, mark: str) -> None:
        from embedforge.search import Document, build_index
        from embedforge.text.contract import Contract

        vectors = np.concatenate([vectors for _, vectors, _ in shards(count)])
        texts = (text for _, _, texts in shards(count) for text in texts)
        documents = (Document(str(row), text, mark) for row, text in enumerate(texts))
        build_index(folder / "index", vectors, documents, model="none", contract=Contract())

    def open(self, folder: Path) -> None:
        from embedforge.search import Index

        self.index = Index.open(folder / "index")

    def dense(self, vector: np.ndarray) -> list[tuple[int, str]]:
        hits = self.index.search("word1", K, mode="dense", vector=vector)
        return [(int(hit.document.id), hit.document.location) for hit in hits]

    def lexical(self, words: str) -> list[tuple[int, str]]:
        hits = self.index.search(words, K, mode="lexical")
        return [(int(hit.document.id), hit.document.location) for hit in hits]


class Lance:
    def __init__(self, kind: str) -> None:
        self.kind = kind.upper()

    def build(self, folder: Path, count: int, mark: str) -> None:
        import lancedb
        import pyarrow as pa

        fields = [("id", pa.int64()), ("text", pa.string()), ("mark", pa.string())]
        schema = pa.schema([*fields, ("vector", pa.list_(pa.float32(), DIMENSIONS))])

        def batches() -> Iterator[pa.RecordBatch]:
            for start, vectors, texts in shards(count):
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSIONS)
                ids = pa.array(range(start, start + len(texts)))
                yield pa.record_batch([ids, texts, [mark] * len(texts), column], schema=schema)

        table = lancedb.connect(folder).create_table(TABLE, batches(), schema=schema, mode="overwrite")
        if self.kind != "FLAT":
            table.create_index(metric="dot", index_type=self.kind, replace=True)
        table.create_fts_index("text", base_tokenizer="whitespace", stem=False, replace=True)

    def open(self, folder: Path) -> None:
        import lancedb

        self.table = lancedb.connect(folder).open_table(TABLE)

    def dense(self, vector: np.ndarray) -> list[tuple[int, str]]:
        query = self.table.search(vector).distance_type("dot").limit(K)
        if self.kind != "FLAT":
            query = query.nprobes(20).refine_factor(5)
        return self._pairs(query.select(["id", "mark", "text", "_distance"]).to_list())

    def lexical(self, words: str) -> list[tuple[int, str]]:
        query = self.table.search(words, query_type="fts").limit(K)
        return self._pairs(query.select(["id", "mark", "text", "_score"]).to_list())

    @staticmethod
    def _pairs(rows: list[dict[str, Any]]) -> list[tuple[int, str]]:
        return [(row["id"], row["mark"]) for row in rows]


class Milvus:
    def __init__(self, kind: str) -> None:
        self.kind = kind.upper()

    def build(self, folder: Path, count: int, mark: str) -> None:
        from pymilvus import DataType, Function, FunctionType, MilvusClient

        client = MilvusClient(str(folder / "milvus.db"))
        if client.has_collection(TABLE):
            client.drop_collection(TABLE)
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("text", DataType.VARCHAR, max_length=4096, enable_analyzer=True)
        schema.add_field("mark", DataType.VARCHAR, max_length=16)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSIONS)
        schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(
            Function("bm25", FunctionType.BM25, input_field_names=["text"], output_field_names=["sparse"])
        )
        index = client.prepare_index_params()
        index.add_index("vector", index_type=self.kind, metric_type="IP")
        index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        client.create_collection(TABLE, schema=schema, index_params=index)
        for start, vectors, texts in shards(count):
            for first in range(0, len(texts), 5000):
                rows = [
                    {"id": start + row, "text": texts[row], "mark": mark, "vector": vectors[row]}
                    for row in range(first, min(first + 5000, len(texts)))
                ]
                client.insert(TABLE, rows)
        client.flush(TABLE)
        client.close()

    def open(self, folder: Path) -> None:
        from pymilvus import MilvusClient

        self.client = MilvusClient(str(folder / "milvus.db"))
        self.client.load_collection(TABLE)

    def dense(self, vector: np.ndarray) -> list[tuple[int, str]]:
        return self._search([vector], "vector")

    def lexical(self, words: str) -> list[tuple[int, str]]:
        return self._search([words], "sparse")

    def _search(self, data: list[Any], field: str) -> list[tuple[int, str]]:
        asked = {"anns_field": field, "limit": K, "output_fields": ["mark", "text"]}
        found = self.client.search(TABLE, data=data, **asked)[0]
        return [(hit["id"], hit["entity"]["mark"]) for hit in found]


def store_of(kind: str) -> Store:
    family, _, index = kind.partition(" ")
    return {"folder": lambda _: Folder(), "lancedb": Lance, "milvus": Milvus}[family](index)


# --- what is measured, each in a process of its own ---------------------------------------------------


def build(kind: str, folder: Path, count: int, mark: str) -> dict[str, Any]:
    made = _spent()
    for _ in shards(count):  # what making the data takes is taken off
        pass
    start = _spent()
    store_of(kind).build(folder, count, mark)
    times = 2 if kind == "folder" else 1
    seconds, processor = ((b - a) - times * (a - c) for a, b, c in zip(start, _spent(), made, strict=True))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"seconds": seconds, "processor s": processor, "size MB": size / 1e6, "peak MB": _peak()}


def ask(kind: str, folder: Path) -> dict[str, Any]:
    vectors, words = queries()
    start = time.perf_counter()
    store = store_of(kind)
    store.open(folder)
    store.dense(vectors[0])
    cold = time.perf_counter() - start
    found, dense = _timed(store.dense, vectors)
    _, lexical = _timed(store.lexical, words)
    return {
        "cold ms": 1000 * cold,
        "dense": dense,
        "words": lexical,
        "peak MB": _peak(),
        "found": [[row for row, _ in hits] for hits in found],
    }


def _timed(search: Any, asked: Any) -> tuple[list[Any], list[float]]:
    found, times = [], []
    for one in asked:
        start = time.perf_counter()
        found.append(search(one))
        times.append(1000 * (time.perf_counter() - start))
    return found, [float(np.percentile(times, share)) for share in (50, 95)]


def read_meanwhile(kind: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Ask until a file named `stop` appears beside the store; count errors and mixed answers."""
    vectors, _ = queries()
    store = store_of(kind)
    store.open(folder)
    asked = errors = mixed = 0
    message, marks, times = "", set(), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not folder.with_suffix(".stop").exists():
        start = time.perf_counter()
        try:
            hits = store.dense(vectors[asked % QUERIES])
            mixed += len({mark for _, mark in hits}) > 1 or len(hits) < K
            marks |= {mark for _, mark in hits}
        except Exception as error:
            errors, message = errors + 1, message or f"{type(error).__name__}: {error}"[:150]
        times.append(1000 * (time.perf_counter() - start))
        asked += 1
    return {
        "asked": asked,
        "errors": errors,
        "mixed": mixed,
        "seen": sorted(marks),
        "p95 ms": float(np.percentile(times, 95)) if times else None,
        "error": message,
    }


def _spent() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def start_process(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    try:
        printed, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": f"stopped after {seconds:.0f} s"}
    if process.returncode:
        return {"failed": (error.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:200]}
    return json.loads(printed.strip().splitlines()[-1])


def measure(kind: str, count: int, folder: Path, truth: np.ndarray, limit: float) -> dict[str, Any]:
    result: dict[str, Any] = {"kind": kind, "documents": count}
    result["build"] = answer(start_process("build", kind, folder, count, "old"), limit)
    if "failed" in result["build"]:
        return result
    result["ask"] = answer(start_process("ask", kind, folder), limit)
    found = result["ask"].pop("found", [])
    same = [len({*one} & {*map(int, other)}) / K for one, other in zip(truth, found, strict=False)]
    result["recall@10"] = float(np.mean(same)) if same else None
    reader = start_process("read", kind, folder, limit)
    time.sleep(2.0)
    result["rebuild"] = answer(start_process("build", kind, folder, count, "new"), limit)
    time.sleep(0.5)
    folder.with_suffix(".stop").touch()
    result["read meanwhile"] = answer(reader, 60)
    return result


def worker(what: str, kind: str, folder: str, *rest: str) -> None:
    path = Path(folder)
    if what == "build":
        path.mkdir(exist_ok=True)
        result = build(kind, path, int(rest[0]), rest[1])
    else:
        result = ask(kind, path) if what == "ask" else read_meanwhile(kind, path, float(rest[0]))
    print(json.dumps(result))


def row_of(result: dict[str, Any]) -> str:
    """A line of the table in docs/search.md."""
    built, asked, read = (result.get(key) or {} for key in ("build", "ask", "read meanwhile"))
    head = f"| {result['documents']:,} | {result['kind']} |"
    for part in (built, asked):
        if "failed" in part:
            return f"{head} {part['failed']} |"
    dense, words = asked["dense"], asked["words"]
    meanwhile = result.get("rebuild", {}).get("failed") or read.get("failed")
    if meanwhile is None:
        meanwhile = f"{read['errors']} errors, {read['mixed']} mixed of {read['asked']}"
    return (
        f"{head} {built['seconds']:.1f} | {built['processor s']:.1f} | {built['size MB']:.0f} | "
        f"{result['recall@10']:.3f} | "
        f"{dense[0]:.1f} / {dense[1]:.1f} | {words[0]:.1f} / {words[1]:.1f} | {asked['cold ms']:.0f} | "
        f"{built['peak MB']:.0f} | {asked['peak MB']:.0f} | {meanwhile} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[6_800, 100_000])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a process is stopped")
    parser.add_argument("--json", type=Path, help="results are appended to this file, one a line")
    arguments = parser.parse_args()
    print(
        "| documents | store | build s | processor s | MB | recall@10 | dense p50 / p95 ms "
        "| words p50 / p95 ms |",
        end="",
    )
    print(" cold ms | build peak MB | search peak MB | while it is rebuilt |\n" + "|---" * 12 + "|")
    for count in arguments.documents:
        truth = exact(count)
        for kind in arguments.only:
            work = Path(tempfile.mkdtemp(prefix="search-"))
            try:
                result = measure(kind, count, work / "store", truth, arguments.limit)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            print(row_of(result), flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
