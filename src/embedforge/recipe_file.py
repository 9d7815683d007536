"""From a recipe's file and `--set` to plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from embedforge.data.convert import default_name
from embedforge.errors import EmbedforgeError, did_you_mean


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML or JSON file to the mapping it holds, and apply "key.path=value" to it.

    Raises:
        EmbedforgeError: broken YAML, no mapping, an override that does not fit; names file or override.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise EmbedforgeError(f"{path}{_line(error)}: not valid YAML ({_problem(error)})") from None
    except OSError as error:
        raise EmbedforgeError(f"{path}: cannot be read as a recipe file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise EmbedforgeError(f"{path}: not YAML, byte {error.start} is not valid UTF-8") from None
    if not isinstance(values, dict):
        raise EmbedforgeError(
            f"{path}: a recipe is a mapping of keys to values, this file holds {values!r:.60}"
        )
    values = _unshared(values)
    for override in overrides:
        _set(values, override)
    return values


def _unshared(value: Any) -> Any:
    """Copy what several places share by a YAML alias, so that an override changes the place it names."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _set(values: dict[str, Any], override: str) -> None:
    """Apply "stages.0.steps=10" to the raw values; the value is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator:
        raise EmbedforgeError(f"--set takes key=value, for example training.save_steps=100; got '{override}'")
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        place = _step(place, parent, override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise EmbedforgeError(
            f"--set {override}: the value is not valid YAML ({_problem(error)}); put quotes around text with "
            f"special characters: --set '{key}=\"…\"'"
        ) from None
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _step(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, override)]
    if place.get(key) is None:
        place[key] = {}
    if not isinstance(place[key], dict | list):
        raise EmbedforgeError(f"--set {override}: '{key}' is {place[key]!r}, there is nothing below it")
    return place[key]


def _index(items: list[Any], key: str, override: str) -> int:
    """A list's item by number or, for stages and sources, by name."""
    names = [_name(item) for item in items]
    if names.count(key) == 1:
        return names.index(key)
    if key in names:
        raise EmbedforgeError(f"--set {override}: {names.count(key)} items are named '{key}'; use a number")
    if key.isdigit() and int(key) < len(items):
        return int(key)
    known = ", ".join(name or "(no name)" for name in names)
    raise EmbedforgeError(
        f"--set {override}: there is no item '{key}'; numbers go from 0 to {len(items) - 1}, the names are: "
        f"{known}.{did_you_mean(key, filter(None, names))}"
    )


def _name(item: Any) -> str:
    """The name of a stage or source as it is written, or as a source gets it from its path; else ""."""
    if not isinstance(item, dict):
        return ""
    path = item.get("path")
    return str(item.get("name") or "") or (default_name(path) if isinstance(path, str) else "")


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]
