"""What all sections of a recipe have in common, and sections that come in kinds."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from embedforge.validation import refuse_switch

PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
"""A count of steps, rows, tokens, layers: of more than a thousand millions something else was meant."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy's and torch's generators both take."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change once read.

    The string below a key says what it means; `recipe.schema` hands it to editors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where no switch is: pydantic would read them as 1 and 0."""
        return refuse_switch(cls, value, info.field_name or "")


class Kinds(Section):
    """A section that comes in kinds: its subclasses with a `kind` of their own, the package's or yours.

    A recipe says the kind, never a module or a class, and is read as the kinds are that have been imported by
    then. So a recipe from a stranger stays data, and a kind is there once the class is.
    """

    default_kind: ClassVar[str]
    """Of a section that does not say its kind."""

    kind: str

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Return the class of each kind, in the order in which they were defined."""
        by_kind: dict[str, type[Self]] = {}
        for subclass in cls.__subclasses__():
            if subclass._is_a_kind() and "kind" in subclass.__annotations__:  # not one that inherits it
                by_kind[subclass.model_fields["kind"].default] = subclass
            by_kind |= subclass.kinds()
        return by_kind

    @classmethod
    def _is_a_kind(cls) -> bool:
        return not cls.model_fields["kind"].is_required()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A kind is read as itself; their base as whichever kind is said."""
        if cls._is_a_kind():
            return handler(source)
        return core_schema.no_info_plain_validator_function(cls._any_kind)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the base as any of the kinds."""
        return handler(schema if cls._is_a_kind() else cls._union().core_schema)

    @classmethod
    def _any_kind(cls, value: Any) -> Any:
        if not isinstance(value, Mapping | cls):
            raise ValueError(f"this is a section, as in {{kind: {cls.default_kind}}}, not {value!r:.60}")
        return cls._union().validate_python(value)

    @classmethod
    def _union(cls) -> TypeAdapter[Any]:
        return _union_of(cls, tuple(cls.kinds().items()))

    @classmethod
    def _kind_of(cls, value: Any) -> str:
        """Return which kind is meant, "contrastive" say, by the settings or by a section that is there."""
        return str(value.get("kind", cls.default_kind) if isinstance(value, Mapping) else value.kind)


@functools.cache
def _union_of(base: type[Kinds], kinds: tuple[tuple[str, type[Kinds]], ...]) -> TypeAdapter[Any]:
    members: list[Any] = [Annotated[section, Tag(kind)] for kind, section in kinds]
    union: Any = Annotated[functools.reduce(operator.or_, members), Discriminator(base._kind_of)]
    return TypeAdapter(union)
