"""From a recipe's file and `--set` to plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from embedforge.bounds import MOST_YAML_BYTES, require_plain
from embedforge.data.names import default_name
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.files import write_text
from embedforge.parse import parse_yaml
from embedforge.recipe.objectives import Objective

SHIPPED = Path(__file__).parent / "shipped"
"""The folder of the recipes in the package."""

ENDINGS = (".yaml", ".yml", ".json")
"""Of recipe files."""


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML or JSON file to the mapping it holds, and apply "key.path=value" to it.

    A file with `extends: OTHER` says only what differs from that one, a file beside it (with or without its
    ending) or else a shipped recipe: mappings are joined key by key, stages by their names, and all else, a
    section of another `kind` too, is replaced. A stage that says no more than `{name: NAME, skip: true}` is
    left out. Relative paths of sources start at the folder of the file that is run, whichever of the files
    names them.

    Raises:
        EmbedforgeError: broken YAML, no mapping, an override that does not fit, files that extend each other
            in a circle; names file or override.
    """
    values = _extended(path, ())
    for override in overrides:
        _set(values, override)
    if any(override.partition("=")[0].endswith(".warmup_steps") for override in overrides):
        _check_warmups("--set", values)
    return values


def copy_shipped(name: str, out: Path) -> Path:
    """Write a shipped recipe's file, as it is, to a file that is not there yet; return it.

    What it `extends` is found from anywhere, unless a file of that name lies beside the copy.

    Args:
        name: of a shipped recipe.
        out: the file; of a folder that is there, NAME.yaml in it.

    Raises:
        EmbedforgeError: no such recipe, a file that is there already, or with another ending.
    """
    text = shipped_file(name).read_text(encoding="utf-8")
    file = out / f"{name}.yaml" if out.is_dir() else out
    if file.suffix not in ENDINGS[:2]:
        raise EmbedforgeError(f"{file}: a recipe's file ends in {' or '.join(ENDINGS[:2])}")
    if file.exists():
        raise EmbedforgeError(f"{file} is there already and is left as it is; choose another --out")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    return file


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes in the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def shipped_file(name: str) -> Path:
    """Return the file of a shipped recipe.

    Raises:
        EmbedforgeError: there is none of that name.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        raise EmbedforgeError(
            f"there is no recipe '{name}': neither a file nor one of the shipped recipes "
            f"({', '.join(shipped)}).{did_you_mean(name, shipped)}"
        )
    return shipped[name]


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file and what it extends; `above` are the files that extend this one."""
    values = _read(path)
    if "extends" not in values:
        return values
    name = values.pop("extends")
    if not isinstance(name, str):
        raise EmbedforgeError(f"{path}: extends names one other recipe file, this is {name!r:.60}")
    other = _find(path, name)
    circle = (*above, path.resolve())
    if other.resolve() in circle:
        around = " -> ".join(map(str, (*circle, other.resolve())))
        raise EmbedforgeError(f"{path}: extends goes in a circle: {around}")
    below = _extended(other, circle)
    _check_skips(path, below.get("stages"), values.get("stages"))
    return _joined(below, values)


def _find(path: Path, name: str) -> Path:
    """The file that `path` extends: beside it, or among the shipped recipes.

    A file may extend the shipped recipe of its own name; only without one does it extend itself.
    """
    file = name if Path(name).suffix in ENDINGS else f"{name}.yaml"
    files = [folder / file for folder in (path.parent, SHIPPED) if (folder / file).exists()]
    if files:
        others = (other for other in files if other.resolve() != path.resolve())
        return next(others, files[0])
    known = {item.stem for folder in (path.parent, SHIPPED) for item in folder.glob("*.yaml")}
    raise EmbedforgeError(
        f"{path}: it extends '{name}', and there is no file {path.parent / file} nor a shipped recipe of "
        f"that name.{did_you_mean(name, known)}"
    )


def _joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Put what `above` says over `below`."""
    joined = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _is_other_kind(key, old, value):
            joined[key] = _joined(old, value)
        elif key == "stages" and isinstance(old, list) and isinstance(value, list):
            joined[key] = _joined_stages(old, value)
        else:
            joined[key] = value
    return joined


def _is_other_kind(key: str, below: dict[str, Any], above: dict[str, Any]) -> bool:
    """Tell a section of another kind, which has no use for the settings of the one below."""
    default = Objective.default_kind if key == "objective" else None
    return "kind" in above and above["kind"] != below.get("kind", default)


def _joined_stages(below: list[Any], above: list[Any]) -> list[Any]:
    """Join stages of one name, in the order of `below`; new ones follow."""
    stages = list(below)
    for stage in above:
        names = [_name(earlier) for earlier in stages]
        if not isinstance(stage, dict) or _name(stage) not in names:
            stages.append(stage)
            continue
        index = names.index(_name(stage))
        if stage == {"name": names[index], "skip": True}:
            del stages[index]
        else:
            stages[index] = _joined(stages[index], stage)
    return stages


def _check_skips(path: Path, below: Any, above: Any) -> None:
    """Refuse to leave out a stage that is not there."""
    known = [_name(stage) for stage in below] if isinstance(below, list) else []
    for stage in above if isinstance(above, list) else ():
        if isinstance(stage, dict) and stage.get("skip") is True and _name(stage) not in known:
            raise EmbedforgeError(
                f"{path}: stage '{_name(stage)}' is to be skipped, and the recipe that this one extends has "
                f"no such stage, only {', '.join(known) or 'none'}.{did_you_mean(_name(stage), known)}"
            )


def _read(path: Path) -> dict[str, Any]:
    require_plain(path, MOST_YAML_BYTES)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
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
    if path.suffix in ENDINGS[:2]:  # A saved recipe.json has the steps that were taken, fewer than planned.
        _check_warmups(str(path), values)
    shared_free: dict[str, Any] = _unshared(values)
    return shared_free


def _check_warmups(where: str, values: dict[str, Any]) -> None:
    """Refuse a stage that says both, and says that it ends before its learning rate is reached.

    A stage that another file or `--set` has made shorter than its warm-up is trained, with a warning.
    """
    stages = values.get("stages")
    for stage in stages if isinstance(stages, list) else ():
        steps, warmup = (
            (stage.get(key) for key in ("steps", "warmup_steps")) if isinstance(stage, dict) else (0, 0)
        )
        if isinstance(steps, int) and isinstance(warmup, int) and warmup > steps > 0:
            raise EmbedforgeError(
                f"{where}: stage '{_name(stage)}': warmup_steps ({warmup}) is more than steps ({steps}), so "
                "that the learning rate is never reached; lower it"
            )


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
    node: Any = values
    for parent in parents:
        node = _step(node, parent, override)
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise EmbedforgeError(
            f"--set {override}: the value is not valid YAML ({_problem(error)}); put quotes around text with "
            f"special characters: --set '{key}=\"…\"'"
        ) from None
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _step(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, override)]
    if node.get(key) is None:
        node[key] = {}
    if not isinstance(node[key], dict | list):
        raise EmbedforgeError(f"--set {override}: '{key}' is {node[key]!r}, there is nothing below it")
    return node[key]


def _index(items: list[Any], key: str, override: str) -> int:
    """A list's item by number or by name: of stages and sources their own, of terms their kind."""
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
    """The name as it is written, or as a source gets it from its path; of the terms of a sum the kind."""
    if not isinstance(item, dict):
        return ""
    path = item.get("path")
    named = str(item.get("name") or "") or (default_name(path) if isinstance(path, str) else "")
    return named or str(item.get("kind") or "")


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]
