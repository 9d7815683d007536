"""A recipe's model, handed from stage to stage, and what each stage does with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from embedforge.data.mixture import Mixture
from embedforge.errors import EmbedforgeError
from embedforge.model.adapter import add_lora, merge_lora, stack_lora
from embedforge.model.depth import Depth
from embedforge.model.encoder import EmbeddingModel, build
from embedforge.model.folder import find_folder
from embedforge.model.language_head import load_head
from embedforge.model.mask_token import add_mask_token
from embedforge.model.shards import INT8_WEIGHTS
from embedforge.model.short_attention import use_short_attention
from embedforge.model.sparsity import keep_zeros
from embedforge.recipe import Recipe, Stage
from embedforge.recipe.objectives import Mntp, Objective, PairObjective, SimCSE, VectorObjective
from embedforge.runtime import pick_device
from embedforge.train.checkpoints import load_trainable, load_whole
from embedforge.train.contrastive import ContrastiveWork, SimcseWork
from embedforge.train.mntp import MntpWork
from embedforge.train.terms import TermsWork
from embedforge.train.work import Work, mix_seeds

FIRST_WEIGHTS = 1 << 41
"""Beside a stage's seed, what sets the first weights of its adapter apart from its steps."""


def prepare_model(recipe: Recipe, device: str | None = None) -> EmbeddingModel:
    """Build the model a recipe describes, with its adapter, in its precision, on the device.

    For FSDP it stays on the CPU: it moves to the GPU in shards, where it need not fit as a whole.

    Raises:
        EmbedforgeError: see `build`; or the recipe's base is still to be pruned.
    """
    spec = recipe.model
    if spec.prune is not None:
        raise EmbedforgeError(
            f"the recipe '{recipe.name}' prunes its base, and the pruned one lies in the run's folder: give "
            "the recipe that with_pruned_base of embedforge.train.prune returns"
        )
    if (find_folder(spec.base) / INT8_WEIGHTS).exists():
        raise EmbedforgeError(
            f"{spec.base}: its weights are int8, which cannot be trained; train the model that it was made of"
        )
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
        # transformers renamed the method after 5.2.
        new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
        getattr(model.decoder, new if hasattr(model.decoder, new) else old)({"use_reentrant": False})
    for stage in recipe.stages:
        objective = stage.objective
        if isinstance(objective, Mntp) and objective.add_mask_token:
            add_mask_token(model.decoder, model.tokenizer, objective.mask_token)
    if spec.adapter is not None:
        torch.manual_seed(recipe.seed)
        model.decoder = add_lora(model.decoder, **spec.adapter.model_dump())
    if recipe.training.keep_zeros:
        keep_zeros(model)
    if recipe.training.fsdp:
        return model
    model.to(pick_device(device))
    if spec.attention_implementation == "auto":
        use_short_attention(model.decoder)
    return model


def begin_stage(model: EmbeddingModel, recipe: Recipe, stage: Stage) -> None:
    """Hand the model on to a stage: its `layers`, and what its `earlier_adapter` says.

    Both are proven to change no vector, except where a stage runs fewer layers than the one before.

    After a merge of models there is no adapter any more, and a new one begins.

    Raises:
        EmbedforgeError: merging, the new adapter or the added layers changed the token states of a few texts.
    """
    _set_layers(model, recipe, stage)
    if recipe.model.adapter is None or stage.objective.unit == "models":
        return
    wears_one = isinstance(model.decoder, PeftModel)  # a merge leaves none
    if wears_one and stage.earlier_adapter == "continue":
        return
    settings = (stage.adapter or recipe.model.adapter).model_dump()
    torch.manual_seed(mix_seeds(stage_seed(recipe, stage), FIRST_WEIGHTS))
    if not wears_one:
        model.decoder = add_lora(model.decoder, **settings)
    elif stage.earlier_adapter == "merge":
        model.decoder = add_lora(merge_lora(model.decoder, check_batch(model)), **settings)
    else:
        before = _states(model)
        stack_lora(model.decoder, **settings)
        model.to(model.device)
        if not torch.equal(_states(model), before):
            raise EmbedforgeError(
                f"stage '{stage.name}': a new adapter adds nothing before it is trained, yet it changed the "
                "decoder's outputs; use earlier_adapter: merge instead"
            )
    model.to(model.device)


