"""From Examples and a corpus on disk to what each candidate is, block by block of queries.

All that costs time is kept in the work folder under a fingerprint of what it depends on: vectors of a shard,
counts of BM25, the nearest documents so far, and the finished blocks. To go on after a kill is to run again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.files import hash_of, write_arrays
from embedforge.mine.candidates import QueryBlock, Ranker, fuse
from embedforge.mine.corpus import VERSION, Corpus, Passage, hash_of_all, id_key, text_key
from embedforge.mine.decide import Candidates, Decision, Decisions, Pairs, as_pairs, decide
from embedforge.mine.dense import load_arrays
from embedforge.mine.embedder import Embedder
from embedforge.mine.keep import PERCENTAGE, KeepRule
from embedforge.mine.vectors import TEXTS_PER_WINDOW, embed_corpus, embed_windows
from embedforge.ranking import NOTHING, Floats, Indices

Progress = Callable[[str, int], Callable[[int], None]]
"""Called with a title and a total; what it returns is called with what was done since."""

_BYTES_PER_QUERY = 100_000
"""Vector of 4,096 numbers, candidates, and the texts of its negatives, generously."""


def silent(title: str, total: int) -> Callable[[int], None]:
    """Show no progress."""
    return lambda _: None


@dataclass(frozen=True, slots=True)
class Selection:
    """How negatives are selected from candidates."""

    n_negatives: int = 7
    candidates: int = 100
    """Taken from each teacher's ranking."""
    rule: KeepRule = field(default=PERCENTAGE)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_negatives < 1 or self.candidates < 1:
            raise EmbedforgeError(
                f"{self.n_negatives} negatives of {self.candidates} candidates: both must be at least 1"
            )


class Mined(NamedTuple):
    """A finished block, [queries, candidates] each unless said otherwise."""

    block: QueryBlock
    rows: Indices
    scores: Floats
    decisions: Decisions
    limits: Floats
    """[queries], the lowest score of a query's positives: what the rule compares with."""
    positives: list[Floats]
    """Scores of each query's positives, in their order; NaN where the judge knows none."""


