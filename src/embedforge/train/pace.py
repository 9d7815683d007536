"""How many steps a stage takes: the recipe's, or as many as its time allows, measured while it runs.

The speed of a machine that others share is not known beforehand. So it is reviewed as the steps go by, and
the end of the stage moves with it; the schedule of the learning rate follows, and ends at the last step. What
was decided stands in `pace.jsonl` of the stage's folder, from which an interrupted stage goes on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from typing_extensions import override

from embedforge.files import naming
from embedforge.recipe import Stage
from embedforge.train.optimizer import warmup_schedule

FILE = "pace.jsonl"
FEWEST_STEPS = 5
FIRST_REVIEW = 3
"""The steps before set things up and say little of the speed."""


class Pace:
    """The steps of a stage and its learning rate by step.

    Args:
        stage: its steps are the most that are taken.
        folder: of the stage, where decisions are kept.
        seconds: that the stage may take; None for all of its steps, whatever they take.
    """

    def __init__(self, stage: Stage, folder: Path, seconds: float | None = None) -> None:
        self.stage, self.seconds = stage, seconds
        self.steps = stage.steps
        self._file = folder / FILE
        self._next_review = FIRST_REVIEW
        self._before, self._first = 0.0, 0
        self._started = time.monotonic()

    def learning_rate(self, step: int) -> float:
        """Return the factor of the learning rate at a step, counted from 0."""
        warmup = self.stage.warmup_steps * self.steps // self.stage.steps
        return warmup_schedule(self.stage.schedule, warmup, self.steps)(step)

    def begin(self, step: int) -> None:
        """Start the clock at a step; 0 unless the stage goes on from a checkpoint."""
        kept = [line for line in self._read() if line["step"] <= step]
        if step == 0:
            self._file.unlink(missing_ok=True)
        elif kept:
            self.steps = max(step, int(kept[-1]["steps"]))
            self._before = kept[-1]["seconds"] * step / kept[-1]["step"]
        self._first, self._next_review = step, step + FIRST_REVIEW
        self._started = time.monotonic()

    def review(self, step: int) -> None:
        """Set the number of steps anew where it is time to, once `step` steps are done."""
        if self.seconds is None or step < self._next_review:
            return
        now = time.monotonic()
        here = now - self._started
        left = self.seconds - self._before - here
        more = left / max(here / (step - self._first), 1e-6)
        self.steps = min(self.stage.steps, max(step, FEWEST_STEPS, int(step + more)))
        # Half of what is left at most, so that a machine that slows down is noticed in time.
        self._next_review = step + max(1, min(step - self._first, (self.steps - step) // 2))
        with naming(self._file), self._file.open("a", encoding="utf-8") as lines:
            decided = {"step": step, "steps": self.steps, "seconds": round(self._before + here, 3)}
            lines.write(json.dumps(decided) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        if not self._file.exists():
            return []
        reviews = []
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                reviews.append(json.loads(line))
            except json.JSONDecodeError:  # the last line of a killed run
                break
        return reviews


def steps_taken(stage: Stage, folder: Path) -> int:
    """Return how many steps a finished stage took."""
    kept = Pace(stage, folder)._read()
    return int(kept[-1]["steps"]) if kept else stage.steps


class PaceCallback(TrainerCallback):
    """Ends a stage at the step that its pace says."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pace.begin(state.global_step)
        state.max_steps = self.pace.steps

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.pace.review(state.global_step)
        state.max_steps = self.pace.steps
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
        return control
