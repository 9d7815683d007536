"""Stores for `embedforge search`: embedforge's own folder, LanceDB and Milvus Lite, dense and by words.

    python benchmarks/search.py                                     # 6,800 and 100,000 x 384
    python benchmarks/search.py --documents 1000000 --only folder "lancedb ivf_sq" --words 10
    python benchmarks/search.py --documents 200000 --vectors real.npy      # a model's, [documents + 100, 384]

Each store is built by one process and asked by another, which starts cold; a third asks without a pause while
a fourth replaces the whole index with another one, and looks whether each answer is all of one of the two.
By meaning the same queries are asked twice, since the first time brings pages of the file into the process.
Vectors and texts are made once, so that no model's time is in a figure. Building is told in processor seconds
too, which company on the machine does not change. What is measured is kept in --work, and the same command
goes on from there. Needs `lancedb`, `pymilvus` and `milvus-lite`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

DIMENSIONS, K, SHARD = 384, 10, 50_000
QUERIES = 100
VOCABULARY = 30_000
KINDS = (
    "folder",
    *(f"lancedb {index}" for index in ("flat", "ivf_sq", "ivf_pq", "ivf_hnsw_sq")),
    *(f"milvus {index}" for index in ("flat", "hnsw")),
)
STAGES = ("build", "ask", "rebuild")
TABLE = "documents"


# --- the data ----------------------------------------------------------------------------------------


def prepare(data: Path, count: int, words: int, given: Path | None) -> None:
    """Write vectors, texts, queries and their true ten into `data`, unless they are there.

    Without `given` the vectors lie round 500 topics, and queries near documents; of `given` the last rows are
    the queries. The texts' words are as frequent as a language's.
    """
    if (data / "truth.npy").exists():
        return
    data.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    vectors = np.lib.format.open_memmap(
        data / "vectors.npy", "w+", dtype=np.float32, shape=(count, DIMENSIONS)
    )
    source = None if given is None else np.load(given, mmap_mode="r")
    topics = random.standard_normal((500, DIMENSIONS), dtype=np.float32)
    with (data / "texts.txt").open("w") as file:
        for start in range(0, count, SHARD):
            size = min(SHARD, count - start)
            if source is None:
                block = random.standard_normal((size, DIMENSIONS), dtype=np.float32)
                vectors[start : start + size] = unit(block + topics[random.integers(0, len(topics), size)])
            else:
                vectors[start : start + size] = source[start : start + size]
            file.writelines(f"{text}\n" for text in _texts(random, size, words))
    asked = vectors[:QUERIES] if source is None else np.array(source[-QUERIES:])
    if source is None:
        asked = unit(asked + 0.9 * random.standard_normal(asked.shape, dtype=np.float32) / DIMENSIONS**0.5)
    ranks = np.exp(random.uniform(np.log(50), np.log(5000), (QUERIES, 3))).astype(int)
    phrases = [" ".join(f"word{rank}" for rank in row) for row in ranks]
    (data / "words.json").write_text(json.dumps(phrases))
    np.save(data / "queries.npy", asked)
    np.save(data / "truth.npy", exact(vectors, asked))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shards(data: Path) -> Iterator[tuple[int, np.ndarray, list[str]]]:
    """First number, vectors and texts."""
    vectors = np.load(data / "vectors.npy", mmap_mode="r")
    with (data / "texts.txt").open() as file:
        for start in range(0, len(vectors), SHARD):
            texts = [line.rstrip("\n") for line in itertools.islice(file, SHARD)]
            yield start, vectors[start : start + SHARD], texts


def _texts(random: np.random.Generator, size: int, words: int) -> list[str]:
    ranks = np.exp(random.random((size, words)) * np.log(VOCABULARY)).astype(int)
    return [" ".join(f"word{rank}" for rank in row) for row in ranks]


def queries(data: Path) -> tuple[np.ndarray, list[str]]:
    """Vectors, [100, 384], and three words for each, not of the rarest."""
    return np.load(data / "queries.npy"), json.loads((data / "words.json").read_text())


def exact(vectors: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The true ten of each query, [100, 10]."""
    best, scores = np.empty((QUERIES, 0), int), np.empty((QUERIES, 0), np.float32)
    for start in range(0, len(vectors), SHARD):
        block = asked @ vectors[start : start + SHARD].T
        rows = np.argpartition(-block, min(K, block.shape[1] - 1), axis=1)[:, :K]
        best = np.concatenate([best, start + rows], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(block, rows, 1)], axis=1)
    order = np.argsort(-scores, axis=1)[:, :K]
    return np.take_along_axis(best, order, 1)


# --- the stores --------------------------------------------------------------------------------------


class Store(Protocol):
    def build(self, folder: Path, data: Path, mark: str) -> None: ...
    def open(self, folder: Path) -> None: ...
    def dense(self, vector: np.ndarray) -> list[tuple[int, str]]: ...
    def lexical(self, words: str) -> list[tuple[int, str]]: ...


class Folder:
    """embedforge's own, exact."""

    def build(self, folder: Path, data: Path, mark: str) -> None:
        from embedforge.search import Document, build_index
        from embedforge.text.contract import Contract

        vectors = np.load(data / "vectors.npy", mmap_mode="r")
        texts = (text for _, _, texts in shards(data) for text in texts)
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

    def build(self, folder: Path, data: Path, mark: str) -> None:
        import lancedb
        import pyarrow as pa

        fields = [("id", pa.int64()), ("text", pa.string()), ("mark", pa.string())]
        schema = pa.schema([*fields, ("vector", pa.list_(pa.float32(), DIMENSIONS))])

        def batches() -> Iterator[pa.RecordBatch]:
            for start, vectors, texts in shards(data):
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

    def build(self, folder: Path, data: Path, mark: str) -> None:
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
        for start, vectors, texts in shards(data):
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


