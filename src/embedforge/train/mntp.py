"""The steps of a stage of masked next token prediction, and the same loss on held-out text.

texts --rendered, joined, cut--> chunks --some tokens hidden--> decoder --head--> loss at the hidden tokens
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from embedforge.data.example import Example
from embedforge.data.mixture import Mixture
from embedforge.data.order import Plan, Visit, rows_per_epoch, visits
from embedforge.data.packing import Chunks, pack
from embedforge.errors import EmbedforgeError
from embedforge.model.decoder import token_states
from embedforge.model.encoder import EmbeddingModel
from embedforge.model.language_head import LanguageModelHead
from embedforge.model.mask_token import mask_token_id
from embedforge.objectives.mntp import NO_LABEL, mask_tokens, mntp_loss, predictions_of
from embedforge.recipe import Stage
from embedforge.recipe.objectives import Mntp
from embedforge.runtime import out_of_memory
from embedforge.text.render import Renderer
from embedforge.train.work import StepFigures, Work, mix_seeds

MASKS = 1 << 40
"""Beside a step's number, what sets the seed of its masks apart from those of dropout (the rank)."""
TEXTS_AT_ONCE = 1000
logger = logging.getLogger(__name__)


class MntpModule(nn.Module):
    """A decoder under its language-model head: tokens with gaps in, losses at the gaps out."""

    def __init__(self, decoder: nn.Module, head: LanguageModelHead) -> None:
        super().__init__()
        self.decoder, self.head = decoder, head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, targets: Tensor
    ) -> Tensor:
        """Return [predictions] float32; `positions` and `targets` int64 [predictions] of `predictions_of`."""
        states = token_states(self.decoder, input_ids, attention_mask).flatten(0, 1)
        return mntp_loss(self.head(states[positions]), targets)


@dataclass(frozen=True)
class Masked:
    """Chunks with gaps in them; all int64 [rows, tokens] on the CPU."""

    seen: Tensor
    """What the decoder sees."""
    labels: Tensor
    """What it has to find, -100 where nothing."""
    attention: Tensor
    """0 on padding."""

    def inputs(self, rows: list[int]) -> dict[str, Tensor]:
        """Return the arguments of `MntpModule` for some of the rows."""
        positions, targets = predictions_of(self.labels[rows])
        return {
            "input_ids": self.seen[rows],
            "attention_mask": self.attention[rows],
            "positions": positions,
            "targets": targets,
        }


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden."""

    objective: Mntp
    mask_id: int
    vocabulary: int
    """Random tokens are drawn below this."""

    def hide(self, chunks: Rows, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what the decoder sees and the labels, int64 [rows, tokens] each."""
        return mask_tokens(
            chunks.ids,
            chunks.maskable,
            mask_id=self.mask_id,
            vocabulary=self.vocabulary,
            probability=self.objective.probability,
            style=self.objective.style,
            generator=generator,
        )


@dataclass(frozen=True)
class Rows:
    """Some chunks as tensors on the CPU, as long as the longest of them."""

    ids: Tensor
    """int64 [rows, tokens]"""
    maskable: Tensor
    """bool [rows, tokens]"""
    attention: Tensor
    """int64 [rows, tokens], 0 on padding."""

    @classmethod
    def of(cls, picked: Sequence[tuple[Chunks, int]]) -> Rows:
        """Stack rows of one or more sets of chunks."""
        lengths = torch.tensor([int(chunks.lengths[row]) for chunks, row in picked])
        longest = int(lengths.max())
        ids = torch.stack([torch.from_numpy(chunks.ids[row, :longest]) for chunks, row in picked])
        maskable = torch.stack([torch.from_numpy(chunks.maskable[row, :longest]) for chunks, row in picked])
        attention = torch.arange(longest) < lengths.unsqueeze(1)
        return cls(ids.long(), maskable, attention.long())


