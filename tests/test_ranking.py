from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedforge import nearest as search
from embedforge.errors import EmbedforgeError
from embedforge.lexical import Bm25, words_and_identifiers
from embedforge.nearest import Nearest, exact_search
from embedforge.ranking import NOTHING, top_k


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


@pytest.mark.parametrize("documents_per_block", [1, 3, 7, 50, 100])
@pytest.mark.parametrize("queries", [5, 40])
@pytest.mark.parametrize(("together", "without_limit"), [(2, 512), (7, 3), (100, 16)])
def test_blocks_do_not_change_a_search(
    monkeypatch: pytest.MonkeyPatch,
    documents_per_block: int,
    queries: int,
    together: int,
    without_limit: int,
):
    random = np.random.default_rng(0)
    asked = random.integers(-3, 4, size=(queries, 4)).astype(np.float32)  # whole numbers: many ties
    documents = random.integers(-3, 4, size=(120, 4)).astype(np.float32)
    expected = top_k(asked @ documents.T, 6)
    monkeypatch.setattr(search, "DOCUMENTS_PER_BLOCK", documents_per_block)
    monkeypatch.setattr(search, "QUERIES_PER_BLOCK", together)
    monkeypatch.setattr(search, "QUERIES_WITHOUT_LIMIT", without_limit)
    monkeypatch.setattr(search, "_TILE", 32)
    for found, wanted in zip(exact_search(asked, documents, 6), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_search_returns_all_documents_where_there_are_fewer_than_k():
    indices, scores = exact_search(np.ones((2, 3)), np.eye(3), 10)
    assert indices.shape == scores.shape == (2, 3)


# --- the bfloat16 filter -----------------------------------------------------------------------------


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_float64(queries: np.ndarray, documents: np.ndarray, k: int) -> np.ndarray:
    return np.sort(queries.astype(np.float64) @ documents.T.astype(np.float64), axis=1)[:, ::-1][:, :k]


def found_by(queries, documents, k, bfloat16, block=37):
    nearest = Nearest(queries, k, bfloat16=bfloat16)
    for start in range(0, len(documents), block):
        nearest.add(documents[start : start + block])
    return nearest.result()


@pytest.mark.parametrize("offset", [0.0, 3.0], ids=["spread", "all one way"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_bfloat16_filter_misses_nothing(offset: float, scale: float):
    """Rounded products alone would: their order differs from the true one in most rows."""
    random = np.random.default_rng(1)
    documents = unit(random.standard_normal((700, 48)) + offset) * np.float32(scale)
    queries = unit(random.standard_normal((60, 48)) + offset)
    indices, scores = found_by(queries, documents, 10, True)
    np.testing.assert_allclose(scores, by_float64(queries, documents, 10), atol=2e-6 * scale, rtol=0)
    for found, wanted in zip((indices, scores), found_by(queries, documents, 10, False), strict=True):
        np.testing.assert_array_equal(found, wanted)
    rounded = torch.from_numpy(queries).bfloat16() @ torch.from_numpy(documents).bfloat16().T
    assert (rounded.float().topk(10).indices.numpy() != indices).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 70), st.integers(0, 10_000))
def test_any_sizes_and_any_cluster_give_the_true_best(k: int, count: int, block: int, seed: int):
    """Documents around one point: the scores differ by less than bfloat16 can tell."""
    random = np.random.default_rng(seed)
    documents = unit(1 + random.standard_normal((count, 8)) * 10.0 ** random.integers(-4, 1))
    queries = unit(random.standard_normal((3, 8)))
    indices, scores = found_by(queries, documents, k, True, block)
    width = min(k, count)
    np.testing.assert_allclose(scores[:, :width], by_float64(queries, documents, width), atol=1e-6)
    assert all(len(set(row[:width])) == width for row in indices.tolist())
    assert (indices[:, width:] == NOTHING).all()


def test_equal_vectors_stand_in_their_order_whatever_the_blocks():
    documents = np.repeat(unit(np.random.default_rng(0).standard_normal((5, 16))), 300, axis=0)
    for block in (16, 100, 5000):
        indices, scores = found_by(documents[:1], documents, 400, True, block)
        assert indices[0, :300].tolist() == list(range(300))
        assert (np.diff(indices[0, 300:]) == 1).all()
        assert len(set(scores[0].tolist())) == 2


def test_documents_that_get_better_all_the_time_are_all_seen():
    angles = np.linspace(1.5, 0.0, 2000)
    documents = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    indices, _ = found_by(np.array([[1.0, 0.0]] * 40, dtype=np.float32), documents, 5, True, 100)
    assert (indices == [1999, 1998, 1997, 1996, 1995]).all()


def test_a_search_goes_on_from_a_stored_result():
    random = np.random.default_rng(2)
    queries, documents = unit(random.standard_normal((40, 16))), unit(random.standard_normal((300, 16)))
    whole = found_by(queries, documents, 7, True)
    first = Nearest(queries, 7)
    first.add(documents[:120])
    second = Nearest(queries, 7)
    second.restore(*first.result(), first.seen)
    second.add(documents[120:])
    for found, wanted in zip(second.result(), whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_vectors_are_refused(broken: float):
    vectors = np.ones((3, 2), dtype=np.float32)
    vectors[1, 1] = broken
    with pytest.raises(EmbedforgeError, match="not a number"):
        Nearest(vectors, 1)
    with pytest.raises(EmbedforgeError, match="not a number"):
        Nearest(np.ones((1, 2)), 1).add(vectors)


def test_vectors_of_another_width_are_refused():
    with pytest.raises(EmbedforgeError, match="documents have 3 dimensions, queries 2"):
        Nearest(np.ones((1, 2)), 1).add(np.ones((1, 3)))


# --- BM25 --------------------------------------------------------------------------------------------


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
