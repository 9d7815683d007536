from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedforge import ranking
from embedforge.errors import EmbedforgeError
from embedforge.lexical import Bm25, words_and_identifiers
from embedforge.ranking import exact_search, top_k


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 35))
def test_top_k_is_a_stable_sort_cut_at_k(values: list[int], k: int):
    scores = np.array([values], dtype=np.float32)
    indices, best = top_k(scores, k)
    expected = sorted(range(len(values)), key=lambda place: (-values[place], place))[:k]
    assert indices[0].tolist() == expected
    assert best[0].tolist() == [values[place] for place in expected]


def test_top_k_refuses_nan():
    with pytest.raises(EmbedforgeError, match="not a number"):
        top_k(np.array([[0.0, np.nan]], dtype=np.float32), 1)


@pytest.mark.parametrize("documents_per_block", [1, 3, 7, 100])
def test_blocks_do_not_change_a_search(monkeypatch: pytest.MonkeyPatch, documents_per_block: int):
    random = np.random.default_rng(0)
    queries = random.integers(-3, 4, size=(5, 4)).astype(np.float32)  # whole numbers: exact, with many ties
    documents = random.integers(-3, 4, size=(20, 4)).astype(np.float32)
    expected = top_k(queries @ documents.T, 6)
    monkeypatch.setattr(ranking, "DOCUMENTS_PER_BLOCK", documents_per_block)
    monkeypatch.setattr(ranking, "QUERIES_PER_BLOCK", 2)
    for found, wanted in zip(exact_search(queries, documents, 6), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_search_returns_all_documents_where_there_are_fewer_than_k():
    indices, scores = exact_search(np.ones((2, 3)), np.eye(3), 10)
    assert indices.shape == scores.shape == (2, 3)


def test_bm25_prefers_the_rarer_word_and_keeps_unmatched_documents_last():
    bm25 = Bm25(["common rare", "common other", "common third", "nothing"])
    indices, scores = bm25.search(["rare common", "unknown word", ""], 4)
    assert indices[0].tolist() == [0, 1, 2, 3]
    assert scores[0, 3] == 0
    assert indices[1].tolist() == indices[2].tolist() == [0, 1, 2, 3]
    assert not scores[1:].any()


def test_identifiers_are_found_by_their_parts_on_request_only():
    documents = ["def read_lines(path): ...", "class HTTPServer: ...", "nothing here"]
    assert Bm25(documents, tokenization="identifiers").search(["http lines"], 3)[1].astype(bool).sum() == 2
    assert not Bm25(documents).search(["http lines"], 3)[1].any()
    assert words_and_identifiers("parseURL2json __init__") == [
        *("parseurl2json", "parse", "url", "json"),
        "__init__",
    ]


def test_bm25_without_words_is_an_error():
    with pytest.raises(EmbedforgeError, match="no word"):
        Bm25(["", "?!"])