class MntpWork(Work):
    """Predicts hidden tokens; every prediction of a step counts the same, whichever rank makes it."""

    def __init__(
        self, model: EmbeddingModel, head: LanguageModelHead, stage: Stage, mixture: Mixture, seed: int
    ) -> None:
        """Join and cut the texts of every source.

        Raises:
            EmbedforgeError: a source without anything to predict, too few chunks for a step, or a mask token
                that is none.
        """
        super().__init__(MntpModule(model.decoder, head), stage, seed)
        self.masking = masking_of(model, mntp_settings(stage))
        self.tokenizer = model.tokenizer
        self.chunks = [chunks_of(model, mntp_settings(stage), *item) for item in mixture.examples.items()]
        sizes = tuple(len(chunks) for chunks in self.chunks)
        names = mixture.plan.names
        self.plan = Plan(
            seed=mixture.plan.seed,
            names=names,
            sizes=sizes,
            counts=tuple(
                rows_per_epoch(size, mixture.weights[name]) for name, size in zip(names, sizes, strict=True)
            ),
            batch_queries=stage.batch_queries,
            batches=stage.mix.batches,
        )
        self.plan.require_that_a_batch_fits("chunks")

    @override
    def step(self, model: nn.Module, number: int) -> StepFigures:
        picked = visits(self.plan, number)
        rows = Rows.of([(self.chunks[visit.source], visit.row) for visit in picked])
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, number, MASKS))
        masked = Masked(*self.masking.hide(rows, generator), rows.attention)
        self.seed_dropout(number)
        sums = self._backward(model, masked)
        counts = (masked.labels[:, 1:] != NO_LABEL).sum(dim=1)
        own = slice(self.context.rank, None, self.context.world)
        return StepFigures(
            loss=sums.sum() / counts.sum(),
            losses=(sums / counts).tolist(),
            sources=[self.plan.names[visit.source] for visit in picked],
            text=lambda row: self._text(picked[row]),
            tokens=int(rows.attention[own].sum()),
            padded_tokens=rows.attention[own].numel(),
        )

    def _backward(self, model: nn.Module, masked: Masked) -> Tensor:
        """Leave the step's gradient; return each chunk's summed loss, [rows] float64 on the CPU."""
        if self.context.world == 1:
            return self.within_memory(
                lambda budget: self._attempt(model, masked, budget),
                longest=masked.seen.shape[1],
                zero_grad=model.zero_grad,
            )
        try:
            sums = self._attempt(model, masked, self.tokens_per_micro_batch).to(self.context.device)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise EmbedforgeError(
                "out of memory on one of several ranks, where the step cannot be repeated: lower the stage's "
                "tokens_per_micro_batch"
            ) from error
        dist.all_reduce(sums)
        return sums.cpu()

    def _attempt(self, model: nn.Module, masked: Masked, budget: int) -> Tensor:
        """Run this rank's chunks in micro-batches of at most `budget` tokens; as `_backward`."""
        rows, tokens = masked.seen.shape
        rank, world = self.context.rank, self.context.world
        scale = world / int((masked.labels[:, 1:] != NO_LABEL).sum())  # DDP averages over the ranks
        sums = torch.zeros(rows, dtype=torch.float64)
        batches = micro_batches_of_rank(rows, max(1, budget // tokens), rank, world)
        for number, (own, share) in enumerate(batches):
            last = number == len(batches) - 1
            inputs = masked.inputs(own)
            with contextlib.nullcontext() if last else self.context.no_sync(model):
                with self.context.precision():
                    losses = model(**self.context.to_device(inputs))
                self.context.accumulate(losses.sum() * (share * scale))
            owners = torch.tensor(own)[inputs["positions"] // tokens]
            sums.index_add_(0, owners, share * losses.detach().double().cpu())
        return sums

    def _text(self, visit: Visit) -> str:
        chunks = self.chunks[visit.source]
        return self.tokenizer.decode(chunks.ids[visit.row, : chunks.lengths[visit.row]].tolist())


def micro_batches_of_rank(rows: int, size: int, rank: int, world: int) -> list[tuple[list[int], float]]:
    """Return a rank's rows of a step in batches of `size`, each with the factor of its loss.

    All ranks get equally many: one that has no rows left repeats a row of the step with factor 0.

    >>> micro_batches_of_rank(5, 2, rank=0, world=2), micro_batches_of_rank(5, 2, rank=1, world=2)
    ([([0, 2], 1.0), ([4], 1.0)], [([0], 0.0), ([1, 3], 1.0)])
    """
    own = list(range(rows))[rank::world]
    batches = [(own[start : start + size], 1.0) for start in range(0, len(own), size)]
    most = math.ceil(math.ceil(rows / world) / size)
    return [([0], 0.0)] * (most - len(batches)) + batches


def mntp_settings(stage: Stage) -> Mntp:
    """Return the objective of a stage of masked next token prediction."""
    assert isinstance(stage.objective, Mntp)
    return stage.objective


def masking_of(model: EmbeddingModel, objective: Mntp) -> Masking:
    """Return how an objective hides tokens from this model.

    Raises:
        EmbedforgeError: its mask token is not one token that the decoder knows.
    """
    rows = model.decoder.get_input_embeddings().num_embeddings
    vocabulary = min(rows, len(model.tokenizer))
    return Masking(objective, mask_token_id(model.tokenizer, objective.mask_token, rows), vocabulary)


def chunks_of(model: EmbeddingModel, objective: Mntp, name: str, texts: Sequence[Example]) -> Chunks:
    """Join the texts of a source and cut them into the objective's chunks.

    Texts are rendered bare: BOS and EOS as in the contract, the instruction where the text has one, but no
    template. Only tokens of the text itself are ever hidden.

    Raises:
        EmbedforgeError: there is nothing to predict in them.
    """
    tokens = objective.chunk_tokens or model.contract.max_tokens
    try:
        chunks = pack(_rendered(model, texts), chunk_tokens=tokens, pad_id=model.renderer.pad_id)
    except EmbedforgeError as error:
        raise EmbedforgeError(f"source '{name}': {error}") from None
    if chunks.dropped:
        logger.warning(
            "source '%s': %d of %d chunks are left out, for there is nothing to predict in them",
            name,
            chunks.dropped,
            chunks.dropped + len(chunks),
        )
    return chunks


def _rendered(model: EmbeddingModel, texts: Sequence[Example]) -> Iterator[tuple[list[int], list[int]]]:
    contract = model.contract.model_copy(
        update={
            "max_tokens": sys.maxsize,  # what is too long for an embedding is cut into chunks here
            "text_max_tokens": None,
            "chat_template": "{text}",
            "document_template": "{text}",
            "pool_instruction": False,
            "pool_bos": "never",
            "pool_eos": False,
        }
    )
    renderer = Renderer(model.tokenizer, contract)
    special = set(model.tokenizer.all_special_ids)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        rendered = renderer.render(
            [text.query for text in some], [contract.document_prefix(text.instruction) for text in some]
        )
        for text in rendered:
            # A text without a token of its own pools its EOS: nothing of it may be hidden.
            ids = zip(text.input_ids, text.pooling_mask, strict=True)
            yield text.input_ids, [int(pooled and token not in special) for token, pooled in ids]


@torch.no_grad()
def held_out_losses(
    model: EmbeddingModel,
    head: LanguageModelHead,
    objective: Mntp,
    chunks: Chunks,
    *,
    seed: int = 0,
    tokens_per_batch: int = 4096,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Predict hidden tokens of held-out chunks, in eval mode; the same tokens for every model.

    Returns:
        The summed loss, in nats, and the number of predictions of each chunk; both [chunks].
    """
    module, training = MntpModule(model.decoder, head), model.training
    model.eval()
    masking, generator = masking_of(model, objective), torch.Generator().manual_seed(seed)
    size = max(1, tokens_per_batch // chunks.ids.shape[1])
    sums, counts = [], []
    for start in range(0, len(chunks), size):
        rows = Rows.of([(chunks, row) for row in range(start, min(start + size, len(chunks)))])
        masked = Masked(*masking.hide(rows, generator), rows.attention)
        inputs = masked.inputs(list(range(len(rows.ids))))
        losses = module(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
        total = torch.zeros(len(rows.ids), dtype=torch.float64)
        total.index_add_(0, inputs["positions"] // rows.ids.shape[1], losses.double().cpu())
        sums.append(total)
        counts.append((masked.labels[:, 1:] != NO_LABEL).sum(dim=1))
    model.train(training)
    return torch.cat(sums).numpy(), torch.cat(counts).numpy()
