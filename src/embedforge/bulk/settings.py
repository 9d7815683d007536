"""What is asked of an encode run: which texts, as what, and how their vectors are written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from embedforge.errors import EmbedforgeError, did_you_mean, missing_extra
from embedforge.quantize import Precision

Format = Literal["parquet", "npy", "arrow"]

ROWS_PER_SHARD = 16_384
"""At 384 float32 numbers a shard has 25 MB; a kill costs at most what a process has done of one."""


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """All that decides about the rows and the vectors, besides model and input.

    Args:
        column: holds the text; of several, what is there stands together, with a space (title and text).
        id: the column of the ids, text or whole numbers; they are written beside the vectors.
        keep: columns that are written beside the vectors too, as text (other values as JSON).
        query: the texts are queries: they get the instruction, by default the contract's.
        instruction: stands before each text, in the contract's template.
        instruction_column: holds the instruction of each text instead.
        max_tokens: cut texts shorter than the model does.
        dtype: of the weights; as saved when None.
        dim: keep so many numbers of each vector, from the first on, at unit length again (Matryoshka).
        precision: float32, float16, int8 or binary, see `quantize`.
        format: of the files: parquet, npy or arrow.
        rows_per_shard: rows of a file of vectors.
    """

    column: tuple[str, ...] = ("text",)
    id: str | None = None
    keep: tuple[str, ...] = ()
    query: bool = False
    instruction: str | None = None
    instruction_column: str | None = None
    max_tokens: int | None = None
    dtype: str | None = None
    dim: int | None = None
    precision: Precision = "float32"
    format: Format = "parquet"
    rows_per_shard: int = ROWS_PER_SHARD

    def check(self) -> None:
        """Refuse what cannot be, before anything is read.

        Raises:
            EmbedforgeError: names the option, its value and the way out.
        """
        _one_of("--precision", self.precision, get_args(Precision))
        _one_of("--format", self.format, get_args(Format))
        if not self.column:
            raise EmbedforgeError("--column is empty; name the column that holds the text")
        if self.instruction is not None and self.instruction_column is not None:
            raise EmbedforgeError(
                "--instruction is one for all texts, and --instruction-column has one for each: name one"
            )
        for name in self.keep:
            if name in ("row", "id", "vector", "scale"):
                raise EmbedforgeError(
                    f"--keep {name}: a column of that name is written anyway; rename it in the input"
                )
        if self.rows_per_shard < 1 or (self.dim is not None and self.dim < 1):
            raise EmbedforgeError("--rows-per-shard and --dim are at least 1")
        if self.precision == "binary" and self.dim is not None and self.dim % 8:
            raise EmbedforgeError(f"--dim {self.dim}: with --precision binary a multiple of 8, 8 bits a byte")
        if self.format != "npy":
            try:
                import pyarrow  # noqa: F401
            except ImportError:
                raise missing_extra("pyarrow", "data", f"--format {self.format}") from None

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        named = (*self.column, self.id, self.instruction_column, *self.keep)
        return list(dict.fromkeys(name for name in named if name is not None))

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as a manifest holds them."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EncodeSettings:
        """Read what `as_json` gave."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise EmbedforgeError(
            f"{option} {value}: there is {', '.join(known[:-1])} and {known[-1]}.{did_you_mean(value, known)}"
        )
