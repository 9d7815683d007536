"""The steps of a stage of distillation, or of several losses at once; and the map from student to teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from embedforge.data.kinds import source_name
from embedforge.data.mixture import Mixture
from embedforge.data.step import Step
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel
from embedforge.model.projection import empty_map
from embedforge.objectives.distill import Ridge
from embedforge.recipe import Recipe, Stage
from embedforge.recipe.terms import Distill, Matryoshka, distillation_of, parts_of
from embedforge.runtime import bfloat16_autocast
from embedforge.text.batching import micro_batches
from embedforge.text.render import Rendered
from embedforge.train.batches import render_step
from embedforge.train.contrastive import ContrastiveWork
from embedforge.train.teacher import Question, Targets, Teaching, targets_of
from embedforge.train.term_losses import Rows, TermVectors, term_losses
from embedforge.train.work import StepFigures, mix_seeds

MAP = 1 << 42
"""Beside a stage's seed, what sets the first weights of its map apart from its steps."""


class WithHead(nn.Module):
    """A model that gives its vectors and, beside them, what a map makes of them: [texts, D + T]."""

    def __init__(self, model: EmbeddingModel, head: nn.Linear) -> None:
        super().__init__()
        self.decoder, self.pooler, self.projection, self.head = (
            model.decoder,
            model.pooler,
            model.projection,
            head,
        )
        self._whole = (model,)  # not as a part: its parameters are there already

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pooling_mask: Tensor,
        rectangles: Tensor | None = None,
    ) -> Tensor:
        """Embed rendered texts: three [texts, tokens] int64 to [texts, D + T] float32."""
        own = self._whole[0](input_ids, attention_mask, pooling_mask, rectangles)
        with torch.autocast(own.device.type, enabled=False):
            return torch.cat([own, self.head(functional.normalize(own, dim=-1))], dim=1)