def query_blocks(examples: Sequence[Example], memory: int) -> list[QueryBlock]:
    """Cut Examples into blocks that take about an eighth of `memory` bytes each."""
    size = max(256, min(50_000, memory // 8 // _BYTES_PER_QUERY))
    return [
        QueryBlock(start, block, hash_of([[example.query, example.instruction] for example in block]))
        for start in range(0, len(examples), size)
        for block in [examples[start : start + size]]
    ]


def embed(
    embedder: Embedder, work: Path, corpus: Corpus, blocks: Sequence[QueryBlock], progress: Progress = silent
) -> Path:
    """Write the vectors of all documents and queries that have none yet; return their folder."""
    folder = work / "vectors" / hash_of(embedder.identity)
    embed_corpus(folder, corpus, embedder.documents, progress(f"documents by {embedder.name}", len(corpus)))
    report = progress(f"queries by {embedder.name}", sum(len(block.examples) for block in blocks))
    for block in blocks:
        path = folder / f"queries-{block.key}.npy"
        if path.exists():
            report(len(block.examples))
        else:
            embed_windows(path, _windows(block), lambda examples: _queries(embedder, examples), report)
    return folder


def _windows(block: QueryBlock) -> Iterator[Sequence[Example]]:
    for start in range(0, len(block.examples), TEXTS_PER_WINDOW):
        yield block.examples[start : start + TEXTS_PER_WINDOW]


def _queries(embedder: Embedder, examples: Sequence[Example]) -> Floats:
    return embedder.queries(
        [example.query for example in examples], [example.instruction for example in examples]
    )


class Excluded:
    """What must not become a negative of a query: the positives it has in any Example.

    Args:
        examples: all of them.
        corpus: holds every positive, by id or by text.

    Raises:
        EmbedforgeError: an Example without a positive, or with one that the corpus lacks.
    """

    def __init__(self, examples: Sequence[Example], corpus: Corpus) -> None:
        self._corpus = corpus
        self._ids = corpus.rows_of_ids(
            id_key(name) for example in examples for name in (*example.positive_ids, *example.negative_ids)
        )
        texts = {text_key(text) for example in examples for text in example.positives}
        self._texts = corpus.rows_of_texts(texts)
        self.rows = [self._rows_of(example) for example in examples]
        """Numbers of each Example's positives."""
        everything = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *self.rows]))
        own = corpus.text_keys(everything).tolist()
        self._key = dict(zip(everything.tolist(), own, strict=True))
        by_query: defaultdict[int, set[int]] = defaultdict(set)
        for example, rows in zip(examples, self.rows, strict=True):
            positives = by_query[text_key(example.query)]
            positives.update(self._key[int(row)] for row in rows)
            positives.update(map(text_key, example.positives))
        self._by_query = by_query

    def _rows_of(self, example: Example) -> Indices:
        if not example.positives:
            raise EmbedforgeError(f"query '{example.query:.80}' has no positive to judge candidates by")
        ids = example.positive_ids or ("",) * len(example.positives)
        return np.array(
            [self._row_of(example, name, text) for name, text in zip(ids, example.positives, strict=True)],
            dtype=np.int64,
        )

    def _row_of(self, example: Example, name: str, text: str) -> int:
        row = self._ids.get(id_key(name)) if name else None
        row = self._texts.get(text_key(text)) if row is None else row
        if row is None:
            raise EmbedforgeError(
                f"query '{example.query:.80}': its positive '{name or text[:80]}' is not among the "
                f"{len(self._corpus)} documents, so its score is not known; add it to them"
            )
        return row

    def of(self, block: QueryBlock) -> dict[Decision, Pairs]:
        """Return the keys of what is no negative of a block's queries, by reason."""
        queries = [text_key(example.query) for example in block.examples]
        return {
            Decision.POSITIVE: as_pairs([self._by_query[key] for key in queries]),
            Decision.QUERY: as_pairs([[key] for key in queries]),
            Decision.GIVEN: as_pairs([self._given(example) for example in block.examples]),
        }

    def _given(self, example: Example) -> list[int]:
        rows = [self._ids[key] for key in map(id_key, example.negative_ids) if key in self._ids]
        by_id = self._corpus.text_keys(np.array(rows, dtype=np.int64)).tolist() if rows else []
        return [*map(text_key, example.negatives), *by_id]


def mined_examples(
    examples: Sequence[Example],
    corpus: Corpus,
    rankers: Sequence[Ranker],
    selection: Selection,
    work: Path,
    memory: int = 4 * 10**9,
) -> Iterator[Example]:
    """Add up to `selection.n_negatives` hard negatives to each Example.

    Candidates are the best of each ranker, fused by reciprocal rank where there are several; the scores of
    one of them, the judge (`judge_of`), decide what is kept. Never a negative: the query's own text, any
    positive listed for the same query (in other Examples too), by id or by text, a negative that the Example
    has, and the second of two equal texts; `text.same.layout_key` says which are equal.

    Args:
        examples: what to mine for; their own negatives stay and come first.
        corpus: of `build_corpus` or `open_corpus`; holds every positive, by id or by text.
        rankers: one or more, made for these Examples and this corpus: `LexicalRanker` needs no model;
            `DenseRanker` reads vectors that `embed` wrote, with `query_blocks` of the same `memory`.
        selection: how many negatives, and the rule.
        work: finished blocks are kept there, and read back by the next call for the same.
        memory: bytes; an eighth of it bounds a block.

    Yields:
        One Example for each, in order; one for which nothing is safely worse than its positive gets none.

    Raises:
        EmbedforgeError: an Example without a positive, or with one that is not in the corpus.
    """
    blocks = query_blocks(examples, memory)
    for mined in mine_blocks(blocks, rankers, corpus, Excluded(examples, corpus), selection, work):
        yield from with_selected(mined, corpus)


def with_selected(mined: Mined, corpus: Corpus) -> list[Example]:
    """Return a block's Examples with the negatives that were selected for them."""
    chosen = mined.decisions == Decision.CHOSEN
    documents = corpus.documents(mined.rows[chosen])
    return [
        with_negatives(example, [documents[int(row)] for row in rows[own]])
        for example, rows, own in zip(mined.block.examples, mined.rows, chosen, strict=True)
    ]


