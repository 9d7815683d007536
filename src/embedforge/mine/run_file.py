"""A ranking made elsewhere, as a TREC run file: `query-id Q0 document-id rank score tag` a line."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.mine.candidates import QueryBlock
from embedforge.mine.corpus import Corpus, id_key
from embedforge.mine.documents import file_fingerprint
from embedforge.ranking import NOTHING, Floats, Indices

PREFIX = "run:"


class RunEntry(NamedTuple):
    """A document of a run, and its score."""

    document_id: str
    score: float


def read_run(path: Path, queries: Container[str], depth: int) -> dict[str, list[RunEntry]]:
    """Read the rankings of some queries, each by descending score, ties in the file's order.

    As in trec_eval the scores decide, not the ranks. Of more than `depth` documents the best are kept.

    Args:
        path: white space separates the six columns.
        queries: ids; lines of others are passed over.
        depth: most documents a query.

    Raises:
        EmbedforgeError: a line of another form, or a document twice for one query; names file and line.
    """
    scores: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for number, line in _lines(path):
        if not line.strip():
            continue
        query, document, score = _columns(path, number, line)
        if query not in queries:
            continue
        if document in scores[query]:
            raise EmbedforgeError(f"{path}, line {number}: query '{query}' has '{document}' a second time")
        scores[query][document] = score
    return {query: _best(documents, depth) for query, documents in scores.items()}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from enumerate(lines, start=1)
    except OSError as error:
        raise EmbedforgeError(f"{path}: cannot be read as a run file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise EmbedforgeError(f"{path}: not a run file, byte {error.start} is not valid UTF-8") from None


def _columns(path: Path, number: int, line: str) -> tuple[str, str, float]:
    columns = line.split()
    try:
        query, _, document, _, score, _ = columns
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise EmbedforgeError(
            f"{path}, line {number}: expected 'query-id Q0 document-id rank score tag', "
            f"found {line.strip()!r:.80}"
        )
    return query, document, value


def _best(documents: dict[str, float], depth: int) -> list[RunEntry]:
    ranked = [RunEntry(document, score) for document, score in documents.items()]
    return sorted(ranked, key=lambda item: -item.score)[:depth]


class RunRanker:
    """Ranks as a run file does; what it does not list has no score.

    Args:
        name: `run:FILE`.
        corpus: its documents' ids are those of the file.
        examples: all of them; their query ids are those of the file.
        k: candidates of a query.

    Raises:
        EmbedforgeError: a broken file, none of the queries in it, or a document that the corpus lacks.
    """

    kind: Literal["list"] = "list"

    def __init__(self, name: str, corpus: Corpus, examples: Sequence[Example], k: int) -> None:
        self.name = name
        self._k = k
        path = Path(name.removeprefix(PREFIX))
        self.key = f"run {file_fingerprint(path)}"
        self._run = read_run(path, {example.query_id for example in examples if example.query_id}, k)
        if not self._run:
            some = next((example.query_id for example in examples if example.query_id), None)
            state = f"their ids look like '{some}'" if some else "they have no query_id"
            raise EmbedforgeError(f"{path}: holds none of the {len(examples)} queries; {state}")
        empty = set(corpus.empty)  # ranked by a model that embeds them too
        self._run = {
            query: [item for item in ranked if item.document_id not in empty]
            for query, ranked in self._run.items()
        }
        ids = {item.document_id for ranked in self._run.values() for item in ranked}
        rows = corpus.rows_of_ids(map(id_key, ids))
        unknown = next((name for name in ids if id_key(name) not in rows), None)
        if unknown is not None:
            raise EmbedforgeError(
                f"{path}: ranks the document '{unknown}', and the corpus holds no document of that id; "
                "mine from the corpus that the run was made on"
            )
        self._rows = {name: rows[id_key(name)] for name in ids}
        self.missing = sum(example.query_id not in self._run for example in examples)
        """Examples whose query the file does not rank."""

    def candidates(self, block: QueryBlock) -> tuple[Indices, Floats]:
        """See `Ranker`."""
        indices = np.full((len(block.examples), self._k), NOTHING, dtype=np.int64)
        scores = np.full(indices.shape, -np.inf, dtype=np.float32)
        for position, example in enumerate(block.examples):
            for rank, item in enumerate(self._run.get(example.query_id, ())):
                indices[position, rank] = self._rows[item.document_id]
                scores[position, rank] = item.score
        return indices, scores

    def scores(self, block: QueryBlock, query: Indices, document: Indices) -> Floats:
        """See `Ranker`: NaN for what is not among a query's first k."""
        listed = [
            {self._rows[item.document_id]: item.score for item in self._run.get(example.query_id, ())}
            for example in block.examples
        ]
        return np.array(
            [listed[q].get(int(d), np.nan) for q, d in zip(query, document, strict=True)], dtype=np.float32
        )
