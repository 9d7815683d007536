"""Masked next-token prediction: teaching a decoder whose causal mask is gone to use what stands behind.

LLM2Vec (BehnamGhader et al. 2024, sec. 2.1) hides some tokens of a text and predicts each of them from the
state of the token before it, through the language-model head that the decoder was pre-trained with. The
shift by one is what sets it apart from BERT's objective: it is the place from which a decoder has always
predicted that token, so that the head fits from the first step on.

    tokens        <s>   the   river   bank   was   closed
    seen          <s>   the   _       bank   was   _
    labels        -     -     river   -      -     closed
    predicted at        ^                    ^

What the decoder computes in between stays with the caller, who needs logits at the predicting positions only:

>>> generator = torch.Generator().manual_seed(36)
>>> ids = torch.tensor([[1, 11, 12, 13, 14, 15]])
>>> seen, labels = mask_tokens(
...     ids, ids > 1, mask_id=9, vocabulary=20, probability=0.4, style="all_mask", generator=generator
... )
>>> seen.tolist(), labels.tolist()
([[1, 11, 9, 13, 14, 9]], [[-100, -100, 12, -100, -100, 15]])
>>> positions, targets = predictions_of(labels)
>>> positions.tolist(), targets.tolist()
([1, 4], [12, 15])
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Style = Literal["all_mask", "bert"]

NO_LABEL = -100
"""Stands in the labels where nothing is predicted, as everywhere in torch and transformers."""

_MASKED, _RANDOM = 0.8, 0.1
"""Shares of the chosen tokens under "bert" (Devlin et al. 2019, sec. 3.1); the rest stays as it is."""


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    *,
    mask_id: int,
    vocabulary: int,
    probability: float,
    style: Style,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Hide some tokens of each row; return what the decoder sees, and what it has to find.

    Each maskable token is chosen with `probability`, independently. The first token of a row is never
    chosen: nothing stands before it to predict it from (the official code draws it and loses its label in
    the shift). A row in which chance chose nothing gets one maskable token, each equally likely: a short
    text is then never computed for nothing, and a batch of such texts still has a loss. Under a low
    probability short rows are therefore masked a little more often than it says. A row without a maskable
    token after its first keeps no label.

    Args:
        input_ids: int64 [rows, tokens], on the CPU; stays as it is.
        maskable: [rows, tokens], bool or 0/1; 0 for special, instruction and padding tokens.
        mask_id: what stands in for a hidden token.
        vocabulary: random tokens are drawn from 0 to this, exclusive ("bert" only).
        probability: of being chosen, above 0 and at most 1. LLM2Vec: 0.2 for Llama, 0.8 for Mistral.
        style: "all_mask" hides every chosen token (LLM2Vec's Mistral); "bert" hides 80 %, puts a random
            token for 10 %, and leaves 10 % (LLM2Vec's Llama).
        generator: of the CPU; its state decides everything.

    Returns:
        The ids to feed, and labels: the original id of every chosen token, -100 elsewhere. Both int64
        [rows, tokens].
    """
    allowed = maskable.bool().clone()
    allowed[:, 0] = False
    draw = torch.rand(input_ids.shape, generator=generator)
    chosen = allowed & (draw < probability)
    # The smallest of independent uniform draws is at each position equally likely.
    nearest = torch.zeros_like(allowed)
    nearest.scatter_(1, draw.masked_fill(~allowed, torch.inf).argmin(1, keepdim=True), True)
    chosen |= nearest & allowed & ~chosen.any(1, keepdim=True)

    labels = input_ids.masked_fill(~chosen, NO_LABEL)
    if style == "all_mask":
        return input_ids.masked_fill(chosen, mask_id), labels
    fate = torch.rand(input_ids.shape, generator=generator)
    random_ids = torch.randint(vocabulary, input_ids.shape, generator=generator)
    seen = input_ids.masked_fill(chosen & (fate < _MASKED), mask_id)
    is_random = chosen & (fate >= _MASKED) & (fate < _MASKED + _RANDOM)
    return torch.where(is_random, random_ids, seen), labels


def predictions_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Find the states that predict: for the token at position i, the one at position i - 1.

    Args:
        labels: int64 [rows, tokens], -100 where nothing is predicted. One in the first position is dropped.

    Returns:
        The positions [n] of the predicting states among the rows * tokens states of the batch, in their order
        (`states.flatten(0, 1)[positions]`), and the ids [n] to predict there; both int64.
    """
    rows, before = (labels[:, 1:] != NO_LABEL).nonzero(as_tuple=True)
    return rows * labels.shape[1] + before, labels[rows, before + 1]


def mntp_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each prediction, in nats: -log softmax(logits)[target].

    Args:
        logits: [n, vocabulary], any floating dtype, at the positions of `predictions_of`.
        targets: int64 [n].

    Returns:
        [n], not reduced; float32 also for half-precision logits and under autocast, float64 for float64.
        LLM2Vec takes the mean over all predictions of the step.
    """
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(exact, targets, reduction="none")
