"""A step's texts as micro-batches, packed or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from embedforge.data.step import Step, Text
from embedforge.model.encoder import EmbeddingModel
from embedforge.model.packing import PART_COST, joined, micro_batches_of
from embedforge.recipe import Stage
from embedforge.text.batching import micro_batches
from embedforge.text.contract import Contract
from embedforge.text.render import Rendered, Renderer

MOST_CACHED = 50_000_000
"""Tokens of texts that are kept: 250 MB."""


class Frame(NamedTuple):
    """A text, what stands before and after it, and its limit of tokens: what decides about its tokens."""

    prefix: str
    text: str
    suffix: str
    limit: int | None


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


class TextCache:
    """Texts as tokens, so that each is tokenised once in a stage, however many epochs that has.

    They are found by all that decides about them: the text, what stands around it, and its limit.
    """

    def __init__(self, most_tokens: int = MOST_CACHED) -> None:
        self.room = most_tokens
        self._tokens: dict[Frame, tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], int]] = {}

    def render(self, renderer: Renderer, frames: Sequence[Frame]) -> list[Rendered]:
        """Render what is not known yet, in one call for each limit, and return all of it."""
        fresh: dict[Frame, Rendered] = {}
        for limit in dict.fromkeys(frame.limit for frame in frames):
            new = [one for one in dict.fromkeys(frames) if one.limit == limit and one not in self._tokens]
            if new:
                found = renderer.render(
                    [one.text for one in new],
                    [one.prefix for one in new],
                    suffix=[one.suffix for one in new],
                    max_tokens=limit,
                )
                fresh |= dict(zip(new, found, strict=True))
        for frame, rendered in fresh.items():
            if len(rendered.input_ids) <= self.room:
                self.room -= len(rendered.input_ids)
                ids = np.array(rendered.input_ids, dtype=np.int32)
                self._tokens[frame] = ids, np.array(rendered.pooling_mask, dtype=np.bool_), rendered.cut
        return [fresh.get(frame) or self._recall(frame) for frame in frames]

    def _recall(self, frame: Frame) -> Rendered:
        ids, mask, cut = self._tokens[frame]
        return Rendered(ids.tolist(), mask.astype(int).tolist(), cut)


def render_step(
    model: EmbeddingModel, step: Step, stage: Stage, cache: TextCache | None = None
) -> list[Rendered]:
    """Render all texts of a step: queries first, then documents, each under its own token limit."""
    contract, queries = model.contract, len(step.positive)
    limits = [stage.query_max_tokens] * queries
    limits += [stage.document_max_tokens] * (len(step.texts) - queries)
    frames = [
        Frame(prefix, text.text, suffix, limit)
        for text, limit in zip(step.texts, limits, strict=True)
        for prefix, suffix in [_frame(contract, text)]
    ]
    return (cache or TextCache()).render(model.renderer, frames)


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
    renderer: Renderer,
    rendered: list[Rendered],
    tokens_per_micro_batch: int,
    rank: int,
    world: int,
    *,
    packed: bool = False,
    part_cost: float = PART_COST,
) -> Share:
    """Cut this rank's part of a step's texts into micro-batches, queries and documents together.

    Texts are dealt out by length, so that ranks get equal work; the partition does not touch the gradient.

    Args:
        renderer: pads.
        rendered: all texts of the step.
        tokens_per_micro_batch: at most, padding included; a longer text stands alone.
        rank: whose part.
        world: the number of ranks.
        packed: texts of several lengths may go through the decoder as one row of tokens (`model.packing`).
        part_cost: of another length in such a row, in tokens.
    """
    by_length = sorted(range(len(rendered)), key=lambda row: -len(rendered[row].input_ids))
    own = by_length[rank::world]
    lengths = [len(rendered[row].input_ids) for row in own]
    if packed:
        cuts = micro_batches_of(lengths, tokens_per_micro_batch, part_cost)
    else:
        cuts = [[batch] for batch in micro_batches(lengths, tokens_per_micro_batch)]
    batches, rows = [], []
    for rectangles in cuts:
        parts = [renderer.pad([rendered[own[index]] for index in texts]) for texts in rectangles]
        batches.append(joined(parts) if len(parts) > 1 else parts[0])
        rows.append([own[index] for texts in rectangles for index in texts])
    return Share(
        batches=batches,
        rows=rows,
        filler=renderer.pad([rendered[by_length[-1]]]),
        tokens=sum(lengths),
        padded_tokens=sum(batch["input_ids"].numel() for batch in batches),
    )
