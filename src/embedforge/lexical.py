"""BM25 over texts or source code: the lexical baseline of evaluation and a source of hard negatives."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.ranking import Floats, Indices, top_k

Tokenization = Literal["words", "identifiers"]

# Han, hiragana, katakana and hangul: scripts whose words Lucene's CJKAnalyzer does not try to find.
_CJK = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u3096\u309d-\u309f"
    "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb\uffa0-\uffdc"
)
_RUN = re.compile(rf"([{_CJK}]+)|[^\W{_CJK}]{{2,}}")
_STOPWORDS = frozenset(
    """
    a an and are as at be but by for if in into is it no not of on or such that the their then there these
    they this to was will with
    """.split()  # noqa: SIM905
)
"""Lucene's for English, as bm25s has them; importing that would take scipy, half a second a query."""
# A capital run before a capitalised word (HTTP in HTTPServer), a word, a capital run, digits.
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\dA-Z_]+|[A-Z]+|\d+")


def words(text: str) -> list[str]:
    """Split a text into lower-case words of two characters or more, without English stop words.

    Chinese, Japanese and Korean are split into overlapping pairs of characters, since their words do not
    show; a character alone stays alone. So does Lucene's CJKAnalyzer.

    >>> words("The parser of HTTPServer")
    ['parser', 'httpserver']
    >>> words("東京都 in 2026, 猫")
    ['東京', '京都', '2026', '猫']
    """
    return [token for token in map(str.lower, _tokens(text)) if token not in _STOPWORDS]


def words_and_identifiers(text: str) -> list[str]:
    """Split as `words` does, and add the parts of snake_case and camelCase identifiers.

    >>> words_and_identifiers("read_lines of HTTPServer")
    ['read_lines', 'read', 'lines', 'httpserver', 'http', 'server']
    """
    return [word for token in _tokens(text) for word in _identifiers_of(token)]