def build(kind: str, folder: Path, data: Path, mark: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    start = _spent()
    store_of(kind).build(folder, data, mark)
    seconds, processor = (after - before for before, after in zip(start, _spent(), strict=True))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"seconds": seconds, "processor s": processor, "size MB": size / 1e6, "peak MB": _peak()}


def ask(kind: str, folder: Path, data: Path) -> dict[str, Any]:
    vectors, words = queries(data)
    start = time.perf_counter()
    store = store_of(kind)
    store.open(folder)
    store.dense(vectors[0])
    cold = time.perf_counter() - start
    found, first = _timed(store.dense, vectors)
    _, dense = _timed(store.dense, vectors)
    _, lexical = _timed(store.lexical, words)
    truth = np.load(data / "truth.npy").tolist()
    same = [len({row for row, _ in hits} & {*ten}) / K for hits, ten in zip(found, truth, strict=True)]
    return {
        "cold ms": 1000 * cold,
        "dense first": first,
        "dense": dense,
        "words": lexical,
        "peak MB": _peak(),
        "recall@10": float(np.mean(same)),
    }


def _timed(search: Any, asked: Any) -> tuple[list[Any], list[float]]:
    """What is found, and of the times p50, p95 and the processor's mean, in ms."""
    found, times = [], []
    before = time.process_time()
    for one in asked:
        start = time.perf_counter()
        found.append(search(one))
        times.append(1000 * (time.perf_counter() - start))
    processor = 1000 * (time.process_time() - before) / len(times)
    return found, [*(float(np.percentile(times, share)) for share in (50, 95)), processor]


def read_meanwhile(kind: str, folder: Path, data: Path, seconds: float) -> dict[str, Any]:
    """Ask until a file named `stop` appears beside the store; count errors and mixed answers."""
    vectors, _ = queries(data)
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


def measure(
    kind: str, data: Path, folder: Path, stages: Sequence[str], limit: float
) -> dict[str, dict[str, Any]]:
    """Go through the stages that are not done yet; what is done stands in a file beside the store."""
    file = folder.with_suffix(".json")
    result = json.loads(file.read_text()) if file.exists() else {}
    for stage in stages:
        if stage in result or "failed" in result.get("build", {}):
            continue
        if stage == "rebuild":
            reader = start_process("read", kind, folder, data, limit)
            time.sleep(2.0)
            result["rebuild"] = answer(start_process("build", kind, folder, data, "new"), limit)
            time.sleep(0.5)
            folder.with_suffix(".stop").touch()
            result["read meanwhile"] = answer(reader, 60)
        else:
            rest = ("old",) if stage == "build" else ()
            result[stage] = answer(start_process(stage, kind, folder, data, *rest), limit)
        file.write_text(json.dumps(result))
    return result


def worker(what: str, kind: str, folder: str, data: str, *rest: str) -> None:
    if what == "build":
        result = build(kind, Path(folder), Path(data), *rest)
    elif what == "ask":
        result = ask(kind, Path(folder), Path(data))
    else:
        result = read_meanwhile(kind, Path(folder), Path(data), float(rest[0]))
    print(json.dumps(result))


def row_of(count: int, kind: str, result: dict[str, dict[str, Any]]) -> str:
    """A line of the table in docs/search.md."""
    cells = [f"{count:,}", kind]
    built, asked = result.get("build", {}), result.get("ask", {})
    failed = built.get("failed") or asked.get("failed")
    if failed or not asked:
        return f"| {' | '.join([*cells, failed or 'not asked yet'])} |"
    cells += [f"{built['seconds']:.0f} ({built['processor s']:.0f})", f"{built['size MB']:.0f}"]
    cells += [f"{asked['recall@10']:.3f}"]
    for side in ("dense first", "dense", "words"):
        cells += ["{:.1f} / {:.1f} ({:.1f})".format(*asked[side])]
    cells += [f"{asked['cold ms']:.0f}", f"{built['peak MB']:.0f}", f"{asked['peak MB']:.0f}"]
    read = result.get("read meanwhile", {})
    meanwhile = result.get("rebuild", {}).get("failed") or read.get("failed") or "not tried"
    if "asked" in read and "failed" not in result["rebuild"]:
        meanwhile = f"{read['errors']} errors, {read['mixed']} mixed of {read['asked']}"
    return f"| {' | '.join([*cells, meanwhile])} |"


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[6_800, 100_000])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--vectors", type=Path, help=".npy [documents + 100, 384] in place of made ones")
    parser.add_argument("--words", type=int, default=60, help="of a text")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a process is stopped")
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="where all of it is kept")
    arguments = parser.parse_args()
    print(
        "| documents | store | build s (processor) | MB | recall@10 | dense p50 / p95 ms (processor) | again "
        "| words p50 / p95 ms (processor) | cold ms | build peak MB | search peak MB | while it is rebuilt |"
    )
    print("|---" * 12 + "|")
    for count in arguments.documents:
        work = arguments.work / f"{count}{'' if arguments.vectors is None else f'-{arguments.vectors.stem}'}"
        prepare(work / "data", count, arguments.words, arguments.vectors)
        for kind in arguments.only:
            folder = work / kind.replace(" ", "-")
            result = measure(kind, work / "data", folder, arguments.stages, arguments.limit)
            print(row_of(count, kind, result), flush=True)


if __name__ == "__main__":
    main()
