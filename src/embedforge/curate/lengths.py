"""Texts that are too short or too long, in words, characters or tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from embedforge.curate.outcome import Fault, Outcome, Part, judge_texts
from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError

Unit = Literal["words", "characters", "tokens"]
UNITS: tuple[Unit, ...] = ("words", "characters", "tokens")


class Limits(NamedTuple):
    """Lengths that are allowed, both ends included."""

    least: int = 0
    most: int | None = None

    def __contains__(self, length: object) -> bool:
        """Say whether a length is within the limits."""
        return isinstance(length, int) and self.least <= length and (self.most is None or length <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.least:,} and more" if self.least else "any"
        return f"{self.least:,} to {self.most:,}"


def parse_limits(text: str, option: str) -> Limits:
    """Read "3:128", "3:" or ":128".

    >>> parse_limits(":128", "--query-length")
    Limits(least=0, most=128)

    Raises:
        EmbedforgeError: it is not of this form, or the limits are the wrong way round.
    """
    least, colon, most = text.partition(":")
    digits = (part.isascii() and part.isdigit() and len(part) < 12 for part in (least, most) if part)
    if not colon or text == colon or not all(digits):
        raise EmbedforgeError(f"{option} takes LEAST:MOST, for example 3:128, 3: or :128; got '{text}'")
    limits = Limits(int(least or 0), int(most) if most else None)
    if limits.most is not None and limits.most < limits.least:
        raise EmbedforgeError(f"{option} {text}: the most is below the least")
    return limits


def drop_lengths(
    examples: Sequence[Example],
    query: Limits,
    document: Limits,
    measure: Callable[[str], int],
    unit: Unit = "words",
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Drop queries and documents whose length lies outside the limits."""

    def judge(text: str, part: Part) -> Fault | None:
        limits, what = (query, "query") if part == "query" else (document, "document")
        length = measure(text)
        if length in limits:
            return None
        return Fault(f"{what} too {'short' if length < limits.least else 'long'}", f"{length:,} {unit}")

    return judge_texts(examples, judge, progress)


def measure_of(unit: Unit, tokenizer: str = "embedforge:base") -> Callable[[str], int]:
    """Return the function that measures a text.

    Args:
        unit: words are runs without white space, and tokens are those of `tokenizer`, without BOS and EOS.
        tokenizer: a decoder: `embedforge:base`, a folder or a hub id.
    """
    if unit == "words":
        return lambda text: len(text.split())
    if unit == "characters":
        return len
    from tokenizers import Tokenizer

    from embedforge.model.folder import find_folder

    path = Path(find_folder(tokenizer)) / "tokenizer.json"
    if not path.is_file():
        raise EmbedforgeError(f"{path}: there is no such file; --tokenizer needs a folder with one")
    read = Tokenizer.from_file(str(path))
    return lambda text: len(read.encode(text, add_special_tokens=False).ids)
