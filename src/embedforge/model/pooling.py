"""Poolers: from token states [texts, tokens, hidden] and a pooling mask to one vector a text.

The pooling mask alone decides which tokens count, so neither the side nor the amount of padding matters,
and whatever stands in the other tokens' states, NaN included, cannot reach the result. Sums are taken in
float32. A text without a pooled token, which the renderer never makes, becomes a row of NaN: seen at
once in any loss or score, confined to its row, and without stopping a GPU to look.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.model.latent import LatentAttention


def mean(token_states: Tensor, pooling_mask: Tensor) -> Tensor:
    """Return the mean state of the pooled tokens."""
    return _average(token_states, pooling_mask.bool(), pooling_mask)


def weighted_mean(token_states: Tensor, pooling_mask: Tensor) -> Tensor:
    """Return the mean with weights 1..n over the n pooled tokens (SGPT, Muennighoff 2022).

    A causal decoder's later tokens have seen more of the text. Unlike SGPT's code, the weights count
    pooled tokens only: an instruction before the text does not flatten them.
    """
    mask = pooling_mask.bool()
    return _average(token_states, mask, mask.cumsum(dim=1) * mask)


def cls(token_states: Tensor, pooling_mask: Tensor) -> Tensor:
    """Return the state of the first pooled token."""
    return _pick(token_states, pooling_mask, pooling_mask.bool().int().argmax(dim=1))


def last(token_states: Tensor, pooling_mask: Tensor) -> Tensor:
    """Return the state of the last pooled token (E5-Mistral: EOS)."""
    position = pooling_mask.shape[1] - 1 - pooling_mask.bool().int().flip(1).argmax(dim=1)
    return _pick(token_states, pooling_mask, position)


STATELESS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": last,
    "mean": mean,
    "weighted_mean": weighted_mean,
    "cls": cls,
}


class StatelessPooler(nn.Module):
    """One of the poolings without parameters, as a module."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        """Pool [texts, tokens, H] by a mask [texts, tokens] into [texts, H], float32, not unit length."""
        return STATELESS[self.kind](token_states, pooling_mask)

    def extra_repr(self) -> str:
        """Show the kind when the module is printed."""
        return self.kind


class SelfAttentionPooler(nn.Module):
    """Self-attention over the pooled tokens, then their mean: the ablation of NV-Embed's tables 2 and 3.

    The paper says only that a self-attention layer stands in the place of latent attention. The rest is
    ours, chosen to differ from the latent block in nothing but the source of keys and values: the same
    LayerNorm before and unnormalised residual after, projections without bias, heads of width `head_dim`
    (the hidden size when None), no positions. There is no feed-forward.
    """

    kind = "self_attention"

    def __init__(self, hidden_size: int, heads: int = 8, head_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * (head_dim or hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.to_qkv = nn.Linear(hidden_size, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        """Pool [texts, tokens, H] by a mask [texts, tokens] into [texts, H], float32, not unit length."""
        mask = pooling_mask.bool()
        # A masked key has weight 0, and 0 * NaN is NaN: clear the states before they become values.
        states = token_states.to(self.to_out.weight.dtype).masked_fill(~mask[..., None], 0.0)
        heads = self.to_qkv(self.norm(states)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        queries, keys, values = heads.chunk(3, dim=1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None, None])
        return mean(self.to_out(mixed.transpose(1, 2).flatten(2)) + states, mask)


def build_pooler(
    kind: str,
    hidden_size: int,
    latents: int = 512,
    heads: int = 8,
    head_dim: int | None = None,
    feed_forward_multiple: int = 4,
) -> nn.Module:
    """Build a pooler: `forward(token_states, pooling_mask)`, [B, T, H] and [B, T] of 0/1, to [B, H].

    The result is float32 (float64 for float64 states) and not of unit length.

    Args:
        kind: last, mean, weighted_mean, cls, latent or self_attention.
        hidden_size: H, width of the decoder's states and of the result.
        latents: rows of the latent array (latent).
        heads: attention heads (latent, self_attention).
        head_dim: width of one head; `hidden_size` when None, as in NV-Embed (latent, self_attention).
        feed_forward_multiple: width of the GEGLU after its gate, in hidden sizes (latent).

    Raises:
        EmbedforgeError: there is no such kind.
    """
    if kind in STATELESS:
        return StatelessPooler(kind)
    if kind == "latent":
        return LatentAttention(hidden_size, latents, heads, head_dim, feed_forward_multiple)
    if kind == "self_attention":
        return SelfAttentionPooler(hidden_size, heads, head_dim)
    kinds = [*STATELESS, "latent", "self_attention"]
    raise EmbedforgeError(
        f"there is no pooling '{kind}'; choose one of {', '.join(kinds)}.{did_you_mean(kind, kinds)}"
    )


def _average(token_states: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
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
