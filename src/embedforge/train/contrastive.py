"""The steps of a contrastive stage, and of SimCSE, which is one whose documents are the queries again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from typing_extensions import override

from embedforge.data.mixture import Mixture
from embedforge.data.step import Step
from embedforge.errors import EmbedforgeError
from embedforge.model.adapter import is_no_op
from embedforge.model.dropout import (
    attention_dropout,
    dropout_sources,
    passes_differ,
    require_attention_dropout,
)
from embedforge.model.encoder import EmbeddingModel
from embedforge.model.packing import PART_COST, packs
from embedforge.objectives.contrastive import candidate_mask, info_nce
from embedforge.objectives.gradcache import backward
from embedforge.recipe import Stage
from embedforge.recipe.objectives import Contrastive, Objective, PairObjective, SimCSE
from embedforge.text.render import Rendered
from embedforge.train.batches import Share, TextCache, render_step, render_views, share_of_step
from embedforge.train.held import HeldTokens
from embedforge.train.teacher import Teaching
from embedforge.train.work import StageContext, StepFigures, Work


@dataclass(frozen=True)
class StepVectors:
    """All vectors of a step, and which document is whose candidate: what a loss is made from."""

    queries: Tensor
    """[Q, D] float32, of unit length if the contract says so."""
    documents: Tensor
    """[M, D], all positives and negatives."""
    positive: Tensor
    """int64 [Q], the row of each query's positive in `documents`."""
    candidates: Tensor
    """bool [Q, M], True where a document stands in the query's denominator (`candidate_mask`)."""


@singledispatch
def query_losses(objective: Objective, step: StepVectors) -> Tensor:
    """Return each query's loss, [Q]; their mean is trained on. A pure function of the vectors.

    For a loss of your own, register a function for its settings, a subclass of `PairObjective`. It is given
    the whole step on every rank, and its gradient is that of the whole step for any size of micro-batch and
    any number of ranks (`objectives.gradcache`).

    Raises:
        EmbedforgeError: no function is registered for this kind of objective.
    """
    raise EmbedforgeError(
        f"objective '{objective.kind}' has no loss: register a function for {type(objective).__name__} with "
        "@embedforge.train.contrastive.query_losses.register"
    )


@query_losses.register(Contrastive)
@query_losses.register(SimCSE)
def _(objective: Contrastive | SimCSE, step: StepVectors) -> Tensor:
    return info_nce(step.queries, step.documents, step.positive, step.candidates, objective.temperature)