def with_negatives(example: Example, passages: Sequence[Passage]) -> Example:
    """Append passages to an Example's negatives.

    Ids are given if all of them have one, and so do the negatives that were there.
    """
    texts, ids = (tuple(getattr(passage, part) for passage in passages) for part in ("text", "id"))
    known = all(ids) and (example.negative_ids or not example.negatives)
    return replace(
        example,
        negatives=(*example.negatives, *texts),
        negative_ids=(*example.negative_ids, *ids) if known else (),
    )


def mine_blocks(
    blocks: Sequence[QueryBlock],
    rankers: Sequence[Ranker],
    corpus: Corpus,
    excluded: Excluded,
    selection: Selection,
    work: Path,
) -> Iterator[Mined]:
    """Mine block after block; a finished one is read back."""
    everything = hash_of_all(_facts_of(example) for block in blocks for example in block.examples)
    keys = [ranker.key for ranker in rankers]
    settings = [VERSION, asdict(selection), keys, corpus.fingerprint, everything]
    for block in blocks:
        path = work / "blocks" / f"{hash_of([block.first, len(block.examples), settings])}.npz"
        stored = load_arrays(path)
        if stored is None:
            stored = _mine_block(block, rankers, corpus, excluded, selection)
            write_arrays(path, stored)
        counts = np.cumsum([len(example.positives) for example in block.examples])[:-1]
        positives = np.split(stored["positives"], counts)
        yield Mined(block, stored["rows"], stored["scores"], stored["decisions"], stored["limits"], positives)


def _facts_of(example: Example) -> list[Any]:
    """Return all of an Example that decides about its negatives; a run file knows it by its id alone."""
    query = [example.query_id, example.query, example.instruction]
    texts = [list(map(text_key, of)) for of in (example.positives, example.negatives)]
    return [query, texts, example.positive_ids, example.negative_ids]


def _mine_block(
    block: QueryBlock, rankers: Sequence[Ranker], corpus: Corpus, excluded: Excluded, selection: Selection
) -> dict[str, Any]:
    rankings = [ranker.candidates(block) for ranker in rankers]
    judge = judge_of(rankers)
    if len(rankers) == 1:
        rows, scores = rankings[0]
    else:
        rows = fuse([indices for indices, _ in rankings])
        query, rank = np.nonzero(rows != NOTHING)
        scores = np.full(rows.shape, np.nan, dtype=np.float32)
        scores[query, rank] = judge.scores(block, query, rows[query, rank])
    own = excluded.rows[block.first : block.first + len(block.examples)]
    query = np.repeat(np.arange(len(own)), [len(positive) for positive in own])
    positives = judge.scores(block, query, np.concatenate(own))
    limits = _limits(query, positives, rows, scores)
    decisions = decide(
        selection.rule,
        Candidates(rows, corpus.text_keys(rows), scores),
        limits,
        excluded.of(block),
        n_negatives=selection.n_negatives,
        seed=selection.seed,
        first=block.first,
    )
    return {
        "rows": rows,
        "scores": scores,
        "decisions": decisions,
        "limits": limits,
        "positives": positives,
    }


def judge_of(rankers: Sequence[Ranker]) -> Ranker:
    """Return the ranker whose scores the rule compares: the first by vectors, else BM25, else the first."""
    order: dict[Literal["vectors", "words", "list"], int] = {"vectors": 0, "words": 1, "list": 2}
    return min(rankers, key=lambda ranker: order[ranker.kind])


def _limits(query: Indices, positives: Floats, rows: Indices, scores: Floats) -> Floats:
    """Return each query's lowest score of a positive.

    A positive that a run file does not list scores no more than the last that it does list.
    """
    limits = np.full(len(rows), np.inf, dtype=np.float32)
    known = ~np.isnan(positives)
    np.minimum.at(limits, query[known], positives[known])
    unknown = np.bincount(query[~known], minlength=len(rows)) > 0
    lowest = np.where((rows == NOTHING) | np.isnan(scores), np.inf, scores).min(axis=1, initial=np.inf)
    lowest = np.where(np.isinf(lowest), -np.inf, lowest)  # no candidate, nothing to limit
    return np.asarray(np.where(unknown, np.minimum(lowest, limits), limits), dtype=np.float32)
