"""From pydantic's errors to sentences."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from embedforge.errors import did_you_mean


def explain(error: ValidationError, section: type[BaseModel]) -> str:
    """Return a line "key.path: what is wrong" for each mistake, unknown keys with the nearest known one."""
    problems = [item for item in error.errors() if not _follows_from_another(item, error.errors())]
    return "\n".join(_explain(item, section) for item in problems)


def _explain(item: Any, section: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in item["loc"]) or section.__name__.lower()
    if item["type"] == "extra_forbidden":
        known = _known_keys(section, item["loc"][:-1])
        hint = did_you_mean(str(item["loc"][-1]), known)
        return f"  {place}: unknown key.{hint or ' Known here: ' + ', '.join(known) + '.'}"
    message = item["msg"].removeprefix("Value error, ")
    found = "" if item["type"] in {"missing", "value_error"} else f" (found {item['input']!r:.80})"
    return f"  {place}: {message}{found}"


def _follows_from_another(item: Any, items: Sequence[Any]) -> bool:
    """A list whose items are wrong is also "too short" to pydantic: say only what is wrong inside."""
    inside = (other["loc"] for other in items if len(other["loc"]) > len(item["loc"]))
    return item["type"] == "too_short" and any(place[: len(item["loc"])] == item["loc"] for place in inside)


def _known_keys(section: Any, path: Sequence[str | int]) -> list[str]:
    """The keys allowed at a place of the recipe; follows optional and tuple types."""
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields) if section else []


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for found in map(_section_of, typing.get_args(annotation)) if found), None)
