"""The main path: recipe -> stages -> saved model. Read this first.

out/recipe.json          the resolved recipe, with versions, machine and data fingerprints
out/log.jsonl            every logged figure, by stage and step
out/teachers/            vectors of the teachers of `distill`, unless its `cache` says where
out/phases.json          seconds of each stage, over all starts
out/base/                the pruned base, if the recipe prunes it
out/stages/1-NAME/       checkpoints while the stage runs; `done.safetensors` when it is finished
out/model/               the result: a sentence-transformers folder + recipe.json + contract.json +
                         decontaminated.json, the tasks that its training data was checked against
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.training_args import ParallelMode

from embedforge.data.example import Example
from embedforge.data.marks import FILE_NAME, Mark, write_mark
from embedforge.data.mixture import Mixture, fingerprint
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.files import read_json, write_json
from embedforge.model.adapter import merge_lora
from embedforge.model.encoder import EmbeddingModel, save
from embedforge.recipe import Recipe, Stage, parse_recipe
from embedforge.run_folder import Phases, facts, first_difference, hold
from embedforge.runtime import (
    is_first_rank,
    keep_freed_memory,
    pick_device,
    under_torchrun,
    world_size,
)
from embedforge.stopping import interrupt as interrupt_of
from embedforge.train.checkpoints import last_complete_checkpoint, save_trainable
from embedforge.train.decontamination import mark_of_training, unchecked_sources
from embedforge.train.merge_stage import merge_fingerprints, run_merge
from embedforge.train.metrics import EvaluateCallback, held_out_retrieval
from embedforge.train.mixtures import (
    long_warmups,
    mixture_of,
    read_held_out,
    read_mixtures,
    training_instructions,
    unseen_instruction,
)
from embedforge.train.pace import Pace, steps_taken
from embedforge.train.progress import BarCallback, InterruptCallback, JsonLogCallback, PhasesCallback
from embedforge.train.prune import vocabulary_examples, with_pruned_base
from embedforge.train.sharding import check_fsdp, check_sharded_stages
from embedforge.train.stages import begin_stage, check_batch, model_after, prepare_model, take_result, work_of
from embedforge.train.teacher import OpenTeacher, Teaching, check_teachers
from embedforge.train.trainer import StageTrainer

DONE = "done.safetensors"
Refresh = Callable[
    [EmbeddingModel, Stage, Mapping[str, Sequence[Example]], Path, Path | None], Mapping[str, list[Example]]
]
"""Given model, stage, Examples by source, a work folder and the sources' folder: the Examples mined anew."""
logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM stopped the run; its state is saved and `--resume` goes on."""

    def __init__(self, message: str, cause: KeyboardInterrupt | None = None) -> None:
        super().__init__(message)
        self.cause = cause or KeyboardInterrupt()
        """What the signal would have raised."""


def train(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    device: str | None = None,
    source_folder: Path | None = None,
    held_out: Sequence[Example] = (),
    own_test: bool = False,
    refresh: Refresh | None = None,
    teachers: OpenTeacher | None = None,
    teacher_cache: Path | None = None,
    seconds: Mapping[str, float] | None = None,
    quiet: bool = False,
) -> Path:
    """Run all stages of a recipe and save the model.

    >>> import embedforge
    >>> recipe = embedforge.load_recipe("recipe.yaml", ["stages.retrieval.steps=2"])
    >>> model = embedforge.train(recipe, "run", device="cpu", quiet=True)
    >>> embedforge.load(model, device="cpu").encode_query(["how do I undo a commit?"]).shape
    (1, 384)

    Args:
        recipe: what to do.
        out: a new or empty folder; with `resume`, the folder of an earlier run.
        resume: go on from the last complete checkpoint; the result is the one an unbroken run gives. The
            model of a finished run is returned as it is.
        device: "cpu", "cuda", ...; CUDA where there is one when None, under torchrun the rank's own.
        source_folder: where relative paths of sources start (the recipe file's folder).
        held_out: examples for retrieval metrics every `training.eval_steps`, where the recipe has no file
            of them in `training.held_out`.
        own_test: the caller keeps the texts that it tests on out of the data by itself; otherwise a warning
            names the sources that were not checked against any evaluation task.
        refresh: mines again for stages with `mine_again`: `refresh_stage` of `embedforge.mine.refresh`.
        teachers: opens the teachers of `distill`: `open_teacher` of `embedforge.mine.teachers`.
        teacher_cache: the folder of their vectors, where the objective names none; in `out` when None.
        seconds: that stages may take, by name; one whose steps take longer ends earlier, its schedule with
            it, and the saved model's recipe has the steps that were taken. On one rank only.
        quiet: no progress bars.

    Returns:
        The folder of the saved model.

    Raises:
        EmbedforgeError: bad data, a run that is already there, a loss that is not finite, a full disk.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    out = Path(out)
    keep_freed_memory()
    check_fsdp(recipe.training.fsdp, device)
    check_sharded_stages(recipe)
    _check_refresh(recipe, refresh)
    teaching = Teaching(teachers, teacher_cache or out / "teachers", source_folder, device, quiet)
    check_teachers(recipe, teaching)
    if seconds and world_size() > 1:
        raise EmbedforgeError("seconds: stages end by the clock on one rank only; leave them out")
    mixtures = read_mixtures(recipe, source_folder)
    held_out = read_held_out(recipe, source_folder, held_out)
    vocabulary = vocabulary_examples(recipe, source_folder)
    fingerprints = _fingerprints(recipe, mixtures, vocabulary, source_folder)
    with hold(out) if is_first_rank() else contextlib.nullcontext():
        _claim_folder(out, recipe, fingerprints, resume)
        return _train_stages(
            recipe,
            out,
            mixtures,
            vocabulary,
            held_out,
            teaching,
            resume=resume,
            device=device,
            source_folder=source_folder,
            own_test=own_test,
            refresh=refresh,
            seconds=seconds or {},
            quiet=quiet,
        )


def _train_stages(
    recipe: Recipe,
    out: Path,
    mixtures: Mapping[str, Mixture],
    vocabulary: Sequence[Example],
    held_out: Sequence[Example],
    teaching: Teaching,
    *,
    resume: bool,
    device: str | None,
    source_folder: Path | None,
    own_test: bool,
    refresh: Refresh | None,
    seconds: Mapping[str, float],
    quiet: bool,
) -> Path:
    """Go through the stages in a folder that is this run's; arguments as of `train`."""
    finished = out / "model"
    mark = mark_of_training(recipe, source_folder) if is_first_rank() else None
    if resume and finished.exists():
        _leave_mark(finished, mark)
        return finished
    _point_out_idle_gpus(device)
    if is_first_rank():
        instruction = unseen_instruction(recipe.contract, training_instructions(recipe, mixtures))
        unchecked = None if own_test else unchecked_sources(recipe, source_folder)
        for warning in filter(None, (instruction, unchecked, *long_warmups(recipe))):
            logger.warning(warning)
    as_asked, recipe = recipe, with_pruned_base(recipe, out, vocabulary)
    model = prepare_model(recipe, device)
    phases = Phases(out if is_first_rank() else None)
    for number, stage in enumerate(recipe.stages):
        begin_stage(model, recipe, stage)
        folder = stage_folder(out, recipe, number)
        done = [stage_folder(out, recipe, earlier) / DONE for earlier in range(number + 1)]
        if not done[-1].exists() and stage.objective.unit == "models":
            with phases.phase(f"stage {stage.name}"):
                run_merge(recipe, number, done, device=device, source_folder=source_folder)
        if done[-1].exists():
            take_result(model, stage, done[-1])
            continue
        mixture, log = mixtures[stage.name], out / "log.jsonl"
        pace = Pace(stage, folder, seconds.get(stage.name))
        with phases.phase(f"stage {stage.name}"):
            if refresh is not None and stage.mine_again is not None:
                examples = refresh(model, stage, mixture.examples, folder / "mined", source_folder)
                mixture = mixture_of(stage, recipe.seed, examples)
            run_stage(
                model, recipe, stage, mixture, folder, log, pace, teaching, device, held_out, quiet, phases
            )
        if recipe.training.fsdp:  # The stage has left its model in shards.
            model = model_after(recipe, done, device)
    finish(model, _as_taken(as_asked, out), finished)
    _leave_mark(finished, mark)
    return finished


def _fingerprints(
    recipe: Recipe, mixtures: Mapping[str, Mixture], vocabulary: Sequence[Example], folder: Path | None
) -> dict[str, str]:
    """Return the hash of all that a run is made of besides its recipe, by stage."""
    found = {name: mixture.fingerprint for name, mixture in mixtures.items()}
    found |= merge_fingerprints(recipe, folder)
    return found | ({"model.prune.vocabulary": fingerprint(vocabulary)} if vocabulary else {})


def _as_taken(recipe: Recipe, out: Path) -> Recipe:
    """Return the recipe with the steps that its stages took."""
    stages = tuple(
        stage.model_copy(update={"steps": steps_taken(stage, stage_folder(out, recipe, number))})
        for number, stage in enumerate(recipe.stages)
    )
    return recipe.model_copy(update={"stages": stages})


def _check_refresh(recipe: Recipe, refresh: Refresh | None) -> None:
    """Refuse `mine_again` where nothing would be mined, or each rank for itself."""
    asking = [stage.name for stage in recipe.stages if stage.mine_again is not None]
    if not asking:
        return
    if refresh is None:
        raise EmbedforgeError(
            f"stage '{asking[0]}' has mine_again, and nothing to mine with was given: pass "
            "refresh=refresh_stage, from embedforge.mine.refresh, to train(), as `embedforge train` does"
        )
    if world_size() > 1:
        raise EmbedforgeError(
            f"stage '{asking[0]}' has mine_again, which runs on one rank only: end the run before it, "
            "mine with `embedforge mine --teacher OUT/model`, and train on its result"
        )


def _leave_mark(folder: Path, mark: Mark | None) -> None:
    """Put the mark of the training data into a finished model's folder, unless it has one."""
    if mark is not None and not (folder / FILE_NAME).exists():
        write_mark(folder, mark)


def stage_folder(out: Path, recipe: Recipe, number: int) -> Path:
    """Return the folder of a stage, counted from 0, in the folder of a run."""
    return out / "stages" / f"{number + 1}-{recipe.stages[number].name}"


def run_stage(
    model: EmbeddingModel,
    recipe: Recipe,
    stage: Stage,
    mixture: Mixture,
    folder: Path,
    log: Path,
    pace: Pace,
    teaching: Teaching,
    device: str | None = None,
    held_out: Sequence[Example] = (),
    quiet: bool = False,
    phases: Phases | None = None,
) -> None:
    """Train one stage, from its last complete checkpoint if it has one, and keep its result as `DONE`."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_complete_checkpoint(folder)
    pool = list(held_out)[: recipe.training.eval_queries]
    work = work_of(stage.objective, model, recipe, stage, mixture)
    work.prepare(teaching, folder, resuming=checkpoint is not None)
    trainer = StageTrainer(
        model,
        training_arguments(recipe, stage, folder, device),
        recipe=recipe,
        work=work,
        pace=pace,
        held_out=(lambda model: held_out_retrieval(model, pool)) if pool else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if pool and recipe.training.eval_steps is not None:
        trainer.add_callback(EvaluateCallback(recipe.training.eval_steps))
    callback = InterruptCallback()
    trainer.add_callback(callback)
    trainer.add_callback(JsonLogCallback(log, stage.name))
    if not quiet:
        trainer.add_callback(BarCallback(f"stage {stage.name}"))
    if phases is not None:
        trainer.add_callback(PhasesCallback(phases))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        callback.release()  # The Trainer says nothing of the end to a callback when a step fails.
    if callback.requested and trainer.state.global_step < pace.steps:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {pace.steps} of stage '{stage.name}'",
            interrupt_of(callback.number),
        )
    work.finish()
    _keep_result(model, folder)
    if is_first_rank():
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()


def _keep_result(model: EmbeddingModel, folder: Path) -> None:
    """Write the trained weights of a finished stage; on failure its checkpoints stay. All ranks call this."""
    partial = folder / f".{DONE}.partial"
    try:
        save_trainable(model, partial, write=is_first_rank())
        if is_first_rank():
            partial.replace(folder / DONE)
    except (OSError, SafetensorError) as error:  # the latter is what safetensors says of a full disk
        raise EmbedforgeError(
            f"{folder / DONE}: the finished stage could not be written ({error}). Its last checkpoint is "
            f"{last_complete_checkpoint(folder) or 'none yet'}; free some space and run again with --resume"
        ) from error
    finally:
        if is_first_rank():
            partial.unlink(missing_ok=True)


def training_arguments(recipe: Recipe, stage: Stage, folder: Path, device: str | None) -> TrainingArguments:
    """Translate a stage into the Trainer's own arguments."""
    settings = recipe.training
    _check_loggers(settings.report_to)
    torch_device = pick_device(device)
    on_cpu = torch_device.type == "cpu"
    arguments: dict[str, Any] = dict(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=1,  # a batch of the Trainer is one whole step of ours
        max_grad_norm=stage.max_grad_norm,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and under_torchrun() else None,
        ddp_find_unused_parameters=False,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        # Two at least: the newest may be the one that a kill cut short.
        save_total_limit=max(2, settings.keep_checkpoints),
        report_to=list(settings.report_to),
        ignore_data_skip=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        seed=recipe.seed,
    )
    return _on_one_device(TrainingArguments(**arguments), torch_device)


def _on_one_device(arguments: TrainingArguments, device: torch.device) -> TrainingArguments:
    """Keep the Trainer of a single process to one GPU, the one asked for.

    By itself it takes all that are visible, by nn.DataParallel, and starts from the first. It has no argument
    for either: `n_gpu` and `device` are read-only properties of these two attributes, and hiding GPUs by
    CUDA_VISIBLE_DEVICES has no effect any more once CUDA is in use.
    """
    if device.type == "cuda" and arguments.parallel_mode is not ParallelMode.DISTRIBUTED:
        torch.cuda.set_device(device)
        arguments._n_gpu = 1
        arguments.__dict__["_setup_devices"] = torch.device("cuda", torch.cuda.current_device())
    return arguments


def _point_out_idle_gpus(device: str | None) -> None:
    visible = torch.cuda.device_count()
    if device is None and visible > 1 and not under_torchrun():
        logger.warning(
            "One process drives one GPU: this one takes cuda:0 of the %d visible. For all of them, start it "
            "with: torchrun --standalone --nproc-per-node %d -m embedforge train ...",
            visible,
            visible,
        )


def _check_loggers(names: Sequence[str]) -> None:
    """Refuse a name that transformers does not know, or a logger that is not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise EmbedforgeError(
                f"training.report_to: transformers knows no logger '{name}', it knows "
                f"{', '.join(INTEGRATION_TO_CALLBACK)}.{did_you_mean(name, INTEGRATION_TO_CALLBACK)}"
            )
        if name not in get_available_reporting_integrations():
            raise EmbedforgeError(f"training.report_to: '{name}' is not installed; install it with pip")


def finish(model: EmbeddingModel, recipe: Recipe, folder: Path) -> Path:
    """Merge the adapter, and save the model with its recipe and contract; the first rank writes."""
    model.eval()
    if not is_first_rank():
        return folder
    if isinstance(model.decoder, PeftModel):
        model.decoder = merge_lora(model.decoder, check_batch(model))
    try:
        save(model, folder, recipe.model_dump(mode="json"))
    except EmbedforgeError as error:
        raise EmbedforgeError(
            f"{error}\nAll stages are trained and kept in {folder.parent / 'stages'}: with --resume the same "
            "command writes the model and trains nothing again"
        ) from error
    return folder


def _claim_folder(out: Path, recipe: Recipe, fingerprints: Mapping[str, str], resume: bool) -> None:
    """Write the resolved recipe into `out`, or check that the run there is this very run."""
    resolved: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "data": dict(fingerprints),
        **facts(),
    }
    path = out / "recipe.json"
    if not is_first_rank():
        return
    # What stopped before its first step (a misspelt base, say) has nothing to go on with or to lose.
    begun = any((out / "stages").glob("*/*")) or (out / "model").exists()
    if not path.exists() or not begun:
        write_json(path, resolved)
        return
    if not resume:
        raise EmbedforgeError(
            f"{out}: there is a run here already; go on with it by --resume, or choose another --out"
        )
    earlier = read_json(path)
    # A key that this version knows and that one did not stands at its default.
    before = parse_recipe(earlier["recipe"], str(path)).model_dump(mode="json")
    for part, old in (("recipe", before), ("data", earlier["data"])):
        if difference := first_difference(old, resolved[part]):
            raise EmbedforgeError(
                f"{path}: cannot resume, the {part} differs from the run's: {difference}. "
                "Use the same recipe and data, or another --out"
            )
