"""Latent-attention pooling of NV-Embed (Lee et al. 2024, section 3.2), as its released code computes it.

Every token asks a small trained dictionary, the latents, what it should become; the mean of the answers
is the text's embedding. The code differs from the paper's formulas (separate key and
value projections, scaling, three LayerNorms, two residuals, a gated feed-forward); this follows the
code, and `state_dict()` has its key names, those below `latent_attention_model.`.

Keys and values come from parameters alone, so two products of each head can be taken ahead of the text:

    scores  (x Wq)(c Wk)^T = x (Wq Wk^T c^T)        values  A (c Wv) Wo = A (c Wv Wo)

This *folded* form is the same function, and with NV-Embed's shapes far cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedforge.model.pooler import Pooler
from embedforge.model.versions import version_of

CacheKey = tuple[tuple[Any, ...], ...]


def folded_is_cheaper(
    tokens: int, *, hidden_size: int, latents: int, head_dim: int, precomputed: bool = False
) -> bool:
    """Tell whether the folded form needs fewer multiplications than projecting every token.

    With T tokens, hidden size H, R latents, and heads of width d, one head costs about

        projected:  2 T H d (query, output) + 2 T R d (scores, values) + 2 R H d (keys, values)
        folded:     2 T H R (scores, values)                           + 4 R H d (keys, values, fold)

    and backward twice that in both. For d = H folding wins as soon as T > R. When the folded matrices
    are `precomputed` only the terms with T count; folding then loses only for heads far narrower than R.
    """
    saved_per_token = head_dim * (hidden_size + latents) - hidden_size * latents
    cost_of_folding = 0 if precomputed else latents * hidden_size * head_dim
    return tokens * saved_per_token > cost_of_folding


class AttentionProjections(nn.Module):
    """The four projections of the cross-attention; keys and values lie in one matrix, keys first."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(hidden_size, inner_size, bias=False)
        self.to_kv = nn.Linear(hidden_size, 2 * inner_size, bias=False)
        self.to_out = nn.Linear(inner_size, hidden_size, bias=False)


