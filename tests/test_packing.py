"""Texts joined and cut into chunks, nothing lost that could be learned from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedforge.data.packing import Chunks, pack
from embedforge.errors import EmbedforgeError

PAD = -7

text = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=12).map(
    lambda tokens: ([token for token, _ in tokens], [int(flag) for _, flag in tokens])
)


def expected(texts: list[tuple[list[int], list[int]]], size: int) -> tuple[list[list[int]], int]:
    """The rule, written out: cut the joined texts, drop pieces without a maskable token after the first."""
    ids = [token for tokens, _ in texts for token in tokens]
    flags = [flag for _, text_flags in texts for flag in text_flags]
    starts = range(0, len(ids), size)
    kept = [ids[start : start + size] for start in starts if any(flags[start + 1 : start + size])]
    return kept, len(starts) - len(kept)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(text, max_size=12), size=st.integers(2, 9))
def test_chunks_are_the_joined_texts_but_for_what_is_dropped(texts, size: int) -> None:
    kept, dropped = expected(texts, size)
    if not kept:
        with pytest.raises(EmbedforgeError, match=f"{len(texts)} texts"):
            pack(texts, chunk_tokens=size, pad_id=PAD)
        return
    chunks = pack(iter(texts), chunk_tokens=size, pad_id=PAD)
    assert [row[:length].tolist() for row, length in zip(chunks.ids, chunks.lengths, strict=True)] == kept
    assert chunks.dropped == dropped
    assert len(chunks) == len(kept)
    assert chunks.ids.shape == chunks.maskable.shape == (len(kept), size)
    assert (chunks.lengths[:-1] == size).all()
    padding = np.arange(size) >= chunks.lengths[:, None]
    assert (chunks.ids[padding] == PAD).all()
    assert not chunks.maskable[padding].any()
    assert chunks.maskable[:, 1:].any(axis=1).all()


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(text, min_size=1, max_size=8), size=st.integers(2, 9))
def test_flags_stay_with_their_tokens(texts, size: int) -> None:
    marked = [(list(np.where(flags, 2, 1)) if ids else [], flags) for ids, flags in texts]
    try:
        chunks = pack(marked, chunk_tokens=size, pad_id=0)
    except EmbedforgeError:
        return
    assert np.array_equal(chunks.maskable, chunks.ids == 2)


def test_dtypes_and_a_remainder() -> None:
    chunks = pack([([1, 5, 6, 2], [0, 1, 1, 0]), ([1, 7, 2], [0, 1, 0])], chunk_tokens=5, pad_id=0)
    assert chunks.ids.tolist() == [[1, 5, 6, 2, 1], [7, 2, 0, 0, 0]][:1]
    assert chunks.dropped == 1  # of "7 2" only the 7 could be hidden, and nothing stands before it
    assert (chunks.ids.dtype, chunks.maskable.dtype, chunks.lengths.dtype) == (np.int32, np.bool_, np.int32)
    chunks = pack([([1, 5, 6, 2], [0, 1, 1, 0]), ([1, 7, 2], [0, 1, 0])], chunk_tokens=4, pad_id=0)
    assert chunks.ids.tolist() == [[1, 5, 6, 2], [1, 7, 2, 0]]
    assert chunks.lengths.tolist() == [4, 3]


def test_arrays_are_taken_as_well_as_lists() -> None:
    ids, flags = np.arange(10, dtype=np.int64), np.ones(10, dtype=np.int8)
    chunks = pack([(ids, flags)], chunk_tokens=10, pad_id=0)
    assert chunks.ids[0].tolist() == ids.tolist()


def test_texts_are_read_once_and_as_they_come() -> None:
    held = []

    def stream():
        for number in range(1000):
            held.append(number)
            yield [1, number, 2], [0, 1, 0]

    chunks = pack(stream(), chunk_tokens=30, pad_id=0)
    assert held == list(range(1000))
    assert isinstance(chunks, Chunks)
    assert chunks.ids.size == 3000


@pytest.mark.parametrize(
    ("texts", "counts"),
    [
        ([], "0 texts of together 0 tokens, of which 0"),
        ([([5], [1]), ([], [])], "2 texts of together 1 tokens, of which 1"),
        ([([1, 2], [0, 0])] * 3, "3 texts of together 6 tokens, of which 0"),
        ([([7, 2], [1, 0])], "1 texts of together 2 tokens, of which 1"),
    ],
    ids=["no text", "one token", "special tokens only", "nothing after the first"],
)
def test_nothing_to_predict_is_an_error_with_the_counts(texts, counts: str) -> None:
    with pytest.raises(EmbedforgeError, match=counts):
        pack(texts, chunk_tokens=8, pad_id=0)


def test_a_chunk_of_one_token_is_refused() -> None:
    with pytest.raises(EmbedforgeError, match="chunk_tokens is 1"):
        pack([([1, 2], [1, 1])], chunk_tokens=1, pad_id=0)


def test_ids_and_flags_of_different_length_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="text 2: 2 ids, 1 flags"):
        pack([([1], [1]), ([1, 2], [1])], chunk_tokens=4, pad_id=0)
