"""Which evaluation tasks a run's training data was checked against; needs neither torch nor a model.

What counts is the data of contrastive stages. Texts of `mntp` and `simcse` stages have no queries or labels
that a task asks for, and a decoder has read much of the web before: they have no part in a mark.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from embedforge.data.catalog import CATALOG_PREFIX
from embedforge.data.columns import prepared_file
from embedforge.data.convert import source_name
from embedforge.data.marks import FILE_NAME, Mark, read_mark, training_mark, write_mark
from embedforge.data.readers import HUB_PREFIX
from embedforge.files import read_object
from embedforge.recipe import Recipe, Source
from embedforge.recipe_objectives import Contrastive

_NAMED = 5
"""Sources that the warning names; of more it says how many."""


def warn_of_unmarked(recipe: Recipe, folder: Path | None, stages: Collection[str] | None = None) -> str | None:
    """Return a warning that names the sources of pairs without a mark of decontamination; else None.

    Args:
        recipe: of the run.
        folder: where relative paths of sources start.
        stages: names of those that count; all of them when None.
    """
    files = {
        source_name(source): _file_of(source, folder)
        for source in _pair_sources(recipe)
    }