class TermsWork(ContrastiveWork):
    """Embeds a step's texts and adds up the losses of its terms (GradCache where memory asks for it)."""

    def __init__(
        self, model: EmbeddingModel, recipe: Recipe, stage: Stage, mixture: Mixture, seed: int
    ) -> None:
        super().__init__(model, stage, mixture, seed)
        self.autocast = recipe.training.precision == "bfloat16_autocast"
        self.distill = distillation_of(stage.objective)
        self.texts_alone = [source_name(source) for source in stage.mix.sources if source.texts_alone]
        self.targets: Targets | None = None
        self.by_term: dict[str, float] = {}

    @override
    def prepare(self, teaching: Teaching, folder: Path, resuming: bool) -> None:
        """Get the targets, and a map to them whose first weights are fitted before the first step.

        Raises:
            EmbedforgeError: a teacher that cannot be asked, or a width that does not fit.
        """
        super().prepare(teaching, folder, resuming)
        if self.distill is not None:
            self.targets = targets_of(
                self.distill.teacher,
                self.questions,
                teaching,
                shared=self.distill.cache,
                note=folder / "teachers.json",
            )
            self._make_map(self.distill, self.targets, resuming)
        for part in parts_of(self.stage.objective):
            if isinstance(part, Matryoshka) and max(part.dims) >= self.model.dim:
                raise EmbedforgeError(
                    f"stage '{self.stage.name}': matryoshka has dims {list(part.dims)}, and a whole vector "
                    f"is {self.model.dim} long: name shorter ones"
                )

    @override
    def step(self, model: nn.Module, number: int) -> StepFigures:
        return replace(super().step(model, number), terms=dict(self.by_term))

    @override
    def finish(self) -> None:
        """Drop a map that is not to be kept."""
        if "head" in dict(self.model.named_children()):
            del self.model.head

    def questions(self) -> Iterator[Question]:
        """Yield what the teacher is asked in all steps of the stage, in their order; some of it twice."""
        for number in range(self.stage.steps):
            step = self.mixture.step(number)
            rows = Rows.of(step, self.texts_alone)
            yield from (question for question in self._asked(step, rows) if question is not None)

    @override
    def render(self, step: Step) -> list[Rendered]:
        rendered = render_step(self.model, step, self.stage, self.texts)
        return [rendered[text] for text in Rows.of(step, self.texts_alone).kept]

    @override
    def _loss(self, step: Step, per_query: Tensor) -> Callable[[Tensor], Tensor]:
        device, rows = self.context.device, Rows.of(step, self.texts_alone)
        targets = has_target = None
        if self.targets is not None:
            targets, has_target = self._targets(step, rows, device)

        def loss(embeddings: Tensor) -> Tensor:
            own, mapped = embeddings[:, : self.model.dim], embeddings[:, self.model.dim :]
            vectors = TermVectors(
                step=step,
                stage=self.stage,
                world=self.context.world,
                rows=rows,
                own=own,
                mapped=mapped if mapped.shape[1] else None,
                targets=targets,
                has_target=has_target,
                note=self.by_term.__setitem__,
            )
            losses = term_losses(self.stage.objective, vectors)
            per_query.copy_(losses.detach())
            return losses.mean()

        return loss

    def _asked(self, step: Step, rows: Rows) -> list[Question | None]:
        """Return what the teacher is asked for each kept text, None where the text has no target."""
        assert self.distill is not None
        queries, wanted = len(step.positive), self.distill.texts
        asked: list[Question | None] = []
        for text, owner in zip(rows.kept, rows.owner, strict=True):
            own, source = step.texts[text], step.sources[owner]
            alone = source in self.texts_alone
            positive = text >= queries and step.is_positive[text - queries]
            part = "queries" if text < queries else "positives" if positive else "negatives"
            if part not in wanted and not alone:
                asked.append(None)
                continue
            instruction = own.instruction
            if own.role == "query" or own.instruction or alone:
                instruction = self.distill.instructions.get(source, instruction).strip()
            role = "query" if (own.role == "query" and not alone) or instruction else "document"
            asked.append(Question(role, instruction, own.text))
        return asked

    def _targets(self, step: Step, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return targets [U, T], zeros where there is none, and which texts have one, bool [U]."""
        assert self.targets is not None
        asked = self._asked(step, rows)
        has_target = torch.tensor([question is not None for question in asked])
        found = self.targets.of([question for question in asked if question is not None])
        targets = torch.zeros(len(asked), self.targets.dim)
        targets[has_target] = torch.from_numpy(found)
        return targets.to(device), has_target.to(device)

    # --- the map from student to teacher ------------------------------------------------------------

    def _make_map(self, distill: Distill, targets: Targets, resuming: bool) -> None:
        model, stage = self.model, self.stage.name
        fits = model.dim == targets.dim
        if distill.projection == "none" or (distill.projection == "keep" and model.projection is not None):
            if not fits and distill.loss != "none":
                has, other = ("no map", "keep or drop")
                if model.projection is not None:
                    has, other = ("the map that it has", "drop")
                raise EmbedforgeError(
                    f"stage '{stage}': the model's vectors have {model.dim} numbers with {has}, the "
                    f"teacher's {targets.dim}: set the objective's projection to {other}, or its loss to "
                    "none and train by relational alone"
                )
            return
        width = model.hidden_size if distill.projection == "keep" else model.dim
        mapping = (
            self._first_weights(distill, targets, width) if not resuming else empty_map(width, targets.dim)
        )
        mapping = mapping.to(model.device)
        if distill.projection == "keep":
            model.projection = mapping
        else:
            model.add_module("head", mapping)  # where checkpoints find it
            self.module = WithHead(model, mapping)

    def _first_weights(self, distill: Distill, targets: Targets, width: int) -> nn.Linear:
        """Return the map by ridge regression on the stage's first texts, or a random one."""
        if not distill.ridge_texts:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mix_seeds(self.seed, MAP))
                return nn.Linear(width, targets.dim)
        ridge = Ridge()
        for rendered, asked in self._sample(distill.ridge_texts):
            lengths = [len(text.input_ids) for text in rendered]
            for batch in micro_batches(lengths, self.stage.tokens_per_micro_batch):
                found = torch.from_numpy(targets.of([asked[row] for row in batch]))
                ridge.add(self._inputs(distill, [rendered[row] for row in batch]), found)
        mapping = empty_map(width, targets.dim)
        weight, bias = ridge.solve(distill.ridge_lambda)
        mapping.load_state_dict({"weight": weight, "bias": bias})
        return mapping

    def _sample(self, texts: int) -> Iterator[tuple[list[Rendered], list[Question]]]:
        """Yield the first different texts of the stage that have targets, a step at a time."""
        seen: set[int] = set()
        for number in range(self.stage.steps):
            step = self.mixture.step(number)
            asked = self._asked(step, Rows.of(step, self.texts_alone))
            fresh: dict[int, tuple[Rendered, Question]] = {}
            for rendered, question in zip(self.render(step), asked, strict=True):
                if question is not None and question.key not in seen:
                    fresh.setdefault(question.key, (rendered, question))
            some = list(islice(fresh.values(), texts - len(seen)))
            seen |= fresh.keys()
            if some:
                yield [rendered for rendered, _ in some], [question for _, question in some]
            if len(seen) >= texts:
                return

    @torch.no_grad()
    def _inputs(self, distill: Distill, rendered: list[Rendered]) -> Tensor:
        """Return what the map is given of some texts, without dropout: [texts, width]."""
        model = self.model
        model.eval()
        batch = {name: part.to(model.device) for name, part in model.renderer.pad(rendered).items()}
        with bfloat16_autocast(model.device, self.autocast):
            if distill.projection == "keep":
                return model.pooled(**batch)
            return functional.normalize(model(**batch), dim=-1)
