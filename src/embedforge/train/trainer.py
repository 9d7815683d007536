"""`transformers.Trainer` with whole steps of an objective, and checkpoints that can be trusted."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from typing_extensions import override

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel
from embedforge.recipe import Recipe
from embedforge.runtime import release_freed_memory
from embedforge.train.checkpoints import (
    COMPLETE,
    WEIGHTS,
    last_complete_checkpoint,
    load_trainable,
    save_trainable,
)
from embedforge.train.optimizer import build_optimizer, parameter_groups
from embedforge.train.pace import Pace, PaceCallback
from embedforge.train.sharding import load_whole_optimizer_state, set_up_fsdp, whole_optimizer_state
from embedforge.train.work import StageContext, StepFigures, Work

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
STEPS_BETWEEN_RELEASES = 4


class StepNumbers(Dataset[int]):
    """What the Trainer's loader iterates over: the Mixture gives step i itself, by random access."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> int:
        return index


class StageTrainer(Trainer):
    """Trains one stage.

    The data of a step and all its random numbers are functions of (seed, stage, step) alone. That is what
    makes a resumed run the same run: there is no iterator to fast-forward.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        args: TrainingArguments,
        *,
        recipe: Recipe,
        work: Work,
        pace: Pace,
        held_out: Callable[[EmbeddingModel], dict[str, float]] | None = None,
    ) -> None:
        self.embedding_model = model
        self.recipe, self.work, self.pace, self.held_out = recipe, work, pace, held_out
        super().__init__(model=work.module, args=args)
        self.add_callback(PaceCallback(pace))
        self.meter = Meter()
        work.begin(
            StageContext(
                device=self.args.device,
                rank=self.args.process_index,
                world=self.args.world_size,
                autocast=recipe.training.precision == "bfloat16_autocast",
                accumulate=self.accelerator.backward,
                no_sync=self._no_sync,
            )
        )

    def _no_sync(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        # Unsynchronised gradients of FSDP are whole ones: the memory that it is there to save.
        return contextlib.nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model)

    @override
    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.recipe.training.fsdp:
            set_up_fsdp(self.accelerator, self.embedding_model.decoder, self.recipe.training.fsdp)
            self.is_fsdp_enabled = True

    # --- data ------------------------------------------------------------------------------------

    @override
    def get_train_dataloader(self) -> DataLoader[int]:
        return DataLoader(StepNumbers(self.work.stage.steps), batch_size=None, collate_fn=lambda index: index)

    @override
    def get_batch_samples(
        self, epoch_iterator: Iterator[int], num_batches: int, device: Any
    ) -> tuple[list[int], None]:
        return [next(epoch_iterator) for _ in range(num_batches)], None

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    # --- one step --------------------------------------------------------------------------------

    @override
    def training_step(
        self, model: torch.nn.Module, inputs: int, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Leave the gradient of a step in the parameters, and return its loss."""
        model.train()
        number = self.state.global_step
        if number % STEPS_BETWEEN_RELEASES == 0:
            release_freed_memory()
        figures = self.work.step(model, number)
        if not math.isfinite(float(figures.loss)):
            raise self._not_finite(figures)
        self.meter.add(figures)
        return figures.loss.to(self.args.device)

    def _not_finite(self, figures: StepFigures) -> EmbedforgeError:
        stage, losses = self.work.stage, figures.losses
        bad = [row for row, loss in enumerate(losses) if not math.isfinite(loss)] or list(range(len(losses)))
        rows = "\n".join(f"  [{figures.sources[row]}] {figures.text(row)[:100]!r}" for row in bad[:5])
        kept = last_complete_checkpoint(Path(self.args.output_dir))
        return EmbedforgeError(
            f"stage '{stage.name}', step {self.state.global_step}: the loss is not finite for "
            f"{len(bad)} of {len(losses)} rows, the first of them:\n{rows}\n"
            f"Training stopped; the last good checkpoint is {kept or 'none yet'}. Lower the learning rate "
            f"({stage.learning_rate:g}) or use training.precision=float32, and train into another --out."
        )

    # --- optimizer -------------------------------------------------------------------------------

    @override
    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        stage = self.work.stage
        groups = parameter_groups(
            model if model is not None else self.model,
            learning_rate=stage.learning_rate,
            pooling_learning_rate=stage.pooling_learning_rate,
            weight_decay=stage.weight_decay,
        )
        master = self.recipe.training.precision == "bfloat16"
        self.optimizer = build_optimizer(groups, fp32_master=master)
        return self.optimizer

    @override
    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: self.pace.learning_rate(step)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # --- metrics ---------------------------------------------------------------------------------

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meter.drain()
        super().log(logs, None)

    @override
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Retrieval on the small held-out pool; see `train.metrics`."""
        metrics = self.held_out(self.embedding_model) if self.held_out else {}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- checkpoints -----------------------------------------------------------------------------

    @override
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self.is_fsdp_enabled or self.args.should_save:
            save_trainable(self.embedding_model, folder / WEIGHTS, write=self.args.should_save)

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable(self.embedding_model, Path(resume_from_checkpoint) / WEIGHTS)

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer_state(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            optimizer, scheduler = (
                torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True, mmap=True)
                for name in (OPTIMIZER, SCHEDULER)
            )
            load_whole_optimizer_state(self.optimizer, optimizer)
            self.lr_scheduler.load_state_dict(scheduler)

    @override
    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save, then mark the folder as complete: a folder without the mark is never resumed from."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                (folder / COMPLETE).touch()
        except (OSError, SafetensorError, RuntimeError) as error:  # safetensors' and torch's own full disk
            shutil.rmtree(folder, ignore_errors=True)
            kept = last_complete_checkpoint(folder.parent)
            raise EmbedforgeError(
                f"{folder}: saving the checkpoint failed, most often for want of disk space ({error}). "
                f"The last complete checkpoint is {kept or 'none yet'}; free some space and run again "
                "with --resume"
            ) from error


class Meter:
    """Collects the figures of the steps between two log lines."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new interval."""
        self.by_source: dict[str, list[float]] = defaultdict(list)
        self.by_term: dict[str, list[float]] = defaultdict(list)
        self.tokens = self.padded = 0
        self.start = time.perf_counter()

    def add(self, figures: StepFigures) -> None:
        """Take in one step."""
        for source, loss in zip(figures.sources, figures.losses, strict=True):
            self.by_source[source].append(loss)
        for term, loss in figures.terms.items():
            self.by_term[term].append(loss)
        self.tokens += figures.tokens
        self.padded += figures.padded_tokens

    def drain(self) -> dict[str, float]:
        """Return losses by source and term, padding, real tokens a second of this rank, and start again."""
        figures = {
            f"loss/{source}": float(np.mean(losses)) for source, losses in sorted(self.by_source.items())
        }
        figures |= {f"term/{kind}": float(np.mean(losses)) for kind, losses in sorted(self.by_term.items())}
        figures["padding_share"] = 1 - self.tokens / max(self.padded, 1)
        figures["tokens_per_second"] = self.tokens / max(time.perf_counter() - self.start, 1e-9)
        self.reset()
        return figures
