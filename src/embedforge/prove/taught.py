"""A recipe that learns from the teacher that the command line names. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from embedforge.endpoint import is_address
from embedforge.errors import EmbedforgeError
from embedforge.model.folder import find_folder
from embedforge.prove.training_data import QUESTIONS_FILE
from embedforge.recipe import Recipe, Teacher
from embedforge.recipe.objectives import Objective
from embedforge.recipe.terms import FILE_PREFIX, Distill, Matryoshka, Sum, distillation_of
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.contract import Contract

RECIPE = "distill-small"


def distils(recipe: Recipe) -> bool:
    """Tell whether a stage learns from a teacher."""
    return any(distillation_of(stage.objective) for stage in recipe.stages)


def with_teacher(recipe: Recipe, name: str) -> Recipe:
    """Put a teacher into all stages that distil; it is asked questions as it asks them itself.

    Raises:
        EmbedforgeError: no stage distils, an address that is none or holds a password, or the teacher is
            a file, which cannot embed what is held out.
    """
    if name.startswith(FILE_PREFIX):
        raise EmbedforgeError(
            f"teacher '{name}': the report asks the teacher for vectors of held-out text, so it has to be a "
            "model or an endpoint; to learn from a file: embedforge train (docs/distillation.md)"
        )
    try:
        teacher = Teacher(model=name)
    except ValidationError as error:  # its own words hold no password, the input would
        raise EmbedforgeError(f"teacher: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    if not distils(recipe):
        raise EmbedforgeError(
            f"recipe '{recipe.name}' has no stage with objective distill, so there is nothing to learn from "
            f"'{name}': take one that has, such as {RECIPE}"
        )
    instruction = own_instruction(name)
    teaching = {Path(QUESTIONS_FILE).stem: instruction} if instruction else {}

    def taught(objective: Objective) -> Objective:
        if isinstance(objective, Distill):
            update = {"teacher": (teacher,), "instructions": teaching}
            return objective.model_copy(update=update)
        if isinstance(objective, Matryoshka):
            return objective.model_copy(update={"objective": taught(objective.objective)})
        if isinstance(objective, Sum):
            return objective.model_copy(update={"terms": tuple(map(taught, objective.terms))})
        return objective

    stages = (stage.model_copy(update={"objective": taught(stage.objective)}) for stage in recipe.stages)
    return recipe.model_copy(update={"stages": tuple(stages)})


def own_instruction(teacher: str) -> str:
    """Return what a teacher with a contract puts before queries; "" for others, which have their prompts."""
    if is_address(teacher):
        return ""
    folder = find_folder(teacher)
    return Contract.load(folder).default_instruction if (folder / CONTRACT).exists() else ""
