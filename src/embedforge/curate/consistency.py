"""E5's consistency filter (arXiv 2212.03533): keep what a model finds again.

A pair stays if its positive ranks among the best k for its query, against N random passages of the data. E5
used k = 2 and N = one million, with a model trained on the unfiltered pairs.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from embedforge.curate.outcome import Dropped, Outcome, RowText, without
from embedforge.curate.teacher import Teacher
from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.files import naming
from embedforge.text.same import word_key

TOP_K = 2
POOL = 100_000
EXAMPLES_PER_BLOCK = 1024
PASSAGES_PER_BLOCK = 8192
_REASON = "positive not found again"

Ranks = list[list[int]]
"""For each Example the rank of each of its positives, 1 for the best."""


def sample_passages(examples: Sequence[Example], size: int, seed: int) -> list[str]:
    """Return up to `size` random positives of the Examples, each text once, in a stable order."""
    passages = list({word_key(text): text for example in examples for text in example.positives}.values())
    if len(passages) <= size:
        return passages
    chosen = random.Random(f"{seed}/consistency").sample(range(len(passages)), size)
    return [passages[row] for row in sorted(chosen)]


def drop_inconsistent(examples: Sequence[Example], ranks: Ranks, *, top_k: int = TOP_K) -> Outcome:
    """Drop positives that rank below `top_k`, and Examples that are left without one.

    Args:
        examples: with texts that are no pairs among them, which stay.
        ranks: of the pairs, in their order, from `ranks_by_vectors` or `ranks_by_bm25`.
        top_k: the worst rank that stays.
    """
    kept: list[Example] = []
    dropped: list[Dropped] = []
    ranked = iter(ranks)
    for example in examples:
        if isinstance(example, RowText):
            kept.append(example)
            continue
        own_ranks = next(ranked)
        lost = {index for index, rank in enumerate(own_ranks) if rank > top_k}
        if len(lost) == len(own_ranks):
            best = min(range(len(own_ranks)), key=own_ranks.__getitem__)
            dropped.append(
                Dropped(example, "example", example.positives[best], _REASON, f"rank {own_ranks[best]:,}")
            )
            continue
        dropped += [
            Dropped(example, "positive", example.positives[index], _REASON, f"rank {own_ranks[index]:,}")
            for index in sorted(lost)
        ]
        kept.append(without(example, lost, set()))
    return Outcome(kept, dropped)


def ranks_by_vectors(
    examples: Sequence[Example],
    passages: Sequence[str],
    teacher: Teacher,
    *,
    scratch: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Ranks:
    """Rank every positive among the passages by a model's vectors.

    A positive's rank is one more than the number of passages that score higher; passages with the text of
    the query or of one of its positives do not count. The passages' vectors lie in a temporary file, and one
    block of Examples is worked on at a time: memory does not depend on the number of either.

    Args:
        examples: whose positives are ranked.
        passages: what they are ranked against.
        teacher: makes the vectors.
        scratch: folder for the temporary file; the system's when None.
        progress: called with the number of Examples done since the last call.

    Raises:
        EmbedforgeError: the model's vectors are not numbers.
    """
    classes = _Classes(passages)
    ranks: Ranks = []
    with TemporaryDirectory(dir=scratch) as folder:
        vectors = _passage_vectors(passages, teacher, Path(folder) / "passages.npy")
        for block in _blocks(examples):
            queries = teacher.queries(block)
            flat = [(row, text) for row, example in enumerate(block) for text in example.positives]
            owner = np.array([row for row, _ in flat])
            positives = teacher.documents([text for _, text in flat])
            own = np.einsum("nd,nd->n", queries[owner], positives)
            if not np.isfinite(own).all():
                raise EmbedforgeError(
                    "the teacher's vectors hold values that are not numbers; they rank nothing"
                )
            better = _count_better(queries, owner, own, vectors, [classes.of(example) for example in block])
            counts = iter(better.tolist())
            ranks += [[1 + next(counts) for _ in example.positives] for example in block]
            progress(len(block))
        del vectors
    return ranks


def ranks_by_bm25(
    examples: Sequence[Example], passages: Sequence[str], progress: Callable[[int], None] = lambda _: None
) -> Ranks:
    """Rank every positive among the passages by BM25; see `ranks_by_vectors`.

    A positive that shares no word with its query ranks after every passage.
    """
    from embedforge.lexical import Bm25

    row_of = {word_key(text): row for row, text in enumerate(passages)}
    texts, pool = list(passages), len(passages)
    for example in examples:
        for text in example.positives:
            if row_of.setdefault(word_key(text), len(texts)) == len(texts):
                texts.append(text)
    index, classes = Bm25(texts), _Classes(passages)
    ranks: Ranks = []
    for example in examples:
        scores = index.scores(example.query)
        against, aside = scores[:pool], scores[classes.of(example)]
        own = [float(scores[row_of[word_key(text)]]) for text in example.positives]
        ranks.append(
            [
                1 + int((against > score).sum() - (aside > score).sum())
                if score > 0
                else 1 + pool - len(aside)
                for score in own
            ]
        )
        progress(1)
    return ranks


class _Classes:
    """Which passages have the text of an Example's query or positives."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._row = {word_key(text): row for row, text in enumerate(passages)}

    def of(self, example: Example) -> list[int]:
        keys = (word_key(text) for text in (example.query, *example.positives))
        return sorted({self._row[key] for key in keys if key in self._row})


def _blocks(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), EXAMPLES_PER_BLOCK):
        yield examples[start : start + EXAMPLES_PER_BLOCK]


def _passage_vectors(passages: Sequence[str], teacher: Teacher, path: Path) -> NDArray[np.float32]:
    """Write the passages' vectors block by block; return them as a memory map."""
    vectors: NDArray[np.float32] | None = None
    for start in range(0, len(passages), PASSAGES_PER_BLOCK):
        block = teacher.documents(passages[start : start + PASSAGES_PER_BLOCK])
        if vectors is None:
            shape = (len(passages), block.shape[1])
            vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            _reserve(path)
        vectors[start : start + len(block)] = block
    assert vectors is not None, "there are passages, for every Example has a positive"
    return vectors


def _reserve(path: Path) -> None:
    """Take a mapped file's space at once: where the disk is full, writing to the map kills the process."""
    if hasattr(os, "posix_fallocate"):
        with naming(path), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _count_better(
    queries: NDArray[np.float32],
    owner: NDArray[np.int64],
    own: NDArray[np.float32],
    vectors: NDArray[np.float32],
    excluded: Sequence[Sequence[int]],
) -> NDArray[np.int64]:
    """Count for each positive the passages that score higher, but for the excluded ones of its query.

    Args:
        queries: [block, dimensions].
        owner: [positives], the row of each positive's query.
        own: [positives], each positive's score.
        vectors: [passages, dimensions].
        excluded: for each query the passages that do not count.
    """
    better = np.zeros(len(owner), dtype=np.int64)
    for start in range(0, len(vectors), PASSAGES_PER_BLOCK):
        scores = queries @ np.asarray(vectors[start : start + PASSAGES_PER_BLOCK]).T
        for row, columns in enumerate(excluded):
            inside = [column - start for column in columns if start <= column < start + scores.shape[1]]
            scores[row, inside] = -np.inf
        for first in range(0, len(owner), EXAMPLES_PER_BLOCK):
            rows = slice(first, first + EXAMPLES_PER_BLOCK)
            better[rows] += (scores[owner[rows]] > own[rows, None]).sum(axis=1)
    return better
