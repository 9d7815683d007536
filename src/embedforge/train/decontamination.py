"""Against which evaluation tasks a run's training data was checked; needs neither torch nor a model.

What counts are sources of pairs. The texts of `mntp` and `simcse` stages have no answer to learn
by heart, as those that a decoder was pre-trained on: they have no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedforge.data.convert import source_file
from embedforge.data.kinds import source_name
from embedforge.data.marks import Mark, read_mark, training_mark
from embedforge.files import read_object
from embedforge.recipe import Recipe, Source
from embedforge.recipe.objectives import Merge
from embedforge.train.mixtures import finished_model

MERGED = "merge.json"
"""In the folder of a merged model: what it was made of."""
_NAMED = 5
"""Sources that a warning names; of the others it says how many they are."""


def unchecked_sources(recipe: Recipe, folder: Path | None = None) -> str | None:
    """Return a warning that names the sources of pairs without a mark of decontamination; None without any.

    Args:
        recipe: of the run.
        folder: where relative paths of sources start.
    """
    files = {(source_name(source), source_file(source, folder)) for source in _sources_of_pairs(recipe)}
    names = sorted({name for name, file in files if file is None or read_mark(file) is None})
    if not names:
        return None
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        "training data that was not checked against evaluation tasks, or has changed since: "
        f"{', '.join(names[:_NAMED])}{more}. Tasks with the same texts will score too high; "
        "embedforge curate --against TASKS takes them out"
    )


def mark_of_training(recipe: Recipe, folder: Path | None = None) -> Mark | None:
    """Return the tasks that all pairs of a recipe were checked against; None if it has no pairs.

    A base that embedforge trained counts as one more source, and so does a finished model that is merged:
    what it has seen, its successor has seen.

    Args:
        recipe: of the run.
        folder: where relative paths of sources start.
    """
    files = {source.path: source_file(source, folder) for source in _sources_of_pairs(recipe)}
    base = Path(recipe.model.base).expanduser()
    if _learned_from_pairs(base):
        files[recipe.model.base] = base
    merges = (stage.objective for stage in recipe.stages if isinstance(stage.objective, Merge))
    models = [finished_model(name, folder) for merge in merges for name in merge.finished]
    files |= {name: Path(name) for name in models if _learned_from_pairs(Path(name))}
    return training_mark([*files.values()]) if files else None


def _sources_of_pairs(recipe: Recipe) -> Iterator[Source]:
    for stage in recipe.stages:
        if stage.objective.learns_from not in ("texts", "nothing"):
            yield from (source for source in stage.mix.sources if not source.texts_alone)


def _learned_from_pairs(base: Path) -> bool:
    """Say whether a base is a model of embedforge that learned from pairs, or is merged of such."""
    if (base / MERGED).is_file():
        return True
    if not (base / "recipe.json").is_file():
        return False
    stages: list[dict[str, Any]] = read_object(base / "recipe.json").get("stages", [])
    sources = (source for stage in stages for source in stage.get("mix", {}).get("sources", []))
    return any(source.get("kind") != "texts" for source in sources)
