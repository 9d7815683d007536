"""Texts joined and cut into chunks of one length: the training rows of masked next-token prediction.

Written for `embedforge.objectives.mntp`; numpy only, and no text is held but as its tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedforge.errors import EmbedforgeError


@dataclass(frozen=True)
class Chunks:
    """Rows of equal length, the last one padded on the right."""

    ids: npt.NDArray[np.int32]
    """Token ids, int32 [chunks, tokens]."""
    maskable: npt.NDArray[np.bool_]
    """Whether a token may be hidden, bool [chunks, tokens]; False in padding."""
    lengths: npt.NDArray[np.int32]
    """Tokens of each chunk that are not padding, int32 [chunks]."""
    dropped: int
    """Chunks left out, because nothing after their first token may be hidden."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(texts: Iterable[tuple[Sequence[int], Sequence[int]]], *, chunk_tokens: int, pad_id: int) -> Chunks:
    """Join rendered texts in their order, and cut them into chunks.

    As LLM2Vec's data script does (its group_texts): nothing separates the texts but their own BOS and EOS,
    and a chunk may begin or end inside a text. Unlike it, what is left at the end becomes a shorter chunk
    rather than being thrown away, so that a small collection loses nothing. A chunk in which nothing could
    be predicted, that is nothing after its first token may be hidden, is dropped and counted.

    Args:
        texts: of each text the token ids, and 1 where a token may be hidden, 0 where not (special tokens,
            instructions); read once. Memory is 5 bytes a token.
        chunk_tokens: tokens of a chunk, at least 2.
        pad_id: fills up the last chunk.

    Raises:
        EmbedforgeError: no chunk remains; the message counts what there was.
    """
    if chunk_tokens < 2:
        raise EmbedforgeError(
            f"chunk_tokens is {chunk_tokens}: a chunk needs 2 tokens, one to predict and one before it"
        )
    ids, maskable, count = array("i"), bytearray(), 0
    for count, (text_ids, text_maskable) in enumerate(texts, 1):
        if len(text_ids) != len(text_maskable):
            raise ValueError(f"text {count}: {len(text_ids)} ids, {len(text_maskable)} flags")
        ids.frombytes(np.asarray(text_ids, dtype=np.int32).tobytes())
        maskable += np.asarray(text_maskable, dtype=np.bool_).tobytes()
    tokens, hideable = len(ids), maskable.count(1)
    missing = -tokens % chunk_tokens
    ids.frombytes(np.full(missing, pad_id, dtype=np.int32).tobytes())
    maskable += bytes(missing)

    chunks = _cut(ids, maskable, chunk_tokens, missing)
    if not len(chunks):
        raise EmbedforgeError(
            f"there is nothing to predict in {count} texts of together {tokens} tokens, of which {hideable} "
            f"may be hidden: a chunk of up to {chunk_tokens} tokens needs 2 of them, and one that may be "
            "hidden after its first. Give texts that are more than special tokens and instructions"
        )
    return chunks


def _cut(ids: array[int], maskable: bytearray, chunk_tokens: int, missing: int) -> Chunks:
    """Look at both buffers as rows, without a copy unless rows have to be left out."""
    rows = np.frombuffer(ids, dtype=np.int32).reshape(-1, chunk_tokens)
    flags = np.frombuffer(maskable, dtype=np.bool_).reshape(-1, chunk_tokens)
    lengths = np.full(len(rows), chunk_tokens, dtype=np.int32)
    lengths[-1:] -= missing
    kept = flags[:, 1:].any(axis=1)
    if kept.all():
        return Chunks(rows, flags, lengths, 0)
    return Chunks(rows[kept], flags[kept], lengths[kept], int((~kept).sum()))