def _set_layers(model: EmbeddingModel, recipe: Recipe, stage: Stage) -> None:
    """Let so many layers run as the stage says; those that are added change nothing yet."""
    if all(one.layers is None for one in recipe.stages):
        return
    depth = model.depth = model.depth or Depth(model.decoder)
    first = stage is recipe.stages[0]
    before = None if first else _states(model)
    added = depth.set(stage.layers)
    if before is not None and added and not torch.equal(_states(model), before):
        raise EmbedforgeError(
            f"stage '{stage.name}': the layers that it adds should have no effect before they are trained, "
            "yet they changed the decoder's outputs; leave `layers` of the stages out"
        )


def model_after(recipe: Recipe, done: Sequence[Path], device: str | None = None) -> EmbeddingModel:
    """Build the model as the first stages of a run left it, its last adapter not merged.

    Args:
        recipe: of the run.
        done: what each of the stages kept, from the first: the weights that it trained.
        device: as for `prepare_model`.
    """
    model = prepare_model(recipe, device)
    for stage, weights in zip(recipe.stages, done, strict=False):
        begin_stage(model, recipe, stage)
        take_result(model, stage, weights)
    return model


def take_result(model: EmbeddingModel, stage: Stage, weights: Path) -> None:
    """Put into the model what a finished stage has left: what it trained, or all of what it merged.

    Raises:
        EmbedforgeError: the file is damaged, or of another model.
    """
    if stage.objective.unit != "models":
        load_trainable(model, weights)
        return
    if isinstance(model.decoder, PeftModel):
        model.decoder = model.decoder.unload()
    load_whole(model, weights)


@singledispatch
def work_of(
    objective: Objective, model: EmbeddingModel, recipe: Recipe, stage: Stage, mixture: Mixture
) -> Work:
    """Return what a stage does in a step, by its objective; register a function for a kind of your own.

    Raises:
        EmbedforgeError: no function is registered for this kind of objective.
    """
    raise EmbedforgeError(
        f"stage '{stage.name}': nothing is known to train objective '{objective.kind}': register what makes "
        f"its Work for {type(objective).__name__} with @embedforge.train.stages.work_of.register"
    )


@work_of.register
def _(
    objective: PairObjective, model: EmbeddingModel, recipe: Recipe, stage: Stage, mixture: Mixture
) -> Work:
    return ContrastiveWork(model, stage, mixture, stage_seed(recipe, stage))


@work_of.register
def _(
    objective: VectorObjective, model: EmbeddingModel, recipe: Recipe, stage: Stage, mixture: Mixture
) -> Work:
    return TermsWork(model, recipe, stage, mixture, stage_seed(recipe, stage))


@work_of.register
def _(objective: SimCSE, model: EmbeddingModel, recipe: Recipe, stage: Stage, mixture: Mixture) -> Work:
    return SimcseWork(model, stage, mixture, stage_seed(recipe, stage))


@work_of.register
def _(objective: Mntp, model: EmbeddingModel, recipe: Recipe, stage: Stage, mixture: Mixture) -> Work:
    head = load_head(recipe.model.base, model.decoder)
    return MntpWork(model, head, stage, mixture, stage_seed(recipe, stage))


def check_batch(model: EmbeddingModel) -> dict[str, Tensor]:
    """Return a few texts, on the model's device, by which a merge is checked."""
    batch = model.renderer.batch(
        ["A text to check the merge with.", "Another one, somewhat longer than the first."]
    )
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


@torch.no_grad()
def _states(model: EmbeddingModel) -> Tensor:
    """Token states of the check texts, in eval mode."""
    model.eval()
    batch = check_batch(model)
    return model.token_states(batch["input_ids"], batch["attention_mask"])


def stage_seed(recipe: Recipe, stage: Stage) -> int:
    """Return the seed of a stage: other numbers than those of the stages before and after."""
    return mix_seeds(recipe.seed, recipe.stages.index(stage))
