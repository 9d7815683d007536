"""What a run says while it runs: a progress bar, a JSONL log, its time, and a polite answer to Ctrl-C."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from typing_extensions import override

from embedforge import stopping
from embedforge.console import progress_bar
from embedforge.files import naming, write_text
from embedforge.run_folder import Phases


class BarCallback(TrainerCallback):
    """Shows one bar for a stage, with the loss beside it."""

    def __init__(self, title: str) -> None:
        self.progress = progress_bar()
        self.title = title

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.progress.start()
            self.task = self.progress.add_task(
                self.title, total=state.max_steps, completed=state.global_step, note=""
            )

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.progress.update(self.task, completed=state.global_step, total=state.max_steps)

    @override
    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs and hasattr(self, "task"):
            note = f"loss {logs['loss']:.3f}  {logs.get('tokens_per_second', 0):,.0f} tokens/s"
            self.progress.update(self.task, note=note)

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.stop()


class JsonLogCallback(TrainerCallback):
    """Appends every log line to a JSONL file: the curve is there whatever logger is in use.

    On resume the lines after the checkpoint are dropped, so that each step stands there once.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero or not self.path.exists():
            return
        kept = [
            line
            for line in self.path.read_text(encoding="utf-8").splitlines()
            if _before(line, self.stage, state.global_step)
        ]
        write_text(self.path, "".join(line + "\n" for line in kept))

    @override
    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs:
            line = json.dumps({"stage": self.stage, "step": state.global_step, **logs})
            with naming(self.path), self.path.open("a", encoding="utf-8") as log:
                log.write(line + "\n")


def _before(line: str, stage: str, step: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:  # the last line of a killed run
        return False
    return bool(entry["stage"] != stage or entry["step"] <= step)


class PhasesCallback(TrainerCallback):
    """Notes the time spent at every checkpoint, from which a killed run goes on."""

    def __init__(self, phases: Phases) -> None:
        self.phases = phases

    @override
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.phases.save()


class InterruptCallback(TrainerCallback):
    """Ctrl-C or SIGTERM ends the step under way, saves a checkpoint and stops; a second one stops at once.

    On several ranks all stop after the same step, whichever of them the signal reached first: one that went
    on would wait for the others for ever.
    """

    def __init__(self) -> None:
        self.requested = self.signalled = False
        self.number = int(signal.SIGINT)
        """Of the signal that came first."""
        self.previous: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signalled:
            raise stopping.interrupt(number)
        self.signalled, self.number = True, number

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.previous = stopping.handle(self._on_signal)

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.requested = self.signalled
        if args.world_size > 1:
            requested = torch.tensor(int(self.signalled), device=args.device)
            torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
            self.requested = bool(requested)
        if self.requested:
            control.should_save = control.should_training_stop = True
        return control

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.release()

    def release(self) -> None:
        """Give the signals back."""
        stopping.restore(self.previous)
        self.previous = {}