class CrossAttention(nn.Module):
    """Multi-head attention whose queries are the tokens and whose keys and values are the latents.

    Heads are contiguous slices of the inner width, (heads head_dim). The residual is left to the caller.
    """

    def __init__(self, hidden_size: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm = nn.LayerNorm(hidden_size)
        self.norm_context = nn.LayerNorm(hidden_size)
        self.fn = AttentionProjections(hidden_size, heads * head_dim)

    def projected(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Attend in the textbook order: project, score, mix, project back. [N, H] -> [N, H]."""
        queries = self._split(self.fn.to_q(self.norm(tokens)))
        keys, values = self.fn.to_kv(self.norm_context(latents)).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(queries, self._split(keys), self._split(values))
        return self.fn.to_out(mixed.transpose(0, 1).flatten(1))

    def folded(self, tokens: Tensor, score_matrix: Tensor, value_matrix: Tensor) -> Tensor:
        """Attend with the matrices of `fold`. [N, H] -> [N, H]; the softmax is taken in float32."""
        scores = (self.norm(tokens) @ score_matrix).unflatten(-1, (self.heads, -1))
        weights = scores.to(_at_least_float32(scores.dtype)).softmax(dim=-1)
        return weights.to(tokens.dtype).flatten(-2) @ value_matrix

    def fold(self, latents: Tensor, *, wide: bool = True) -> tuple[Tensor, Tensor]:
        """Return the score matrix [H, heads * R], scaling included, and the value matrix [heads * R, H].

        Taken in float32 whatever the weights' dtype and autocast, then cast to it: two roundings fewer
        than the projected form has. One head at a time, so that at NV-Embed's size the float32 copies
        stay small. Differentiable.

        A training step folds anew, and float32 would cost it more than folding saves. Without `wide` products
        are in the precision of the step, and the error is that of the projected form.
        """
        kind = latents.device.type
        with torch.autocast(kind, enabled=not wide and torch.is_autocast_enabled(kind)):
            wider = _at_least_float32(latents.dtype) if wide else latents.dtype
            norm = self.norm_context
            context = functional.layer_norm(
                latents.to(wider),
                norm.normalized_shape,
                norm.weight.to(wider),
                norm.bias.to(wider),
                norm.eps,
            )
            inner = self.heads * self.head_dim
            to_k, to_v = self.fn.to_kv.weight.split(inner)
            parts = [weight.split(self.head_dim) for weight in (self.fn.to_q.weight, to_k, to_v)]
            scores, values = [], []
            for w_q, w_k, w_v, w_o in zip(
                *parts, self.fn.to_out.weight.split(self.head_dim, dim=1), strict=True
            ):
                scores.append(w_q.to(wider).T @ (context @ w_k.to(wider).T).T)
                values.append((context @ w_v.to(wider).T) @ w_o.to(wider).T)
            score_matrix = torch.cat(scores, dim=1) * self.head_dim**-0.5
            return score_matrix.to(latents.dtype), torch.cat(values).to(latents.dtype)

    def _split(self, inner: Tensor) -> Tensor:
        return inner.unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)


class GEGLU(nn.Module):
    """Halve the width: first half times the exact (erf) GELU of the second."""

    def forward(self, inner: Tensor) -> Tensor:
        """Gate [..., 2 M] into [..., M]."""
        value, gate = inner.chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForwardNet(nn.Module):
    """Linear, GEGLU, Linear, under the key names of the checkpoints (`net.0`, `net.2`)."""

    def __init__(self, hidden_size: int, multiple: int) -> None:
        super().__init__()
        inner = hidden_size * multiple
        self.net = nn.Sequential(nn.Linear(hidden_size, 2 * inner), GEGLU(), nn.Linear(inner, hidden_size))


class FeedForward(nn.Module):
    """The gated feed-forward with its LayerNorm; the residual is left to the caller."""

    def __init__(self, hidden_size: int, multiple: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.fn = FeedForwardNet(hidden_size, multiple)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform each token alone. [..., H] -> [..., H]."""
        return self.fn.net(self.norm(tokens))


class LatentAttention(Pooler):
    """Latent-attention pooling: [texts, tokens, hidden] and a pooling mask to [texts, hidden].

    Args:
        hidden_size: H, of the decoder; the latents have the same width.
        latents: R, rows of the latent array; 512 in NV-Embed.
        heads: 8 in NV-Embed.
        head_dim: width of *one* head, H when None: NV-Embed's 8 heads are each as wide as the decoder.
        feed_forward_multiple: width after the gate, in hidden sizes.

    Latents start from a standard normal, linear layers and norms from torch's defaults, as in the
    official code.
    """

    kind = "latent"

    def __init__(
        self,
        hidden_size: int,
        latents: int = 512,
        heads: int = 8,
        head_dim: int | None = None,
        feed_forward_multiple: int = 4,
    ) -> None:
        super().__init__(hidden_size)
        self.feed_forward_multiple = feed_forward_multiple
        self.latents = nn.Parameter(torch.randn(latents, hidden_size))
        attention = CrossAttention(hidden_size, heads, head_dim or hidden_size)
        self.cross_attend_blocks = nn.ModuleList([attention, FeedForward(hidden_size, feed_forward_multiple)])
        self._cache: tuple[CacheKey, tuple[Tensor, Tensor]] | None = None

    @property
    def attention(self) -> CrossAttention:
        """The first block: tokens attend to the latents."""
        return cast(CrossAttention, self.cross_attend_blocks[0])

    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        """Return the mean of the latent outputs of the pooled tokens.

        Only pooled tokens are computed: the block works on each token alone, so this is exact.

        Args:
            token_states: [texts, tokens, H], the decoder's last hidden states after its final norm.
            pooling_mask: [texts, tokens] of 0/1. A row without a one gives a row of NaN.

        Returns:
            [texts, H], float32 (float64 for float64 weights), not of unit length.
        """
        mask = pooling_mask.bool()
        outputs = self.token_outputs(token_states[mask])
        outputs = outputs.to(_at_least_float32(outputs.dtype))
        counts = mask.sum(dim=1)
        return torch.segment_reduce(outputs, "sum", lengths=counts, axis=0, unsafe=True) / counts[:, None]

    def token_outputs(self, token_states: Tensor) -> Tensor:
        """Return the block's output of every token, before the mean. [..., H] -> [..., H], weights' dtype."""
        states = token_states.to(self.latents.dtype).reshape(-1, self.latents.shape[1])
        attended = self._attend(states) + states
        return (self.cross_attend_blocks[1](attended) + attended).reshape(token_states.shape)

    def forget(self) -> None:
        """Drop the precomputed matrices; needed only after writing to parameters through `.data` in eval."""
        self._cache = None

    def train(self, mode: bool = True) -> LatentAttention:
        """Switch between training and evaluation; either way the precomputed matrices are dropped."""
        self.forget()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LatentAttention:
        self.forget()
        return super()._apply(fn, recurse)

    def _attend(self, states: Tensor) -> Tensor:
        keep = not self.training and not torch.is_grad_enabled()
        cheaper = folded_is_cheaper(
            len(states),
            hidden_size=states.shape[1],
            latents=len(self.latents),
            head_dim=self.attention.head_dim,
            precomputed=keep,
        )
        if not cheaper:
            return self.attention.projected(states, self.latents)
        return self.attention.folded(
            states, *(self._precomputed() if keep else self.attention.fold(self.latents, wide=False))
        )

    def _precomputed(self) -> tuple[Tensor, Tensor]:
        """Return the folded matrices, computed again only when a parameter they depend on has changed."""
        attention, fn = self.attention, self.attention.fn
        norm = attention.norm_context
        sources = (self.latents, norm.weight, norm.bias, fn.to_q.weight, fn.to_kv.weight, fn.to_out.weight)
        key = tuple(version_of(parameter) for parameter in sources)
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, attention.fold(self.latents))
        return self._cache[1]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
