"""A step's texts as padded micro-batches, and its candidate mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedforge.data.step import Step, Text
from embedforge.model.encoder import EmbeddingModel
from embedforge.recipe import Stage
from embedforge.text.batching import micro_batches
from embedforge.text.contract import Contract
from embedforge.text.render import Rendered, Renderer


@dataclass(frozen=True)
class Share:
    """One rank's texts of a step, as micro-batches."""

    batches: list[dict[str, torch.Tensor]]
    rows: list[list[int]]
    """Per micro-batch, which of the step's texts stand in it."""
    filler: dict[str, torch.Tensor]
    """The step's shortest text: what a rank embeds when it has nothing of its own to do."""
    tokens: int
    """Real tokens."""
    padded_tokens: int
    """Tokens computed, padding included."""


def render_step(model: EmbeddingModel, step: Step, stage: Stage) -> list[Rendered]:
    """Render all texts of a step: queries first, then documents, each under its own token limit."""
    contract, queries = model.contract, len(step.positive)
    rendered: list[Rendered] = []
    for texts, limit in (
        (step.texts[:queries], stage.query_max_tokens),
        (step.texts[queries:], stage.document_max_tokens),
    ):
        frames = [_frame(contract, text) for text in texts]
        rendered += model.renderer.render(
            [text.text for text in texts],
            [prefix for prefix, _ in frames],
            suffix=[suffix for _, suffix in frames],
            max_tokens=limit,
        )
    return rendered


def render_views(model: EmbeddingModel, step: Step, stage: Stage) -> list[Rendered]:
    """Render the texts of a step of SimCSE, each as a document: all first views, then all second ones."""
    contract, texts = model.contract, step.texts[: len(step.positive)]
    views = model.renderer.render(
        [text.text for text in texts],
        [contract.document_prefix(text.instruction) for text in texts],
        suffix=[contract.document_suffix(text.instruction) for text in texts],
        max_tokens=stage.document_max_tokens,
    )
    return views + views


def _frame(contract: Contract, text: Text) -> tuple[str, str]:
    """Return what stands before and after a text."""
    if text.role == "query":
        return contract.query_prefix(text.instruction), contract.query_suffix(text.instruction)
    return contract.document_prefix(text.instruction), contract.document_suffix(text.instruction)


def share_of_step(
    renderer: Renderer, rendered: list[Rendered], tokens_per_micro_batch: int, rank: int, world: int
) -> Share:
    """Cut this rank's part of a step's texts into padded micro-batches.

    Texts are dealt out by length, so that ranks get equal work; the partition does not touch the gradient.
    """
    by_length = sorted(range(len(rendered)), key=lambda row: -len(rendered[row].input_ids))
    own = by_length[rank::world]
    lengths = [len(rendered[row].input_ids) for row in own]
    rows = [[own[index] for index in batch] for batch in micro_batches(lengths, tokens_per_micro_batch)]
    batches = [renderer.pad([rendered[row] for row in batch]) for batch in rows]
    return Share(
        batches=batches,
        rows=rows,
        filler=renderer.pad([rendered[by_length[-1]]]),
        tokens=sum(lengths),
        padded_tokens=sum(batch["input_ids"].numel() for batch in batches),
    )
