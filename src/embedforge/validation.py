"""From pydantic's errors to sentences."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from embedforge.errors import did_you_mean


def explain(error: ValidationError, section: type[BaseModel]) -> str:
    """Return a line "key.path: what is wrong" for each mistake, unknown keys with the nearest known one."""
    problems = [item for item in error.errors() if not _follows_from_another(item, error.errors())]
    return "\n".join(_explain(item, section) for item in problems)


def _explain(item: Any, section: type[BaseModel]) -> str:
    sections, path = _sections_at(section, item["loc"][:-1])
    is_key = item["type"] in {"missing", "extra_forbidden"}
    last = [part for part in item["loc"][-1:] if is_key or not _member(sections, part)]
    key = ".".join(map(str, (*path, *last))) or section.__name__.lower()
    if item["type"] == "union_tag_invalid":
        kinds = [kind.strip("'") for kind in item["ctx"]["expected_tags"].split(", ")]
        kind = item["ctx"]["tag"]
        return f"  {key}.kind: {unknown_kind(kind, kinds)}"
    if item["type"] == "extra_forbidden":
        known = list(sections[0].model_fields) if sections else []
        hint = did_you_mean(str(item["loc"][-1]), known)
        return f"  {key}: unknown key.{hint or ' Known here: ' + ', '.join(known) + '.'}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] in {"missing", "value_error"} else f" (found {item['input']!r:.80})"
    return f"  {key}: {message}{given}"


def refuse_switch(section: type[BaseModel], value: Any, key: str) -> Any:
    """Return a key's value, unless it is true or false where no switch is: pydantic reads them as 1 and 0.

    Raises:
        ValueError: says so.
    """
    items = value if isinstance(value, list | tuple) else [value]
    given = any(isinstance(item, bool) for item in items)
    if given and not _takes_bool(section.model_fields[key].annotation):
        raise ValueError(f"this is no switch, give its value instead of {str(value).lower()}")
    return value


def _takes_bool(annotation: Any) -> bool:
    """Say whether a key may be true or false: its type, or one that it is made of, is bool or anything."""
    return annotation in (bool, Any, object) or any(map(_takes_bool, typing.get_args(annotation)))


def unknown_kind(kind: str, known: Sequence[str]) -> str:
    """Say that there is no such kind, which there are, and how one of the user's own gets among them."""
    hint = did_you_mean(kind, known) or " (A kind of your own is known once its module is imported.)"
    return f"'{kind}' is none of {', '.join(known)}.{hint}"


def _follows_from_another(item: Any, items: Sequence[Any]) -> bool:
    """A list whose items are wrong is also "too short" to pydantic: say only what is wrong inside."""
    inside = (other["loc"] for other in items if len(other["loc"]) > len(item["loc"]))
    return item["type"] == "too_short" and any(path[: len(item["loc"])] == item["loc"] for path in inside)


def _sections_at(section: Any, path: Sequence[str | int]) -> tuple[list[Any], list[str | int]]:
    """The sections that can stand at a path, and the path as it is written: without the names of kinds."""
    sections, written = [section], []
    for part in path:
        if member := _member(sections, part):
            sections = [member]
            continue
        written.append(part)
        fields = sections[0].model_fields if sections else {}
        if isinstance(part, str) and part in fields:
            sections = list(_sections_of(fields[part].annotation))
    return sections, written


def _member(sections: Sequence[Any], name: str | int) -> Any:
    """The section that pydantic calls `name`, after its `kind`: a member of a union, or a subclass."""
    kinds = (item for section in sections for item in _with_subclasses(section))
    named = (item for item in kinds if "kind" in item.model_fields)
    return next((item for item in named if item.model_fields["kind"].default == name), None)


def _with_subclasses(section: Any) -> Iterator[Any]:
    yield section
    for subclass in section.__subclasses__():
        yield from _with_subclasses(subclass)


def _sections_of(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _sections_of(argument)
