"""Training texts that stand in an evaluation task: equal ones, shared n-grams of words, and BM25.

NV-Embed removes training rows that BM25 finds similar to mteb's test sets (Emotion, AmazonCounterfactual) and
clustering rows that stand in the evaluation (arXiv 2405.17428), without saying its thresholds;
E5-Mistral checks by string match that ignores case and space (arXiv 2401.00368). N-grams of 13 words are the
check of GPT-3 (arXiv 2005.14165).
"""

from __future__ import annotations

import functools
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedforge.curate.evaluation_texts import Documents, EvaluationTask
from embedforge.curate.outcome import Fault, Outcome, Part, judge_texts
from embedforge.data.example import Example
from embedforge.text.near import Hashes, NgramHasher
from embedforge.text.same import leak_key, stable_hash
from embedforge.text.words import shorten, words_of

NGRAM = 13
_K1, _B = 1.2, 0.75
_SHOWN, _CUT = 80, " …"
_REMEMBERED = 100_000
"""Judgements: many Examples share a document."""


class DecontaminationSettings(NamedTuple):
    """How similar a training text may be to an evaluation task."""

    documents: Documents = "none"
    """Which documents of a search task count, besides its queries."""
    ngram: int = NGRAM
    """A shared run of so many words is a copy; 0 for no such check."""
    bm25: float = 0.0
    """A training query whose BM25 score with an evaluation query is this share of its own, and of that one's
    own, is a copy; 0 for no such check."""


DEFAULTS = DecontaminationSettings()


class _Known:
    """Hashes and the task of each: sorted, in 12 bytes an entry."""

    def __init__(self, hashes: array[int], tasks: array[int]) -> None:
        values = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0, dtype=np.uint64)
        self.hashes, first = np.unique(values, return_index=True)
        self._tasks = (np.frombuffer(tasks, dtype=np.int32) if tasks else np.empty(0, dtype=np.int32))[first]

    def find(self, hashes: Hashes) -> tuple[int, int] | None:
        """Return (which of `hashes`, its task) of the first that is known, None if none is."""
        if not len(self.hashes) or not len(hashes):
            return None
        positions = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        hits: NDArray[np.int64] = np.flatnonzero(self.hashes[positions] == hashes)
        return (int(hits[0]), int(self._tasks[positions[hits[0]]])) if len(hits) else None


