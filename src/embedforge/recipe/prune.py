"""What a recipe cuts off its decoder before anything is trained: layers, and tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from embedforge.recipe.base import PositiveInt, Section
from embedforge.recipe.data import Source

LayerNumber = Annotated[int, Field(ge=0, lt=10**4)]
LayerCount = Annotated[int, Field(ge=1, lt=10**4)]


class Vocabulary(Section):
    """Which tokens are kept: those that given texts need, special tokens, and one for every byte."""

    texts: tuple[Source, ...] = Field(min_length=1)
    """Sources as in a mix. A path alone is a file: .txt of a text a line, any other of Examples."""
    min_count: PositiveInt = 1
    """A token that occurs less often in the texts is cut off too, and written as shorter ones."""

    @field_validator("texts", mode="before")
    @classmethod
    def _paths_are_sources(cls, texts: Any) -> Any:
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ValueError(f"texts is a list of files or sources, not {texts!r:.60}")
        return [_source(text) if isinstance(text, str) else text for text in texts]


class Prune(Section):
    """The smaller decoder that is made of `base`, kept in the run's folder `base/`, and trained."""

    layers: LayerCount | Annotated[tuple[LayerNumber, ...], Field(min_length=1)] | None = None
    """The first so many layers, or those of these numbers, counted from 0; all of them when absent."""
    vocabulary: Vocabulary | None = None

    @field_validator("layers")
    @classmethod
    def _layers_stay_in_order(cls, layers: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(layers, tuple) and list(layers) != sorted(set(layers)):
            raise ValueError(f"layers are named once each, in their order: {sorted(set(layers))}")
        return layers

    @model_validator(mode="after")
    def _prunes_something(self) -> Prune:
        if self.layers is None and self.vocabulary is None:
            raise ValueError("prune has no effect: give layers, vocabulary, or both, or leave prune out")
        return self


def _source(path: str) -> dict[str, str]:
    return {"path": path} | ({"kind": "texts"} if ".txt" in Path(path).suffixes else {})
