"""Poolers: from token states [texts, tokens, hidden] and a pooling mask to one vector a text.

The pooling mask alone decides which tokens count, so neither the side nor the amount of padding matters,
and whatever stands in the other tokens' states, NaN included, cannot reach the result. Sums are taken in
float32. A text without a pooled token, which the renderer never makes, becomes a row of NaN: seen at
once in any loss or score, confined to its row, and without stopping a GPU to look.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from embedforge.model.latent import LatentAttention
from embedforge.model.pooler import Pooler, build_pooler, pooler_class, poolers

__all__ = [
    "STATELESS",
    "ClsPooler",
    "LastPooler",
    "LatentAttention",
    "MeanPooler",
    "Pooler",
    "SelfAttentionPooler",
    "WeightedMeanPooler",
    "build_pooler",
    "pooler_class",
]


class LastPooler(Pooler):
    """The state of the last pooled token (E5-Mistral: EOS)."""

    kind, stock = "last", "lasttoken"

    @override
    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        position = pooling_mask.shape[1] - 1 - pooling_mask.bool().int().flip(1).argmax(dim=1)
        return _pick(token_states, pooling_mask, position)


class MeanPooler(Pooler):
    """The mean state of the pooled tokens."""

    kind, stock = "mean", "mean"

    @override
    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        return average(token_states, pooling_mask.bool(), pooling_mask)


class WeightedMeanPooler(Pooler):
    """The mean with weights 1..n over the n pooled tokens (SGPT, Muennighoff 2022).

    A causal decoder's later tokens have seen more of the text. Unlike SGPT's code, the weights count
    pooled tokens only: an instruction before the text does not flatten them.
    """

    kind, stock = "weighted_mean", "weightedmean"

    @override
    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        mask = pooling_mask.bool()
        return average(token_states, mask, mask.cumsum(dim=1) * mask)


class ClsPooler(Pooler):
    """The state of the first pooled token."""

    kind, stock = "cls", "cls"

    @override
    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        return _pick(token_states, pooling_mask, pooling_mask.bool().int().argmax(dim=1))


class SelfAttentionPooler(Pooler):
    """Self-attention over the pooled tokens, then their mean: the ablation of NV-Embed's tables 2 and 3.

    The paper says only that a self-attention layer stands in the place of latent attention. The rest is
    ours, chosen to differ from the latent block in nothing but the source of keys and values: the same
    LayerNorm before and unnormalised residual after, projections without bias, heads of width `head_dim`
    (the hidden size when None), no positions. There is no feed-forward.
    """

    kind = "self_attention"

    def __init__(self, hidden_size: int, heads: int = 8, head_dim: int | None = None) -> None:
        super().__init__(hidden_size)
        self.heads = heads
        inner = heads * (head_dim or hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.to_qkv = nn.Linear(hidden_size, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, hidden_size, bias=False)

    @override
    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        mask = pooling_mask.bool()
        # A masked key has weight 0, and 0 * NaN is NaN: clear the states before they become values.
        states = token_states.to(self.to_out.weight.dtype).masked_fill(~mask[..., None], 0.0)
        heads = self.to_qkv(self.norm(states)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        queries, keys, values = heads.chunk(3, dim=1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None, None])
        return average(self.to_out(mixed.transpose(1, 2).flatten(2)) + states, mask, mask)


STATELESS = frozenset(kind for kind, pooler in poolers().items() if pooler.stock)
"""Kinds without parameters, which sentence-transformers has as well."""


def average(token_states: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Average by weights that are zero outside the mask; states there are cleared, not multiplied away."""
    dtype = torch.promote_types(token_states.dtype, torch.float32)
    weights = weights.to(dtype)[..., None]
    states = token_states.masked_fill(~mask[..., None], 0.0).to(dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _pick(token_states: Tensor, pooling_mask: Tensor, position: Tensor) -> Tensor:
    """Take one token of each row; a row without pooled tokens has none to take and becomes NaN."""
    picked = token_states[torch.arange(len(position), device=position.device), position]
    picked = picked.to(torch.promote_types(picked.dtype, torch.float32))
    return picked.masked_fill(~pooling_mask.bool().any(dim=1, keepdim=True), torch.nan)
