"""What an evaluation was set to, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedforge import run_folder

PACKAGES = ("torch", "transformers", "sentence-transformers", "mteb", "bm25s")


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What decides about the numbers, besides model and data."""

    split: str = "test"
    dtype: str | None = None
    max_tokens: int | None = None
    tokens_per_batch: int = 16_384
    instructions: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """All results of a run: `tasks[name][model]` is a result file's content, None where not applicable."""

    folder: Path
    models: tuple[str, ...]
    """Labels: the shortest ends of the models' paths that tell them apart."""
    tasks: dict[str, dict[str, dict[str, Any] | None]]
    undecontaminated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For models that `embedforge train` made, the tasks that their data was not checked against."""

    @property
    def notes(self) -> dict[str, dict[str, int]]:
        """For tasks of a folder, what was passed over in the data, or read otherwise than written: counts."""
        results = {name: next(filter(None, row.values()), None) for name, row in self.tasks.items()}
        return {name: first["notes"] for name, first in results.items() if first and first["notes"]}

    def score(self, model: str, task: str) -> float | None:
        """Return the main score of a model on a task, None where it cannot do the task."""
        result = self.tasks[task][model]
        return None if result is None else float(result["score"])


def versions() -> dict[str, str]:
    """Return the versions of the packages that make the numbers; a result of others is not taken over."""
    return run_folder.versions(PACKAGES)