class ContrastiveWork(Work):
    """Embeds a step's queries and documents and contrasts them (GradCache where memory asks for it)."""

    def __init__(self, model: EmbeddingModel, stage: Stage, mixture: Mixture, seed: int) -> None:
        super().__init__(model, stage, seed)
        self.model, self.mixture = model, mixture
        self.packed = False
        self.texts = TextCache()
        self.held = HeldTokens()

    @override
    def prepare(self, teaching: Teaching, folder: Path, resuming: bool) -> None:
        """Recall how much of a step is held in memory, if this stage has decided that already."""
        super().prepare(teaching, folder, resuming)
        self.held = HeldTokens(folder)

    @override
    def begin(self, context: StageContext) -> None:
        """Find out whether the model takes texts without padding."""
        super().begin(context)
        with context.precision():
            self.packed = packs(self.model)

    @override
    def step(self, model: nn.Module, number: int) -> StepFigures:
        step = self.mixture.step(number)
        rendered = self.render(step)
        self.seed_dropout(number)
        per_query = torch.zeros(len(step.positive))
        loss_of = self._loss(step, per_query)
        loss, share = self.within_memory(
            lambda budget: self._backward(model, rendered, budget, loss_of),
            longest=max(len(text.input_ids) for text in rendered),
            zero_grad=model.zero_grad,
        )
        return StepFigures(
            loss=loss,
            losses=per_query.tolist(),
            sources=step.sources,
            text=lambda row: step.texts[row].text,
            tokens=share.tokens,
            padded_tokens=share.padded_tokens,
        )

    def render(self, step: Step) -> list[Rendered]:
        """Render the step's texts, queries first."""
        return render_step(self.model, step, self.stage, self.texts)

    def _loss(self, step: Step, per_query: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the step's loss as a function of all its embeddings; notes each query's in `per_query`."""
        device, queries = self.context.device, len(step.positive)
        candidates = step_candidates(step, self.stage, self.context.world).to(device)
        positive = torch.as_tensor(step.positive, device=device)

        def loss(embeddings: Tensor) -> Tensor:
            vectors = StepVectors(embeddings[:queries], embeddings[queries:], positive, candidates)
            losses = query_losses(self.stage.objective, vectors)
            per_query.copy_(losses.detach())
            return losses.mean()

        return loss

    def _backward(
        self, model: nn.Module, rendered: list[Rendered], budget: int, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Share]:
        """One attempt at a step, with micro-batches of at most `budget` tokens."""
        context = self.context
        share = share_of_step(
            self.model.renderer,
            rendered,
            budget,
            context.rank,
            context.world,
            packed=self.packed,
            # On a GPU attention is one call, whatever the lengths.
            part_cost=0 if context.device.type == "cuda" else PART_COST,
        )

        def embed(batch: dict[str, Tensor]) -> Tensor:
            with context.precision():
                return model(**context.to_device(batch))

        value, _ = backward(
            embed,
            share.batches,
            share.rows,
            loss,
            accumulate=context.accumulate,
            no_sync=lambda: context.no_sync(model),
            filler=share.filler,
            one_pass=self._holds(embed, share, budget),
        )
        return value, share

    def _holds(self, embed: Callable[[dict[str, Tensor]], Tensor], share: Share, budget: int) -> bool:
        """Say whether memory holds the graphs of all micro-batches; of fewer once it has not sufficed."""
        stage, world = self.stage, self.context.world
        if len(share.batches) < 2 or world > 1:
            return False
        held = stage.tokens_held
        if held is None:
            first = share.batches[0]  # the longest texts, whose attention takes most
            held = self.held.tokens(lambda: embed(first), first["input_ids"].numel(), self.model)
        return share.padded_tokens <= held * budget // stage.tokens_per_micro_batch


class SimcseWork(ContrastiveWork):
    """Embeds every text twice; the two views differ by dropout alone (arXiv 2104.08821)."""

    @override
    def begin(self, context: StageContext) -> None:
        """Refuse a model without dropout: two equal views have nothing to say about what is alike."""
        super().begin(context)
        if self._attention_dropout:
            require_attention_dropout(self.model.decoder)
        batch = self.model.renderer.batch([self.mixture.step(0).texts[0].text])
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}  # not yet in shards
        self.model.train()
        with attention_dropout(self.model.decoder, self._attention_dropout):
            differ = passes_differ(lambda batch: self.model(**batch), batch)
        if not differ and not _waits_for_its_adapter(self.model.decoder):
            raise EmbedforgeError(
                f"stage '{self.stage.name}': simcse compares two passes that differ in dropout alone, "
                "and there is none: set objective.attention_dropout (0.3 in LLM2Vec), or give the model "
                "an adapter with dropout"
            )

    @override
    def step(self, model: nn.Module, number: int) -> StepFigures:
        with attention_dropout(self.model.decoder, self._attention_dropout):
            return super().step(model, number)

    @override
    def render(self, step: Step) -> list[Rendered]:
        return render_views(self.model, step, self.stage)

    @property
    def _attention_dropout(self) -> float:
        assert isinstance(self.stage.objective, SimCSE)
        return self.stage.objective.attention_dropout


def _waits_for_its_adapter(decoder: nn.Module) -> bool:
    """Say whether dropout is only hidden by a new adapter, which adds nothing until its first step."""
    new = isinstance(decoder, PeftModel) and is_no_op(decoder)
    return new and any(source.startswith("LoRA") for source in dropout_sources(decoder))


def step_candidates(step: Step, stage: Stage, world: int) -> Tensor:
    """Return the candidate mask [queries, documents] of a step under the stage's objective."""
    objective = stage.objective
    assert isinstance(objective, PairObjective | SimCSE)
    shard = None if objective.gather or world == 1 else np.arange(len(step.positive)) % world
    masked = objective.mask_false_negatives
    return candidate_mask(
        step.owner,
        step.is_positive,
        step.in_batch_allowed,
        objective.in_batch,
        query_keys=step.query_keys if masked else None,
        document_keys=step.document_keys if masked else None,
        positive_keys=step.positive_keys if masked else None,
        shard=shard,
    )