class Evaluation:
    """All texts of the evaluation tasks, as numbers: what a training text is looked up in.

    Memory is 24 bytes a text, 12 bytes an n-gram, and the queries themselves for BM25.

    Args:
        tasks: what to keep out of the training data.
        settings: what counts as a copy.
        progress: called after each task.
    """

    def __init__(
        self,
        tasks: Sequence[EvaluationTask],
        settings: DecontaminationSettings = DEFAULTS,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.names = [task.name for task in tasks]
        self.settings = settings
        self.texts = 0
        self._ngrams = NgramHasher(settings.ngram)
        queries: list[tuple[str, int]] = []
        exact, plain, runs = _Gathered(), _Gathered(), _Gathered()
        for number, task in enumerate(tasks):
            for text in _each(task, settings.documents):
                self.texts += 1
                exact.add([stable_hash(text)], number)
                plain.add([stable_hash(leak_key(text))], number)
                if settings.ngram:
                    runs.add(self._ngrams.hashes(words_of(text)).tolist(), number)
            if settings.bm25:
                queries += [(text, number) for text in dict.fromkeys(task.queries())]
            progress(1)
        self._exact, self._plain, self._runs = exact.known(), plain.known(), runs.known()
        self._similar = _Similar(queries, settings.bm25) if queries else None

    def fault(self, text: str, part: Part) -> Fault | None:
        """Say in what way a training text stands in a task, None if it does not."""
        for known, key, reason in (
            (self._exact, text, "equals a text of"),
            (self._plain, leak_key(text), "equals, but for case and punctuation, a text of"),
        ):
            match = known.find(np.array([stable_hash(key)], dtype=np.uint64))
            if match:
                return Fault(f"{reason} {self.names[match[1]]}")
        if self.settings.ngram:
            spoken = words_of(text)
            match = self._runs.find(self._ngrams.hashes(spoken))
            if match:
                shared = " ".join(spoken[match[0] : match[0] + self.settings.ngram])
                return Fault(
                    f"shares {self.settings.ngram} words with {self.names[match[1]]}",
                    f"'{shorten(shared, 2 * _SHOWN, mark=_CUT)}'",
                )
        if self._similar is not None and part == "query":
            similar = self._similar.find(text)
            if similar:
                share, query, task = similar
                return Fault(
                    f"BM25 close to {self.names[task]}",
                    f"{share:.2f} of '{shorten(query, _SHOWN, mark=_CUT)}'",
                )
        return None


def decontaminate(
    examples: Sequence[Example], evaluation: Evaluation, progress: Callable[[int], None] = lambda _: None
) -> Outcome:
    """Drop Examples whose query or positive stands in an evaluation task, and negatives that do."""
    fault = functools.lru_cache(_REMEMBERED)(evaluation.fault)

    def judge(text: str, part: Part) -> Fault | None:
        return fault(text, "query" if part == "query" else "positive")

    return judge_texts(examples, judge, progress)


class _Gathered:
    """Hashes with their tasks, while they are read."""

    def __init__(self) -> None:
        self._hashes, self._tasks = array("Q"), array("i")

    def add(self, hashes: Iterable[int], task: int) -> None:
        before = len(self._hashes)
        self._hashes.extend(hashes)
        self._tasks.extend([task] * (len(self._hashes) - before))

    def known(self) -> _Known:
        return _Known(self._hashes, self._tasks)


class _Similar:
    """BM25 between a training query t and the evaluation queries e: s(t, e) / max(s(t, t), s(e, e)).

    In a score every word of the first text counts once. So the similarity is 1 for equal texts, and low if
    one holds the other among much else.
    """

    def __init__(self, queries: Sequence[tuple[str, int]], threshold: float) -> None:
        from embedforge.lexical import Bm25, words

        self._queries, self._threshold, self._words = queries, threshold, words
        texts = [text for text, _ in queries]
        self._index = Bm25(texts, k1=_K1, b=_B)
        tokens = [words(text) for text in texts]
        self._frequency = Counter(word for query_tokens in tokens for word in set(query_tokens))
        self._mean_length = sum(map(len, tokens)) / len(tokens)
        self._own = np.array([self._with_itself(query_tokens) for query_tokens in tokens])

    def find(self, text: str) -> tuple[float, str, int] | None:
        """Return the similarity, the evaluation query and its task, if the threshold is reached."""
        tokens = self._words(text)
        if not tokens:
            return None
        own = self._with_itself(tokens)
        scores = self._index.scores(" ".join(dict.fromkeys(tokens)))
        near = np.flatnonzero(scores >= self._threshold * own)
        if not len(near):
            return None
        shares = scores[near] / np.maximum(self._own[near], own)
        best = int(np.argmax(shares))
        if shares[best] < self._threshold:
            return None
        return float(shares[best]), *self._queries[near[best]]

    def _with_itself(self, tokens: Sequence[str]) -> float:
        """Return the score of a text with itself, by the index's frequencies (Lucene's BM25)."""
        held_back = _K1 * (1 - _B + _B * len(tokens) / self._mean_length)
        count = len(self._queries)
        return sum(
            math.log1p((count - self._frequency[word] + 0.5) / (self._frequency[word] + 0.5))
            * times
            / (times + held_back)
            for word, times in Counter(tokens).items()
        )


def _each(task: EvaluationTask, documents: Documents) -> Iterable[str]:
    yield from task.queries()
    yield from task.documents(documents)
