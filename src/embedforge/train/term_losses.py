"""What each term of an objective makes of a step's vectors. Pure functions, run inside GradCache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedforge.data.step import Step
from embedforge.errors import EmbedforgeError
from embedforge.objectives.cosent import cosent
from embedforge.objectives.distill import relational_losses, target_losses
from embedforge.objectives.spread_out import spread_out
from embedforge.recipe import Stage
from embedforge.recipe.objectives import Objective, PairObjective
from embedforge.recipe.terms import Cosent, Distill, Matryoshka, SpreadOut, Sum, vector_terms
from embedforge.train.contrastive import StepVectors, query_losses, step_candidates


@dataclass(frozen=True)
class Rows:
    """Which texts of a step are embedded, and where the vector of each text then stands.

    A row of a source of texts is a query and its own positive, one text, and is embedded once.
    """

    kept: list[int]
    """Of `Step.texts`, those that are embedded, U of them."""
    place: list[int]
    """[Q + M], of each text the place of its vector among the kept ones."""
    owner: list[int]
    """[U], the query each belongs to."""

    @classmethod
    def of(cls, step: Step, texts_alone: Sequence[str]) -> Rows:
        """Lay out a step, some of whose sources hold texts alone.

        Such a text is embedded as a query where it has an instruction, else as a document.
        """
        queries = len(step.positive)
        stands_for: dict[int, int] = {}
        for row, source in enumerate(step.sources):
            if source in texts_alone:
                document = queries + int(step.positive[row])
                as_query = bool(step.texts[row].instruction)
                stands_for |= {document: row} if as_query else {row: document}
        kept = [text for text in range(len(step.texts)) if text not in stands_for]
        places = {text: place for place, text in enumerate(kept)}
        owner = [*range(queries), *step.owner.tolist()]
        return cls(
            kept=kept,
            place=[places[stands_for.get(text, text)] for text in range(len(step.texts))],
            owner=[owner[text] for text in kept],
        )


@dataclass(frozen=True)
class TermVectors:
    """A step as its terms see it."""

    step: Step
    stage: Stage
    world: int
    rows: Rows
    own: Tensor
    """[U, D] float32: the vectors that the model gives, of unit length if the contract says so."""
    mapped: Tensor | None = None
    """[U, T]: those that are compared with the targets, where they are others."""
    targets: Tensor | None = None
    """[U, T] of unit length."""
    has_target: Tensor | None = None
    """bool [U]"""
    dims: int | None = None
    """The beginning of the targets that `own` is compared with, where it has been cut."""
    note: Callable[[str, float], None] = lambda kind, loss: None
    """Told the mean loss of each term of a sum, by its kind, of whole vectors."""


@singledispatch
def term_losses(objective: Objective, step: TermVectors) -> Tensor:
    """Return each query's loss, [Q]; their mean is trained on. A pure function of the vectors.

    Raises:
        EmbedforgeError: no function is registered for this kind of objective.
    """
    raise EmbedforgeError(
        f"objective '{objective.kind}' cannot be a term: register a function for {type(objective).__name__} "
        "with @embedforge.train.term_losses.term_losses.register, or make it a PairObjective"
    )


@term_losses.register
def _(objective: PairObjective, step: TermVectors) -> Tensor:
    vectors = step.own[torch.tensor(step.rows.place, device=step.own.device)]
    queries, device = len(step.step.positive), vectors.device
    stage = step.stage.model_copy(update={"objective": objective})
    losses = query_losses(
        objective,
        StepVectors(
            vectors[:queries],
            vectors[queries:],
            torch.as_tensor(step.step.positive, device=device),
            step_candidates(step.step, stage, step.world).to(device),
        ),
    )
    scored = torch.as_tensor(~np.isnan(step.step.scores), device=device)
    return losses.masked_fill(scored, 0.0)  # a pair with a score is no query with its answer


@term_losses.register
def _(objective: Cosent, step: TermVectors) -> Tensor:
    """One loss of all scored pairs of the step, which every query is given."""
    queries, device = len(step.step.positive), step.own.device
    vectors = step.own[torch.tensor(step.rows.place, device=device)]
    rows = np.flatnonzero(~np.isnan(step.step.scores))
    chosen = torch.as_tensor(rows, device=device)
    answers = queries + torch.as_tensor(step.step.positive[rows], device=device)
    loss = cosent(
        vectors[chosen],
        vectors[answers],
        torch.as_tensor(step.step.scores[rows], dtype=torch.float32, device=device),
        [step.step.sources[row] for row in rows],
        objective.temperature,
    )
    return loss.expand(queries)


@term_losses.register
def _(objective: Sum, step: TermVectors) -> Tensor:
    total = torch.zeros(len(step.step.positive), dtype=step.own.dtype, device=step.own.device)
    for term in vector_terms(objective):
        losses = term_losses(term, step)
        if step.dims is None:
            step.note(term.kind, float(losses.detach().mean()))
        total = total + term.weight * losses
    return total


@term_losses.register
def _(objective: Matryoshka, step: TermVectors) -> Tensor:
    """The weighted mean over the whole vector and its beginnings."""
    weights = objective.weights or (1.0,) * len(objective.dims)
    total = term_losses(objective.objective, step)
    for dims, weight in zip(objective.dims, weights, strict=True):
        cut = replace(step, own=functional.normalize(step.own[:, :dims], dim=-1), dims=dims)
        total = total + weight * term_losses(objective.objective, cut)
    return total / (1 + sum(weights))


@term_losses.register
def _(objective: Distill, step: TermVectors) -> Tensor:
    """The mean over all texts that have a target, dealt out to the queries that they belong to."""
    assert step.targets is not None
    assert step.has_target is not None
    own, targets = step.own[step.has_target], step.targets[step.has_target]
    losses = torch.zeros(len(own), dtype=own.dtype, device=own.device)
    if objective.loss != "none":
        mapped, aims = own, targets if step.dims is None else targets[:, : step.dims]
        if step.mapped is not None:  # A map that is dropped has the whole vector for its input.
            mapped, aims = step.mapped[step.has_target], targets
        losses = losses + target_losses(mapped, aims, objective.loss)
    if objective.relational:
        how, temperature = objective.relational_loss, objective.relational_temperature
        losses = losses + objective.relational * relational_losses(own, targets, how, temperature)
    queries = len(step.step.positive)
    owner = torch.tensor(step.rows.owner, device=own.device)[step.has_target]
    by_query = torch.zeros(queries, dtype=losses.dtype, device=own.device).index_add(0, owner, losses)
    return by_query * (queries / max(1, len(own)))


@term_losses.register
def _(objective: SpreadOut, step: TermVectors) -> Tensor:
    """The regulariser of the queries and that of the positives, whose mean every query is given."""
    queries = len(step.step.positive)
    place = torch.tensor(step.rows.place, device=step.own.device)
    apart = strangers(step.step).to(step.own.device)
    positives = place[queries + torch.as_tensor(step.step.positive, device=place.device)]
    sides = [spread_out(step.own[rows], apart) for rows in (place[:queries], positives)]
    return torch.stack(sides).mean().expand(queries)


def strangers(step: Step) -> Tensor:
    """Return which rows of a step do not match: bool [Q, Q].

    Not those with a text in common, and not those of sources whose rows may answer each other's queries
    (in_batch_negatives: false).
    """
    texts = [
        {*query, *positives} for query, positives in zip(step.query_keys, step.positive_keys, strict=True)
    ]
    disjoint = torch.tensor([[not one & other for other in texts] for one in texts], dtype=torch.bool)
    allowed = torch.from_numpy(step.in_batch_allowed)
    apart = disjoint & allowed[:, None] & allowed[None, :]
    return apart.fill_diagonal_(False)
