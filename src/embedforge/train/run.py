"""The main path: recipe -> stages -> saved model. Read this first.

out/recipe.json          the resolved recipe, with versions and data fingerprints
out/log.jsonl            every logged figure, by stage and step
out/stages/1-NAME/       checkpoints while the stage runs; `done.safetensors` when it is finished
out/model/               the result: a sentence-transformers folder + recipe.json + contract.json
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from embedforge.data.example import Example
from embedforge.data.mixture import Mixture
from embedforge.errors import EmbedforgeError
from embedforge.files import read_json, write_json
from embedforge.model.adapter import add_lora, merge_lora
from embedforge.model.encoder import EmbeddingModel, build, save
from embedforge.recipe import Recipe, Stage
from embedforge.runtime import keep_freed_memory, pick_device
from embedforge.train.metrics import held_out_retrieval
from embedforge.train.mixtures import read_mixture
from embedforge.train.progress import BarCallback, InterruptCallback, JsonLogCallback
from embedforge.train.trainer import StageTrainer, last_complete_checkpoint, load_trainable, trainable_state

DONE = "done.safetensors"


class Interrupted(Exception):
    """The user stopped the run; its state is saved and `--resume` goes on."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    source_folder: Path | None = None,
    held_out: Sequence[Example] = (),
    quiet: bool = False,
) -> Path:
    """Run all stages of a recipe and save the model.

    Args:
        recipe: what to do.
        out: a new or empty folder; with `resume`, the folder of an earlier, unfinished run.
        resume: go on from the last complete checkpoint; the result is the one an unbroken run gives.
        device: "cpu", "cuda", ...; CUDA where there is one when None.
        source_folder: where relative paths of sources start (the recipe file's folder).
        held_out: examples for retrieval metrics during training (`training.eval_steps`).
        quiet: no progress bars.

    Returns:
        The folder of the saved model.

    Raises:
        EmbedforgeError: bad data, a run that is already there, a loss that is not finite, a full disk.
        Interrupted: after Ctrl-C, with the state saved.
    """
    keep_freed_memory()
    finished = out / "model"
    if resume and finished.exists():
        return finished
    mixtures = {stage.name: read_mixture(stage, recipe.seed, source_folder) for stage in recipe.stages}
    _claim_folder(out, recipe, {name: mixture.fingerprint for name, mixture in mixtures.items()}, resume)
    model = prepare_model(recipe, device)
    for number, stage in enumerate(recipe.stages, start=1):
        folder = out / "stages" / f"{number}-{stage.name}"
        if (folder / DONE).exists():
            load_trainable(model, folder / DONE)
            continue
        run_stage(
            model, recipe, stage, mixtures[stage.name], folder, out / "log.jsonl", device, held_out, quiet
        )
    return finish(model, recipe, finished)


def prepare_model(recipe: Recipe, device: str | None = None) -> EmbeddingModel:
    """Build the model a recipe describes, with its adapter, in its precision, on the device."""
    spec = recipe.model
    model = build(
        base=spec.base,
        contract=recipe.contract,
        pooling=spec.pooling.model_dump(),
        sliding_window=spec.sliding_window,
        allow_causal_layers=spec.allow_causal_layers,
        attention_implementation=spec.attention_implementation,
        trust_remote_code=spec.trust_remote_code,
        dtype=torch.bfloat16 if recipe.training.precision == "bfloat16" else torch.float32,
        seed=recipe.seed,
    )
    if recipe.training.gradient_checkpointing:
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    if spec.adapter is not None:
        torch.manual_seed(recipe.seed)
        model.decoder = add_lora(model.decoder, **spec.adapter.model_dump())
    return model.to(pick_device(device))


def run_stage(
    model: EmbeddingModel,
    recipe: Recipe,
    stage: Stage,
    mixture: Mixture,
    folder: Path,
    log: Path,
    device: str | None = None,
    held_out: Sequence[Example] = (),
    quiet: bool = False,
) -> None:
    """Train one stage, from its last complete checkpoint if it has one, and keep its result as `DONE`."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_complete_checkpoint(folder)
    pool = list(held_out)[: recipe.training.eval_queries]
    trainer = StageTrainer(
        model,
        training_arguments(recipe, stage, folder, device, has_held_out=bool(pool)),
        recipe=recipe,
        stage=stage,
        mixture=mixture,
        held_out=(lambda model: held_out_retrieval(model, pool)) if pool else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    interrupt = InterruptCallback()
    trainer.add_callback(interrupt)
    trainer.add_callback(JsonLogCallback(log, stage.name))
    if not quiet:
        trainer.add_callback(BarCallback(f"stage {stage.name}", Console(stderr=True)))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interrupt.asked and trainer.state.global_step < stage.steps:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {stage.steps} of stage '{stage.name}'"
        )
    if trainer.is_world_process_zero():
        partial = folder / f".{DONE}.partial"
        save_file(trainable_state(model), str(partial))
        partial.replace(folder / DONE)
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
    trainer.accelerator.wait_for_everyone()


def training_arguments(
    recipe: Recipe, stage: Stage, folder: Path, device: str | None, *, has_held_out: bool = False
) -> TrainingArguments:
    """Translate a stage into the Trainer's own arguments."""
    settings = recipe.training
    on_cpu = pick_device(device).type == "cpu"
    evaluates = settings.eval_steps is not None and has_held_out
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=1,  # a batch of the Trainer is one whole step of ours
        max_grad_norm=stage.max_grad_norm,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,
        fsdp=settings.fsdp or None,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        # Two at least: the newest may be the one that a kill cut short.
        save_total_limit=max(2, settings.keep_checkpoints),
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.eval_steps if evaluates else None,
        report_to=list(settings.report_to),
        ignore_data_skip=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        seed=recipe.seed,
    )


def finish(model: EmbeddingModel, recipe: Recipe, folder: Path) -> Path:
    """Merge the adapter, and save the model with its recipe and contract; the first rank writes."""
    model.eval()
    if not is_first_rank():
        return folder
    if recipe.model.adapter is not None:
        batch = model.renderer.batch(
            ["A text to check the merge with.", "Another one, somewhat longer than the first."]
        )
        device = next(model.parameters()).device
        model.decoder = merge_lora(model.decoder, {name: tensor.to(device) for name, tensor in batch.items()})
    save(model, folder, recipe.model_dump(mode="json"))
    return folder


def is_first_rank() -> bool:
    """Say whether this process writes files: the only one, or rank 0 under torchrun."""
    return os.environ.get("RANK", "0") == "0"


def _claim_folder(out: Path, recipe: Recipe, fingerprints: Mapping[str, str], resume: bool) -> None:
    """Write the resolved recipe into `out`, or check that the run there is this very run."""
    resolved: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "data": dict(fingerprints),
        "versions": {
            name: importlib.metadata.version(name) for name in ("embedforge", "torch", "transformers", "peft")
        },
    }
    path = out / "recipe.json"
    if not is_first_rank():
        return
    if not path.exists():
        write_json(path, resolved)
        return
    if not resume:
        raise EmbedforgeError(
            f"{out}: there is a run here already; go on with it by --resume, or choose another --out"
        )
    earlier = read_json(path)
    for part in ("recipe", "data"):
        if earlier[part] != resolved[part]:
            raise EmbedforgeError(
                f"{path}: cannot resume, the {part} differs from the run's: "
                f"{_first_difference(earlier[part], resolved[part])}. "
                "Use the same recipe and data, or another --out"
            )


def _first_difference(old: Any, new: Any, place: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            if one != other:
                return _first_difference(one, other, f"{place}.{index}")
    return f"{place} was {old!r}, is {new!r}"
