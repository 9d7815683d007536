"""The variants of a sweep: recipes times the values of each varied field. Needs no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedforge.errors import EmbedforgeError
from embedforge.files import hash_of
from embedforge.recipe import Recipe, load_recipe

_OPENING, _CLOSING = "[{(", "]})"
Grid = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Judged:
    """What models are compared on: tasks of `evaluate`, files of held-out Examples, or both."""

    tasks: str | None = None
    dev: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One variant."""

    label: str
    """What tells it from the others: "steps=100, kind=mean"."""
    recipe: Recipe

    @property
    def folder(self) -> str:
        """Name of its folder: another one for any other recipe, whatever else the grid holds."""
        recipe = self.recipe.model_dump(mode="json", exclude={"seed"})
        return f"{re.sub(r'[^A-Za-z0-9.=_]+', '-', self.label).strip('-')[:60]}-{hash_of(recipe)[:8]}"

    def seeded(self, number: int) -> Recipe:
        """Return its recipe with the seed of repetition `number`, counted from 0."""
        return self.recipe.model_copy(update={"seed": self.recipe.seed + number})


def parse_grid(options: Sequence[str]) -> dict[str, list[str]]:
    """Read "field=a,b" of each option; commas within brackets, braces and quotes do not divide.

    >>> parse_grid(["seed.x=1,2", "stages.a.objective.dims=[96,192],[64]"])
    {'seed.x': ['1', '2'], 'stages.a.objective.dims': ['[96,192]', '[64]']}

    Raises:
        EmbedforgeError: no values, a field that stands twice, or the seed.
    """
    grid: dict[str, list[str]] = {}
    for option in options:
        field, separator, text = option.partition("=")
        values = [value.strip() for value in _divided(text)]
        if not separator or not field.strip() or not all(values):
            raise EmbedforgeError(
                f"--grid takes field=a,b, for example stages.retrieval.steps=100,200; got '{option}'"
            )
        if field == "seed":
            raise EmbedforgeError("--grid seed=...: seeds are repetitions of every variant; use --seeds N")
        if field in grid:
            raise EmbedforgeError(f"--grid {field}: it stands twice; name all of its values at once")
        grid[field] = values
    return grid


def cells_of(recipes: Sequence[str], grid: Grid, overrides: Sequence[str] = ()) -> list[Cell]:
    """Return every recipe with every combination of values; the first is what the others are compared with.

    Args:
        recipes: shipped ones by name, or files.
        grid: values of each field, as `--set` takes them.
        overrides: "key=value" for all.

    Raises:
        EmbedforgeError: a recipe that is not valid (says which values made it so), or two that are the same.
    """
    short = _short_names(grid)
    cells = []
    for name in recipes:
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            told = [f"{short[field]}={value}" for field, value in chosen.items()]
            label = ", ".join([name] * (len(recipes) > 1) + told) or name
            changes = [*overrides, *(f"{field}={value}" for field, value in chosen.items())]
            try:
                cells.append(Cell(label, load_recipe(name, changes)))
            except EmbedforgeError as error:
                raise EmbedforgeError(f"{label}: {error}") from None
    folders = [cell.folder for cell in cells]
    for cell, folder in zip(cells, folders, strict=True):
        if folders.count(folder) > 1:
            raise EmbedforgeError(f"the variant '{cell.label}' is there twice")
    return cells


def _short_names(grid: Grid) -> dict[str, str]:
    """Return for each field the shortest end of its name that no other shares."""
    parts = {field: field.split(".") for field in grid}

    def short(field: str) -> str:
        own = parts[field]
        for count in range(1, len(own)):
            if sum(other[-count:] == own[-count:] for other in parts.values()) == 1:
                return ".".join(own[-count:])
        return field

    return {field: short(field) for field in grid}


def _divided(text: str) -> list[str]:
    """Divide at the commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (not quote) * ((character in _OPENING) - (character in _CLOSING))
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def completed(judged: Judged, cells: Sequence[Cell]) -> Judged:
    """Fall back on the Examples that the recipes measure on.

    Raises:
        EmbedforgeError: the recipes name none, or not the same.
    """
    if judged.tasks is not None or judged.dev:
        return judged
    files = {cell.recipe.training.held_out for cell in cells} - {""}
    if len(files) != 1:
        raise EmbedforgeError(
            "there is nothing to compare the variants on: give --tasks, or --dev with a file of held-out "
            "Examples, or name one in the recipe's training.held_out"
        )
    return Judged(dev=tuple(files))
