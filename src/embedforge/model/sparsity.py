"""Pruning of a finished model's weights: which numbers of its linear layers become zero.

magnitude: the smallest by |w|, of a layer's whole matrix (Han et al. 2015, arXiv 1506.02626).
wanda: the smallest by |w| * the length of what its column is fed on sample texts, of each row (Sun et al.
2024, arXiv 2306.11695); layer after layer, each fed by those before it as they are pruned.

Unstructured takes a share of the numbers wherever they are; n:m leaves n of every m neighbours of a row, the
pattern that sparse tensor cores know (2:4). Layers and vocabulary are cut off by prune.py instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embedforge.errors import EmbedforgeError
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.probe import decoder_layers

How = Literal["magnitude", "wanda"]


@dataclass(frozen=True, slots=True)
class Sparsity:
    """How many weights stay: of every `group` neighbours of a row `kept`, or without groups a share."""

    share: float
    """Of the weights that become zero."""
    group: int | None = None
    kept: int | None = None

    @classmethod
    def parse(cls, text: str) -> Sparsity:
        """Read `0.5`, the share that becomes zero, or `2:4`, two of four that stay.

        Raises:
            EmbedforgeError: it is neither.

        >>> Sparsity.parse("2:4").share, Sparsity.parse("0.3").share
        (0.5, 0.3)
        """
        if match := re.fullmatch(r"(\d+):(\d+)", text):
            kept, group = int(match[1]), int(match[2])
            if 0 < kept < group:
                return cls(1 - kept / group, group, kept)
        elif re.fullmatch(r"0?\.\d+", text) and float(text) > 0:
            return cls(float(text))
        raise EmbedforgeError(
            f"sparsity '{text}': give the share of weights that become zero, between 0 and 1 (0.5), or n:m "
            "for n that stay of every m (2:4)"
        )

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}" if self.group is not None else f"{self.share:g}"


def kept_mask(scores: Tensor, sparsity: Sparsity, *, by_row: bool) -> Tensor:
    """Return which weights stay, bool [out, in]: those of the highest scores.

    Args:
        scores: [out, in].
        sparsity: how many stay. Of groups, `kept` of every `group` neighbours of a row.
        by_row: the share is that of every row, not of the matrix.

    Raises:
        EmbedforgeError: the rows cannot be cut into groups.

    >>> kept_mask(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), Sparsity.parse("2:4"), by_row=False).tolist()
    [[False, True, True, False]]
    """
    if sparsity.group is not None and sparsity.kept is not None:
        if scores.shape[1] % sparsity.group:
            raise EmbedforgeError(
                f"sparsity {sparsity}: a layer has rows of {scores.shape[1]} weights, no multiple of "
                f"{sparsity.group}; take a share instead (0.5)"
            )
        rows, dropped = scores.reshape(-1, sparsity.group), sparsity.group - sparsity.kept
    else:
        rows = scores if by_row else scores.reshape(1, -1)
        dropped = round(sparsity.share * rows.shape[1])
    order = rows.argsort(dim=1, stable=True)
    mask = torch.ones_like(rows, dtype=torch.bool).scatter_(1, order[:, :dropped], False)
    return mask.reshape(scores.shape)


def linear_layers(model: EmbeddingModel) -> list[dict[str, nn.Linear]]:
    """Return the linear maps of every layer of the decoder, by name; embeddings and pooler are none.

    Raises:
        EmbedforgeError: there are none.
    """
    found = [
        {name: part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
        for layer in decoder_layers(model.decoder)
    ]
    if not any(found):
        raise EmbedforgeError(
            "the decoder has no layers with linear maps; there is nothing to prune or round"
        )
    return found


@torch.no_grad()
def sparsify(
    model: EmbeddingModel,
    how: How,
    sparsity: Sparsity,
    texts: Sequence[str] = (),
    *,
    texts_per_batch: int = 16,
) -> float:
    """Set weights of the decoder's linear layers to zero, in place; return the share that is zero.

    Args:
        model: in any mode.
        how: see the module.
        sparsity: of every layer alike.
        texts: embedded as documents, for `wanda`; 128 are enough.
        texts_per_batch: of one forward pass.

    Raises:
        EmbedforgeError: wanda without texts; rows that cannot be cut into groups; nothing to prune.
    """
    if how == "wanda" and not texts:
        raise EmbedforgeError("wanda weighs weights by what they are fed: give sample texts (--texts)")
    layers = linear_layers(model)
    batches = list(_batches(model, texts, texts_per_batch)) if how == "wanda" else []
    was_training = model.training
    model.eval()
    zeros = total = 0
    for layer, maps in zip(decoder_layers(model.decoder), layers, strict=True):
        lengths = _input_lengths(model, layer, maps, batches) if how == "wanda" else {}
        for name, linear in maps.items():
            scores = linear.weight.float().abs()
            if how == "wanda":
                scores = scores * lengths[name].to(scores.device)
            linear.weight.mul_(kept_mask(scores, sparsity, by_row=how == "wanda"))
            zeros += int((linear.weight == 0).sum())
            total += linear.weight.numel()
    model.train(was_training)
    return zeros / total


class _Reached(Exception):
    """The layer that is looked at has been run; those behind it need not be."""


def _input_lengths(
    model: EmbeddingModel, layer: nn.Module, maps: dict[str, nn.Linear], batches: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the length of each input of a layer's linear maps over all real tokens: float32 [in] each."""
    squares = {name: torch.zeros(linear.in_features) for name, linear in maps.items()}
    real: Tensor

    def add(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            states = args[0].detach()
            if states.shape[:2] == real.shape:
                states = states[real]
            squares[name] += states.reshape(-1, states.shape[-1]).double().square().sum(0).float().cpu()

        return hook

    def stop(*_: Any) -> None:
        raise _Reached

    handles = [linear.register_forward_pre_hook(add(name)) for name, linear in maps.items()]
    handles.append(layer.register_forward_hook(stop))
    try:
        for batch in batches:
            real = batch["attention_mask"].bool()
            try:
                model.token_states(batch["input_ids"], batch["attention_mask"])
            except _Reached:
                continue
    finally:
        for handle in handles:
            handle.remove()
    return {name: square.sqrt() for name, square in squares.items()}


def _batches(model: EmbeddingModel, texts: Sequence[str], size: int) -> Iterator[dict[str, Tensor]]:
    contract = model.contract
    prefix, suffix = contract.document_prefix(), contract.document_suffix()
    for start in range(0, len(texts), size):
        rendered = model.renderer.render(texts[start : start + size], prefix, suffix=suffix)
        yield {name: part.to(model.device) for name, part in model.renderer.pad(rendered).items()}


def keep_zeros(model: EmbeddingModel) -> float:
    """Keep what is zero in the decoder's linear layers at zero in all training; return the share.

    Their gradients are masked: a weight of zero whose gradient has always been zero stays there, whatever
    Adam's moments and the weight decay.

    Raises:
        EmbedforgeError: nothing is zero.
    """
    zeros = total = 0
    for maps in linear_layers(model):
        for linear in maps.values():
            mask = linear.weight.detach() != 0
            zeros += int((~mask).sum())
            total += mask.numel()
            if not bool(mask.all()):
                linear.weight.register_hook(_masking(mask))
    if not zeros:
        raise EmbedforgeError(
            "training.keep_zeros: no weight of the base's linear layers is zero, so there is nothing to "
            "keep; prune it first (embedforge compress weights), or leave the key out"
        )
    return zeros / total


def _masking(mask: Tensor) -> Any:
    held = [mask]

    def hook(gradient: Tensor) -> Tensor:
        held[0] = held[0].to(gradient.device)
        return gradient * held[0]

    return hook
