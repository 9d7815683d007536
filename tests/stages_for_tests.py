"""Small stages of every objective, their steps without a Trainer, and runs that break off in the middle."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embedforge.model.encoder import EmbeddingModel
from embedforge.recipe import Recipe, parse_recipe
from embedforge.train.mixtures import read_mixture
from embedforge.train.stages import prepare_model, work_of
from embedforge.train.trainer import StageTrainer
from embedforge.train.work import StageContext, Work
from training_for_tests import WORDS

COMMON = {"steps": 4, "batch_queries": 6, "learning_rate": 3e-3, "warmup_steps": 1}
LORA = {"rank": 4, "alpha": 16, "dropout": 0.2}


def write_texts(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """A text a line: two words in turn, so that a hidden one can be told from what stands round it."""
    chance = random.Random(seed)
    lines = []
    for _ in range(rows):
        one, two = chance.sample(WORDS, 2)
        lines.append(" ".join([one, two] * chance.randint(2, 5)))
    path.write_text("\n".join(lines) + "\n")
    return path


def mntp(*files: Path, objective: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    sources = [{"path": str(file), "kind": "texts"} for file in files]
    settings = {"kind": "mntp", "chunk_tokens": 16, **(objective or {})}
    return {"name": "mntp", **COMMON, "objective": settings, "mix": {"sources": sources}, **changes}


def simcse(*files: Path, objective: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    sources = [{"path": str(file), "kind": "texts"} for file in files]
    return {
        "name": "simcse",
        **COMMON,
        "objective": {"kind": "simcse", **(objective or {})},
        "mix": {"sources": sources},
        **changes,
    }


def supervised(*files: Path, objective: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    sources = [{"path": str(file), "instruction": "Find the document"} for file in files]
    return {
        "name": "supervised",
        **COMMON,
        "negatives": 1,
        "objective": {"kind": "contrastive", "in_batch": "all", **(objective or {})},
        "mix": {"sources": sources, "batches": "homogeneous"},
        **changes,
    }


def recipe_of(
    base: Path, *stages: dict[str, Any], adapter: dict[str, Any] | None = None, **changes: Any
) -> Recipe:
    training = {"precision": "float32", "save_steps": 2, "log_steps": 1, **changes.pop("training", {})}
    values = {
        "name": "test",
        "model": {"base": str(base), "adapter": adapter, **changes.pop("model", {})},
        "contract": {"max_tokens": 48, **changes.pop("contract", {})},
        "stages": list(stages),
        "training": training,
    }
    return parse_recipe({**values, **changes}, "test")


def alone() -> StageContext:
    """The only rank, on the CPU."""
    return StageContext(
        device=torch.device("cpu"),
        rank=0,
        world=1,
        autocast=False,
        accumulate=Tensor.backward,
        no_sync=lambda _: contextlib.nullcontext(),
    )


def begin(recipe: Recipe, number: int = 0, dtype: torch.dtype = torch.float32) -> tuple[EmbeddingModel, Work]:
    """A stage of a recipe on a fresh model, in train mode, ready for `step`."""
    stage = recipe.stages[number]
    model = prepare_model(recipe, "cpu").to(dtype)
    work = work_of(stage.objective, model, recipe, stage, read_mixture(stage, recipe.seed))
    work.begin(alone())
    work.module.train()
    return model, work


def gradients(work: Work, number: int = 0) -> dict[str, Tensor]:
    """The gradient of a step, by the name of the parameter."""
    work.module.zero_grad()
    work.step(work.module, number)
    named = work.module.named_parameters()
    return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


class Crash(Exception):
    """What `crash_in` raises."""


@contextlib.contextmanager
def crash_in(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> Iterator[None]:
    """Break off whatever is trained, at the beginning of a step of a stage; it must come to that."""
    honest = StageTrainer.training_step

    def training_step(self: StageTrainer, *arguments: Any) -> Tensor:
        if self.work.stage.name == stage and self.state.global_step == step:
            raise Crash
        return honest(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", training_step)
        try:
            yield
        except Crash:
            return
    pytest.fail(f"stage {stage} did not come to step {step}")
