"""Vectors as they were asked for: fewer dimensions, fewer bits, as text or bytes."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np

OutputType = Literal["float", "int8", "binary", "ubinary"]
"""float32; int8; one bit a number, packed into int8 or uint8 (the names are sentence-transformers')."""


def cut(vectors: np.ndarray, dimensions: int | None, *, normalize: bool) -> np.ndarray:
    """Keep the first numbers of each vector, of unit length again if `normalize`: [texts, dimensions].

    For models trained so (Matryoshka, arXiv 2205.13147); of others the first numbers are worth less.
    """
    if dimensions is not None:
        vectors = vectors[:, :dimensions]
    if normalize:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(norms, 1e-12)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def as_type(vectors: np.ndarray, output_type: OutputType) -> np.ndarray:
    """Return float32 vectors in fewer bits.

    int8: each vector is stretched so that its largest number is 127, which leaves cosines as they are and
    needs no calibration; [texts, dim] int8. binary, ubinary: the signs, eight to a byte, the first number in
    the highest bit; [texts, ceil(dim / 8)], compared by Hamming distance.

    >>> as_type(np.array([[0.5, -1.0, 0.0, 0.25]], dtype=np.float32), "int8").tolist()
    [[64, -127, 0, 32]]
    >>> as_type(np.array([[0.5, -1.0, 0.0, 0.25]], dtype=np.float32), "ubinary").tolist()
    [[144]]
    """
    if output_type == "float":
        return vectors
    if output_type == "int8":
        largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)
        return np.rint(vectors * (127 / largest)).astype(np.int8)
    packed = np.packbits(vectors > 0, axis=1)
    return packed if output_type == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)


def as_base64(vector: np.ndarray) -> str:
    """Return a vector's bytes in its own type, little endian, as OpenAI does for float32."""
    return base64.b64encode(vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()).decode()


def rows(vectors: np.ndarray, *, as_bytes: bool) -> list[Any]:
    """Return what stands for each vector in an answer."""
    return [as_base64(vector) for vector in vectors] if as_bytes else list(vectors)