def word_spans(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the words that `words_and_identifiers` finds, and from where to where each stands in the text.

    >>> list(word_spans("The readLines"))
    [('readlines', 4, 13), ('read', 4, 8), ('lines', 8, 13)]
    """
    for run in _RUN.finditer(text):
        start, found = run.start(), run[0]
        if run[1] is not None and len(found) > 2:
            spans = [(place, place + 2) for place in range(len(found) - 1)]
        else:
            parts = [part.span() for part in _PART.finditer(found)]
            spans = [(0, len(found)), *(part for part in parts if len(parts) > 1 and part[1] - part[0] > 1)]
        for begin, end in spans:
            word = unicodedata.normalize("NFC", found[begin:end]).lower()
            if word not in _STOPWORDS:
                yield word, start + begin, start + end


def _tokens(text: str) -> Iterator[str]:
    for run in _RUN.finditer(unicodedata.normalize("NFC", text)):  # an accent apart would end the word
        pairs = run[1]
        if pairs is None or len(pairs) == 1:
            yield run[0]
        else:
            yield from (pairs[start : start + 2] for start in range(len(pairs) - 1))


@lru_cache(maxsize=2**17)  # a text's tokens are few different ones, most of them met before
def _identifiers_of(token: str) -> tuple[str, ...]:
    parts = _PART.findall(token)
    found = [token, *(part for part in parts if len(parts) > 1 and len(part) > 1)]
    return tuple(word for word in map(str.lower, found) if word not in _STOPWORDS)


K1, B = 1.2, 0.75


def _tokenizer(tokenization: Tokenization) -> Callable[[str], list[str]]:
    return words_and_identifiers if tokenization == "identifiers" else words


class Bm25:
    """BM25 (Lucene's variant, k1 1.2 and b 0.75 unless given) over a fixed list of documents.

    Args:
        documents: the texts to search; at least one of them must hold a word.
        tokenization: "identifiers" also finds `read` in `read_lines` and `readLines`, for source code.
        k1: how slowly repeated words stop counting.
        b: how strongly long documents are held back.

    Raises:
        EmbedforgeError: there is no word to index.
    """

    def __init__(
        self,
        documents: Sequence[str],
        *,
        tokenization: Tokenization = "words",
        k1: float = K1,
        b: float = B,
    ) -> None:
        self._tokenize = _tokenizer(tokenization)
        tokens = [self._tokenize(text) for text in documents]
        if not any(tokens):
            raise EmbedforgeError(f"BM25 found no word to index in {len(documents)} documents")
        self._documents = len(documents)
        import bm25s  # scipy

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG when imported
        self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
        self._index.index(tokens, show_progress=False)

    def __len__(self) -> int:
        return self._documents

    def scores(self, query: str) -> Floats:
        """Return every document's BM25 score for `query`, float32 [documents]; 0 without a shared word."""
        ids = self._index.get_tokens_ids(self._tokenize(query))
        if not ids:
            return np.zeros(self._documents, dtype=np.float32)
        return np.asarray(self._index.get_scores_from_ids(ids), dtype=np.float32)

    def search(self, queries: Sequence[str], k: int) -> tuple[Indices, Floats]:
        """Return each query's best `k` documents, best first, ties by document number.

        Documents that share no word with the query have score 0 and fill the end of the ranking.

        Returns:
            Document numbers, int64 [queries, min(k, documents)], and scores, float32 of the same shape.
        """
        width = min(k, self._documents)
        indices = np.empty((len(queries), width), dtype=np.int64)
        scores = np.empty((len(queries), width), dtype=np.float32)
        for row, query in enumerate(queries):
            indices[row : row + 1], scores[row : row + 1] = top_k(self.scores(query)[None, :], k)
        return indices, scores


@dataclass(frozen=True, slots=True)
class Postings:
    """Where the queries' words stand in one part of a collection; see `QueryTerms.postings`."""

    starts: NDArray[np.int64]
    """[words + 1]: the entries of word w are those from starts[w] up to starts[w + 1]."""
    rows: NDArray[np.int32]
    """[entries], the document's number within the part; ascending within a word."""
    counts: NDArray[np.int32]
    """[entries], how often the word stands there."""
    lengths: NDArray[np.int32]
    """[documents], words of each document, all of them."""


class QueryTerms:
    """BM25 of known queries over a collection that does not fit in memory, part by part.

    Only the queries' own words are indexed, so memory follows the queries and the largest part. The scores
    are those of `Bm25` over the whole collection: each part is counted first (`postings`), the counts of
    all are added up (`Collection.of`), then each part is scored (`scores`).

    Args:
        queries: all of them.
        tokenization: as for `Bm25`.

    Raises:
        EmbedforgeError: there is no word in any query.
    """

    def __init__(self, queries: Sequence[str], tokenization: Tokenization = "words") -> None:
        self._tokenize = _tokenizer(tokenization)
        self.numbers: dict[str, int] = {}
        """The words, in the order in which they were met."""
        self._queries = [
            Counter(self.numbers.setdefault(word, len(self.numbers)) for word in self._tokenize(query))
            for query in queries
        ]
        if not self.numbers:
            raise EmbedforgeError(f"BM25 found no word to search for in {len(queries)} queries")

    def postings(self, documents: Iterable[str]) -> Postings:
        """Count the queries' words in a part of the collection."""
        terms: list[int] = []
        rows: list[int] = []
        counts: list[int] = []
        lengths: list[int] = []
        for row, text in enumerate(documents):
            tokens = self._tokenize(text)
            lengths.append(len(tokens))
            tally = Counter(number for token in tokens if (number := self.numbers.get(token)) is not None)
            terms.extend(tally.keys())
            counts.extend(tally.values())
            rows.extend([row] * len(tally))
        order = np.argsort(np.array(terms, dtype=np.int32), kind="stable")
        starts = np.zeros(len(self.numbers) + 1, dtype=np.int64)
        np.cumsum(np.bincount(np.array(terms, dtype=np.int64), minlength=len(self.numbers)), out=starts[1:])
        return Postings(
            starts,
            np.array(rows, dtype=np.int32)[order],
            np.array(counts, dtype=np.int32)[order],
            np.array(lengths, dtype=np.int32),
        )

    def scores(
        self, postings: Postings, collection: Collection, queries: Iterable[int]
    ) -> Iterator[tuple[int, Floats]]:
        """Yield each requested query's number and the scores of the part's documents, float32 [documents].

        The array is used again for the next query.
        """
        weights = collection.weights(postings)
        scores = np.zeros(len(postings.lengths), dtype=np.float32)
        for query in queries:
            scores[:] = 0
            for word, times in self._queries[query].items():
                entries = slice(postings.starts[word], postings.starts[word + 1])
                scores[postings.rows[entries]] += times * weights[entries]
            yield query, scores


@dataclass(frozen=True, slots=True)
class Collection:
    """What BM25 has to know of a whole collection to score a part of it."""

    documents: int
    mean_length: float
    frequencies: NDArray[np.int64]
    """[words], in how many documents each word stands."""

    @staticmethod
    def of(parts: Iterable[Postings]) -> Collection:
        """Add up the parts.

        Raises:
            EmbedforgeError: no document holds a word.
        """
        documents, length = 0, 0
        frequencies = np.zeros(0, dtype=np.int64)
        for part in parts:
            documents += len(part.lengths)
            length += int(part.lengths.sum(dtype=np.int64))
            in_part = np.diff(part.starts)
            frequencies = in_part if not len(frequencies) else frequencies + in_part
        if not length:
            raise EmbedforgeError(f"BM25 found no word to index in {documents} documents")
        return Collection(documents, length / documents, frequencies)

    def weights(self, postings: Postings) -> Floats:
        """Return what each entry adds to its document's score, float32 [entries]: Lucene's BM25."""
        rarity = np.log1p((self.documents - self.frequencies + 0.5) / (self.frequencies + 0.5))
        relative = postings.lengths / self.mean_length
        held_back = (K1 * (1 - B + B * relative))[postings.rows]
        counts = postings.counts.astype(np.float64)
        word = np.repeat(np.arange(len(self.frequencies)), np.diff(postings.starts))
        return np.asarray(rarity[word] * counts / (counts + held_back), dtype=np.float32)
