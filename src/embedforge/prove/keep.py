"""Which of two is the run's model, OUT/model: what training made, or what it began with.

Training can make things worse, and a model that finds less than its base is not to be anybody's index. The
one that finds more on held-out questions is kept; the page and the terminal say so where training gained
nothing that chance does not explain. What training made stays in OUT/run/model either way.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedforge.data.marks import copy_mark_of_model
from embedforge.files import replace_folder
from embedforge.model.encoder import save
from embedforge.model.folder import find_folder
from embedforge.prove.figures import ndcg_of
from embedforge.prove.held_out import HeldOut
from embedforge.prove.systems import ACROSS, AS_IT_CAME, TRAINED, Encoded, as_it_came
from embedforge.recipe import Recipe
from embedforge.statistics import paired_difference
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.train.stages import prepare_model

MODEL = "model"
"""The kept model's folder in OUT."""


@dataclass(frozen=True)
class Kept:
    """The system whose model is kept, and whether training gained anything for certain."""

    system: str
    gained: bool
    """Beyond chance, over the base as it came; true where no question could be asked."""

    @property
    def verdict(self) -> str:
        """Say what became of which model; "" where training gained something."""
        if self.gained:
            return ""
        if self.system == TRAINED:
            return (
                "What training gained over the decoder as it came, chance may explain: do not count on it. "
                f"The trained model, which found no less, is in {MODEL}."
            )
        return (
            "Training made nothing better than the decoder as it came: that one is kept, in "
            f"{MODEL}, and is what is searched with. What training made is in run/model."
        )


def better_of(held_out: HeldOut, encoded: Mapping[str, Encoded], seed: int) -> Kept:
    """Return which of the trained model and the base as it came has the higher nDCG@10; of equals the base.

    A student that is worse alone, and still finds more than its base in the vectors of its teacher, is kept.
    """
    if not held_out.pairs:
        return Kept(TRAINED, True)
    before, trained = (ndcg_of(encoded[name]) for name in (AS_IT_CAME, TRAINED))
    candidates = [trained, ndcg_of(encoded[ACROSS])] if ACROSS in encoded else [trained]
    best = max(candidates, key=lambda scores: float(scores.mean()))
    gain = paired_difference(before, best, seed=seed)
    return Kept(TRAINED if gain.difference > 0 else AS_IT_CAME, gain.is_real and gain.difference > 0)


def keep_model(out: Path, system: str, recipe: Recipe) -> Path:
    """Make OUT/model of the trained model or the base, and return it; made once, it is left as it is.

    The trained model's files are linked, not copied, where the disk can do that: a change of files that are
    there replaces them, in all of embedforge.
    """
    folder, trained = out / MODEL, out / "run" / "model"
    if (folder / CONTRACT).exists():
        return folder
    if system == TRAINED:
        with replace_folder(folder, CONTRACT) as partial:
            shutil.copytree(trained, partial, copy_function=_link, dirs_exist_ok=True)
        return folder
    save_as_it_came(recipe, folder)
    return folder


def save_as_it_came(recipe: Recipe, folder: Path) -> None:
    """Write the base as an embedder, without any training."""
    save(prepare_model(as_it_came(recipe), "cpu"), folder, _untrained(recipe))
    copy_mark_of_model(find_folder(recipe.model.base), folder)


def model_of(out: Path) -> Path:
    """Return the folder of a finished run's model; runs of earlier versions kept what training made."""
    return out / MODEL if (out / MODEL / CONTRACT).exists() else out / "run" / "model"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _untrained(recipe: Recipe) -> dict[str, Any]:
    """Return what the card says of the base as it came: the recipe's model, and no stage."""
    values = as_it_came(recipe).model_dump(mode="json")
    return {**values, "name": f"{recipe.name}, not trained", "stages": []}
