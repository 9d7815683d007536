"""Ways to store a vector in fewer bytes: how many numbers are kept, in which form, rotated before or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.quantize import Floats, cut_dimensions, quantize

Form = Literal["float32", "float16", "int8", "binary", "binary-rescored", "binary-int8"]
FORMS: tuple[Form, ...] = get_args(Form)
DEFAULT_FORMS: tuple[Form, ...] = ("float32", "int8", "binary", "binary-rescored", "binary-int8")
FEWEST_DIMS = 32
"""Of the lengths that are tried when none are named."""
_BITS: dict[Form, tuple[int, int]] = {
    "float32": (32, 32),
    "float16": (16, 16),
    "int8": (8, 8),
    "binary": (1, 1),
    "binary-rescored": (1, 1),
    "binary-int8": (9, 1),
}
"""Of each number: stored in all, and read for every document of a search."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to store vectors.

    `binary` compares bits with bits. `binary-rescored` finds candidates so, and orders them by the query's
    full numbers against the documents' bits (Yamada et al. 2021, arXiv 2106.00882), for which nothing more
    is stored. `binary-int8` orders them by an int8 copy of the documents.
    """

    dim: int
    form: Form
    rotated: bool = False

    @property
    def label(self) -> str:
        """What tables call it: `rotated 96 x int8`."""
        return f"{'rotated ' if self.rotated else ''}{self.dim} x {self.form}"

    @property
    def bytes(self) -> int:
        """Stored for each vector."""
        return self.dim * _BITS[self.form][0] // 8

    @property
    def searched_bytes(self) -> int:
        """Of those, what a search reads for every document, which had better be in memory."""
        return self.dim * _BITS[self.form][1] // 8

    @property
    def rescores(self) -> bool:
        """Whether a search has a second step."""
        return self.form in ("binary-rescored", "binary-int8")

    def stored(self, vectors: Floats, rotation: NDArray[np.float64] | None = None) -> Floats:
        """Return vectors as they are compared with each other once they were stored: float32 [texts, dim].

        Bits are -1 and 1, so that a cosine is 1 - 2 * share of different bits. Of int8 the numbers without
        their scale, which no cosine depends on. What rescores has an int8 copy or bits alone for tasks that
        are no search.
        """
        return self.stored_of(self.whole(vectors, rotation))

    def stored_of(self, cut: Floats) -> Floats:
        """Return what `stored` does, of vectors that are rotated and cut already."""
        if self.form in ("binary", "binary-rescored"):
            return bits(cut)
        if self.form == "float32":
            return cut
        return quantize(cut, "float16" if self.form == "float16" else "int8")[0].astype(np.float32)

    def whole(self, vectors: Floats, rotation: NDArray[np.float64] | None = None) -> Floats:
        """Return vectors rotated and cut, in full numbers: what a query is rescored by."""
        if self.rotated:
            if rotation is None:
                raise EmbedforgeError(f"{self.label}: there is no rotation")
            vectors = np.asarray(vectors @ rotation, dtype=np.float32)
        return cut_dimensions(vectors, self.dim)


def bits(vectors: Floats) -> Floats:
    """Return -1 and 1 for the bits that `quantize` packs: float32 of the same shape.

    >>> bits(np.array([[0.5, -0.1, 0.0]], dtype=np.float32)).tolist()
    [[1.0, -1.0, -1.0]]
    """
    return np.where(vectors > 0, np.float32(1), np.float32(-1))


def variants_of(
    width: int, dims: Sequence[int] | None, forms: Sequence[str] | None, *, rotated: bool
) -> list[Variant]:
    """Return all combinations, the full vectors first.

    Args:
        width: of the model's vectors.
        dims: lengths; when None the whole, its half and so on down to 32.
        forms: of `FORMS`; when None all but float16.
        rotated: each also with the rotation; whole float vectors are the same with it and are left out.

    Raises:
        EmbedforgeError: a length that the vectors do not have or that has no whole bytes, or no such form.

    >>> [variant.label for variant in variants_of(64, None, ["int8"], rotated=False)]
    ['64 x float32', '64 x int8', '32 x int8']
    """
    for form in forms or ():
        if form not in FORMS:
            hint = did_you_mean(form, FORMS)
            raise EmbedforgeError(f"--forms {form}: there is {', '.join(FORMS)}.{hint}")
    lengths = list(_halves(width)) if dims is None else sorted(set(dims), reverse=True)
    chosen: list[Form] = [form for form in FORMS if form in (forms or DEFAULT_FORMS)]
    for dim in lengths:
        if not 0 < dim <= width:
            raise EmbedforgeError(f"--dims {dim}: the model's vectors have {width} dimensions")
        if dim % 8 and dims is not None and any(form.startswith("binary") for form in chosen):
            raise EmbedforgeError(
                f"--dims {dim}: 8 bits make a byte; take a multiple of 8, or leave binary out: "
                "--forms float32,int8"
            )
    found = [Variant(width, "float32")]
    for turned in (False, True) if rotated else (False,):
        for dim in lengths:
            fits = [form for form in chosen if not form.startswith("binary") or dim % 8 == 0]
            found += [Variant(dim, form, turned) for form in fits]
    same = (Variant(width, "float32", True), Variant(width, "float16", True))
    return list(dict.fromkeys(variant for variant in found if variant not in same))


def _halves(width: int) -> Iterable[int]:
    """Yield the width, and its halves of whole bytes."""
    yield width
    half = width // 2
    while half >= FEWEST_DIMS:
        yield half // 8 * 8
        half //= 2
