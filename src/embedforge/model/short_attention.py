"""Attention over short texts on a CPU: a few matrix products and one softmax, in place.

PyTorch's kernel for CPUs is made for long sequences: on texts of 32 to 512 tokens in bfloat16 it takes two to
seven times as long, forward and backward, as the plain products below (benchmarks/attention.py). Query heads
that share a key head are laid into one product, so that keys and values are never repeated, and their
gradients never summed. What is computed is what transformers' `eager` computes.

It is an attention implementation of transformers (`AttentionInterface`), by the name `NAME`; whatever it is
not made for (a long text, dropout on probabilities, another device) goes to `sdpa`, the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "embedforge_short"
LONGEST = {torch.bfloat16: 512, torch.float32: 256}
"""Tokens of a text up to which it was measured to be faster, by dtype."""


def use_short_attention(decoder: PreTrainedModel) -> bool:
    """Let a decoder on a CPU that runs under `sdpa` use this one instead; say whether it does.

    Other implementations were asked for by name, or are needed (`eager` where scores are capped).
    """
    base: Any = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    if base.device.type != "cpu" or base.config._attn_implementation != "sdpa":
        return False
    base.set_attn_implementation(NAME)
    return bool(base.config._attn_implementation == NAME)


def short_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend, as transformers asks for it.

    Args:
        module: the attention layer; its `is_causal` decides where there is no mask.
        query: [texts, heads, tokens, dim].
        key: [texts, key heads, tokens, dim].
        value: like `key`.
        attention_mask: bool, True where a token is seen, or what is added to the scores; or None.
        dropout: on the probabilities.
        scaling: of the scores; one by the root of dim when None.
        is_causal: overrides the layer's.
        options: what else the layer says.

    Returns:
        [texts, tokens, heads, dim], and no probabilities.
    """
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unmasked = attention_mask is None and causal and query.shape[2] > 1
    if unmasked or dropout or not _fits(query, key, value) or options.get("position_bias") is not None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **options,
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = _Attention.apply(query, key, value, attention_mask, scale)
    return output.transpose(1, 2).contiguous(), None


def _fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and query.shape[2] == key.shape[2] <= LONGEST.get(query.dtype, 0)
        and key.shape == value.shape
    )


class _Attention(torch.autograd.Function):
    """Softmax attention whose query heads are stacked below the key head that they share."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        texts, heads, tokens, dim = query.shape
        shared = texts * key.shape[1]
        queries = query.reshape(shared, -1, dim)
        keys, values = key.reshape(shared, tokens, dim), value.reshape(shared, tokens, dim)
        scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(scale)
        if mask is not None:
            by_head = scores.view(texts, heads, tokens, tokens)
            if mask.dtype == torch.bool:
                by_head.masked_fill_(~mask, torch.finfo(scores.dtype).min)
            else:
                by_head.add_(mask)
        probabilities = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(queries, keys, values, probabilities)
        ctx.scale = scale
        return torch.bmm(probabilities, values).view(texts, heads, tokens, dim)

    @staticmethod
    def backward(ctx: FunctionCtx | Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, probabilities = ctx.saved_tensors
        (gradient,) = gradients
        texts, heads, tokens, dim = gradient.shape
        outer = gradient.reshape(queries.shape)
        of_values = torch.bmm(probabilities.transpose(1, 2), outer)
        of_probabilities = torch.bmm(outer, values.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
        of_scores.mul_(ctx.scale)
        of_queries = torch.bmm(of_scores, keys).view(texts, heads, tokens, dim)
        of_keys = torch.bmm(of_scores.transpose(1, 2), queries)
        grouped = (texts, -1, tokens, dim)
        return of_queries, of_keys.view(grouped), of_values.view(grouped), None, None


AttentionInterface.register(NAME, short_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
