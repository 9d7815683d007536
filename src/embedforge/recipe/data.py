"""What a recipe says of its data: sources, and how a stage mixes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from embedforge.data.kinds import source_kind, source_kinds
from embedforge.data.names import CATALOG_PREFIX
from embedforge.errors import EmbedforgeError
from embedforge.recipe.base import PositiveInt, Section
from embedforge.validation import explain, unknown_kind


class Source(Section):
    """One data source of a mix and what its rows mean."""

    path: str
    """A JSONL(.gz), Parquet or CSV file, a BEIR folder, a `datasets` hub id as `hub:owner/name`, or
    an entry of the catalogue as `catalog:NAME`."""
    name: str = ""
    """For metrics and messages; the file's stem when empty."""
    kind: str = "examples"
    """What its records hold, and so how they become Examples (docs/data.md)."""
    split: str = "train"
    """Split of a BEIR folder or a hub dataset."""
    instruction: str = ""
    in_batch_negatives: bool = True
    """May other rows' documents be negatives? By default not for labels and clusters: many share a class."""
    symmetric: bool = False
    """Documents carry the instruction too; by default for scored pairs and example-based classes."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Rows are drawn in proportion to size times weight."""
    cap: PositiveInt | None = None
    """At most so many rows, chosen by the seed."""
    label_documents: Literal["examples", "labels"] = "examples"
    """Labels and clusters: the document is another example of the class (v2) or the label's text (v1)."""
    threshold: float | None = 4.0
    """Scored pairs: a pair with at least this score is a positive, in both directions. With null every pair
    keeps its score, for objective cosent."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if str(values.get("path")).startswith(CATALOG_PREFIX):
            from embedforge.data.catalog import with_catalog_defaults  # a long file, read where it is named

            values = with_catalog_defaults(values)
        kind = source_kinds().get(str(values.get("kind", "examples")))
        return {**(kind.defaults(values) if kind else {}), **values}

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind not in source_kinds():
            raise ValueError(unknown_kind(kind, list(source_kinds())))
        return kind

    @property
    def texts_alone(self) -> bool:
        """Whether it holds texts without an answer, which mntp, simcse and distill learn from."""
        return source_kind(self.kind).texts_alone


class Mix(Section):
    """The data of a stage."""

    sources: tuple[Source, ...] = ()
    batches: Literal["blended", "homogeneous"] = "blended"
    """Rows of one step come from all sources (NV-Embed) or from one (LLM2Vec)."""


def source_of(path: str, **settings: Any) -> Source:
    """Return the source that a command line names: its path, and settings, of which None is the default.

    Raises:
        EmbedforgeError: an unknown kind or a bad value.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        return Source.model_validate({"path": path, **given})
    except ValidationError as error:
        raise EmbedforgeError(f"{path}:\n{explain(error, Source)}") from None
