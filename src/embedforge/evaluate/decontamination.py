"""Which tasks a model's training data was not checked against: scores there may be of texts it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from embedforge.data.marks import FILE_NAME, undecontaminated

_NAMED = 5
"""Tasks that a sentence names; of the others it says how many they are."""


def unchecked_tasks(models: Mapping[str, str], tasks: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return for each model the tasks that its training data was not checked against, with this very data.

    Only for folders with the mark that `embedforge train` leaves; of other models nothing is known.

    Args:
        models: label -> folder or hub id.
        tasks: name -> fingerprint of its data.
    """
    marked = {label: Path(model) for label, model in models.items() if (Path(model) / FILE_NAME).is_file()}
    missing = undecontaminated(marked, tasks)
    return {label: missing.get(label, ()) for label in marked}


def sentence(model: str, unchecked: Sequence[str], tasks: int) -> str:
    """Say what the model's training data was not checked against, and the way out.

    Args:
        model: its label.
        unchecked: names of tasks.
        tasks: how many there are in all.
    """
    if not unchecked:
        return f"The training data of {model} was decontaminated against all of these tasks."
    more = f" and {len(unchecked) - _NAMED} more" if len(unchecked) > _NAMED else ""
    which = "any of these tasks" if len(unchecked) == tasks else f"{', '.join(unchecked[:_NAMED])}{more}"
    return (
        f"The training data of {model} was not decontaminated against {which}: a score is too high where "
        "texts of the task were trained on. To rule it out, train on what embedforge curate --against TASKS "
        "leaves."
    )
