"""Smaller vectors: fewer dimensions (Matryoshka, arXiv 2205.13147), and fewer bits for each."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError

Floats = NDArray[np.float32]
Precision = Literal["float32", "float16", "int8", "binary"]


def cut_dimensions(vectors: Floats, dim: int) -> Floats:
    """Return the first `dim` numbers of each vector, at unit length again: float32 [texts, dim].

    Raises:
        EmbedforgeError: the vectors have fewer.

    >>> cut_dimensions(np.array([[3.0, 4.0, 12.0]], dtype=np.float32), 2).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    if dim > vectors.shape[1]:
        raise EmbedforgeError(f"--dim {dim}: the model's vectors have {vectors.shape[1]} dimensions")
    first = vectors[:, :dim]
    lengths = np.linalg.norm(first, axis=1, keepdims=True)
    return np.asarray(first / np.maximum(lengths, 1e-12), dtype=np.float32)


def quantize(vectors: Floats, precision: Precision) -> tuple[NDArray[Any], Floats | None]:
    """Return vectors in fewer bits, and of int8 what each is to be multiplied by.

    int8: each vector is stretched until its largest number is 127 or -127, and rounded, so nothing is clipped
    and no sample decides; cosines need no scale, inner products are those of `numbers * scale`. binary: a bit
    a dimension, 1 where the number is above 0, the first in the highest bit of the first byte (numpy's
    packbits; sentence-transformers calls it ubinary).

    Args:
        vectors: float32 [texts, dim].
        precision: what to return.

    Returns:
        float32, float16 or int8 [texts, dim], or uint8 [texts, dim / 8]; and float32 [texts] for int8 alone.

    Raises:
        EmbedforgeError: binary, and the dimensions are no multiple of 8.

    >>> numbers, scale = quantize(np.array([[0.5, -1.0, 0.25]], dtype=np.float32), "int8")
    >>> numbers.tolist(), np.round(numbers * scale[:, None], 2).tolist()
    ([[64, -127, 32]], [[0.5, -1.0, 0.25]])
    """
    if precision == "int8":
        scale = np.maximum(np.abs(vectors).max(axis=1), 1e-12).astype(np.float32) / np.float32(127)
        return np.rint(vectors / scale[:, None]).astype(np.int8), scale
    if precision == "binary":
        if vectors.shape[1] % 8:
            raise EmbedforgeError(
                f"--precision binary: 8 bits make a byte, and the vectors have {vectors.shape[1]} "
                f"dimensions; cut them with --dim {vectors.shape[1] // 8 * 8}"
            )
        return np.packbits(vectors > 0, axis=1), None
    return vectors.astype(np.float16 if precision == "float16" else np.float32, copy=False), None


def principal_rotation(vectors: Floats) -> NDArray[np.float64]:
    """Return the rotation to the principal directions of a sample: float64 [dim, dim], for `vectors @ it`.

    Its columns are the eigenvectors of the sample's second moments, largest first. No mean is taken off, so
    it is orthogonal and cosines of whole vectors stay what they are, while of all rotations it leaves the
    most of the sample's vectors in their first numbers, whatever the cut (Eckart & Young 1936). The largest
    number of each column is positive, so that the same sample gives the same rotation.

    Args:
        vectors: float32 [texts, dim], any number of them.

    Raises:
        EmbedforgeError: there are none.

    >>> turned = np.array([[3.0, 4.0], [-6.0, -8.0]], dtype=np.float32)
    >>> np.abs(turned @ principal_rotation(turned)).round(6).tolist()
    [[5.0, 0.0], [10.0, 0.0]]
    """
    if not len(vectors):
        raise EmbedforgeError("there are no vectors to find a rotation for; give some texts")
    exact = vectors.astype(np.float64)
    directions = np.linalg.eigh(exact.T @ exact)[1][:, ::-1]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return np.asarray(directions * np.where(largest < 0, -1.0, 1.0))
