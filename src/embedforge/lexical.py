"""BM25 over texts or source code: the lexical baseline of evaluation and a source of hard negatives."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN

from embedforge.errors import EmbedforgeError
from embedforge.ranking import Floats, Indices, top_k

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG when imported

Tokenization = Literal["words", "identifiers"]

_WORD = re.compile(r"\w\w+")
_STOPWORDS = frozenset(STOPWORDS_EN)
# A capital run before a capitalised word (HTTP in HTTPServer), a word, a capital run, digits.
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\dA-Z_]+|[A-Z]+|\d+")


def words(text: str) -> list[str]:
    """Split a text into lower-case words of two characters or more, without English stop words.

    >>> words("The parser of HTTPServer")
    ['parser', 'httpserver']
    """
    return [word for word in map(str.lower, _WORD.findall(text)) if word not in _STOPWORDS]


def words_and_identifiers(text: str) -> list[str]:
    """Split as `words` does, and add the parts of snake_case and camelCase identifiers.

    >>> words_and_identifiers("read_lines of HTTPServer")
    ['read_lines', 'read', 'lines', 'httpserver', 'http', 'server']
    """
    return list(_with_parts(text))


def _with_parts(text: str) -> Iterator[str]:
    for word in _WORD.findall(text):
        parts = _PART.findall(word)
        for token in (word, *parts) if len(parts) > 1 else (word,):
            lower = token.lower()
            if len(lower) > 1 and lower not in _STOPWORDS:
                yield lower


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
        k1: float = 1.2,
        b: float = 0.75,
    ) -> None:
        self._tokenize = words_and_identifiers if tokenization == "identifiers" else words
        tokens = [self._tokenize(text) for text in documents]
        if not any(tokens):
            raise EmbedforgeError(f"BM25 found no word to index in {len(documents)} documents")
        self._documents = len(documents)
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
