"""Attention within short texts on a CPU, by a few matrix products and one softmax; and within packed texts.

PyTorch's kernel for CPUs is made for long sequences: on texts of 32 to 512 tokens in bfloat16 it takes two to
seven times as long, forward and backward, as the plain products below (benchmarks/attention.py). Query heads
that share a key head are laid into one product, so that keys and values are never repeated, and their
gradients never summed. What is computed is what transformers' `eager` computes.

It is an attention implementation of transformers (`AttentionInterface`), by the name `NAME`; whatever it is
not made for (a long text, dropout on probabilities, another device) goes to `sdpa`, the same numbers.

It also attends within the texts of a packed batch (`model.packing`), which is one row of tokens for all else
in the decoder: `rectangles` says where in it the texts are. On a GPU that is one call of `varlen_attn` where
nothing is padded and numbers have 16 bits, else `sdpa` by rectangle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "embedforge_short"
LONGEST = {torch.bfloat16: 512, torch.float32: 128}
"""Tokens of a text up to which it was measured to be faster, by dtype."""


def use_short_attention(decoder: PreTrainedModel) -> bool:
    """Let a decoder on a CPU or GPU that runs under `sdpa` use this one instead; say whether it does.

    Other implementations were asked for by name, or are needed (`eager` where scores are capped).
    """
    base: Any = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    if base.device.type not in ("cpu", "cuda") or base.config._attn_implementation != "sdpa":
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
    rectangles: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend, as transformers asks for it.

    Args:
        module: the attention layer; its `is_causal` decides where there is no mask, and in a packed batch.
        query: [texts, heads, tokens, dim]; of a packed batch [1, heads, all tokens, dim].
        key: [texts, key heads, tokens, dim].
        value: like `key`.
        attention_mask: bool, True where a token is seen, or what is added to the scores; or None. Of a packed
            batch bool [1, 1, 1, all tokens], True for real tokens, or without an element where all are.
        dropout: on the probabilities.
        scaling: of the scores; one by the root of dim when None.
        is_causal: overrides the layer's.
        rectangles: texts and tokens of each part of a packed batch.
        options: what else the layer says.

    Returns:
        [texts, tokens, heads, dim], and no probabilities.
    """
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if rectangles is not None:
        real = attention_mask if attention_mask is not None and attention_mask.numel() else None
        return _packed(query, key, value, real, _How(scale, causal, tuple(rectangles), True), dropout), None
    unmasked = attention_mask is None and causal and query.shape[2] > 1
    biased = options.get("position_bias") is not None
    if _fits(query, key, value, query.shape[2]) and not (dropout or unmasked or biased):
        how = _How(scale, False, ((query.shape[0], query.shape[2]),), packed=False)
        return _attend(query, key, value, attention_mask, how), None
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


class _How(NamedTuple):
    scale: float
    causal: bool
    """Within each rectangle; where a mask of transformers says it all, False."""
    rectangles: Sequence[tuple[int, int]]
    packed: bool
    """Is the mask a flag a token?"""


def _fits(query: Tensor, key: Tensor, value: Tensor, longest: int) -> bool:
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and query.shape[2] == key.shape[2]
        and longest <= LONGEST.get(query.dtype, 0)
        and key.shape == value.shape
    )


def _packed(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, how: _How, dropout: float
) -> Tensor:
    if not dropout and _fits(query, key, value, max(tokens for _, tokens in how.rectangles)):
        return _attend(query, key, value, real, how)
    if not dropout and real is None and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _by_varlen(query, key, value, how)
    return _by_rectangles(query, key, value, real, how, dropout)


def _by_varlen(query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = _starts(tuple(how.rectangles), query.device)
    queries, keys, values = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    mixed = varlen_attn(
        queries,
        keys,
        values,
        starts,
        starts,
        longest,
        longest,
        scale=how.scale,
        window_size=(-1, 0) if how.causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, mixed)[None]


@lru_cache(maxsize=8)
def _starts(rectangles: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, int]:
    """Return where each text begins, and the end, int32 [texts + 1], and the longest; all layers ask."""
    lengths = [tokens for texts, tokens in rectangles for _ in range(texts)]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return starts.to(device), max(lengths)


def _by_rectangles(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, how: _How, dropout: float
) -> Tensor:
    """Attend within each text of a packed batch by torch's own attention."""
    sizes = [texts * tokens for texts, tokens in how.rectangles]
    parts = zip(*(heads.split(sizes, dim=2) for heads in (query, key, value)), strict=True)
    masks = [None] * len(sizes) if real is None else real.flatten().split(sizes)
    outputs = []
    for (texts, tokens), mask, heads in zip(how.rectangles, masks, parts, strict=True):
        seen = _seen(mask, texts, tokens, causal=how.causal, device=query.device)
        queries, keys, values = (
            part.squeeze(0).unflatten(1, (texts, tokens)).transpose(0, 1) for part in heads
        )
        mixed = nn.functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=seen,
            dropout_p=dropout,
            scale=how.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None]


def _seen(
    real: Tensor | None, texts: int, tokens: int, *, causal: bool, device: torch.device
) -> Tensor | None:
    """Return which tokens are seen, bool [texts or 1, 1, tokens or 1, tokens], or None for all.

    A causal row of padding on the left sees itself, so that no row of scores is empty.
    """
    seen = None if real is None else real.view(texts, 1, 1, tokens)
    if not causal:
        return seen
    earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()[None, None]
    return earlier if seen is None else (earlier & seen) | torch.eye(tokens, dtype=torch.bool, device=device)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: _How) -> Tensor:
    """Return [texts, tokens, heads, dim], as the tokens stand in `query`."""
    texts, heads, tokens, dim = query.shape
    output: Tensor = _Attention.apply(
        *(part.transpose(1, 2).reshape(texts * tokens, -1, dim) for part in (query, key, value)), mask, how
    )
    return output.view(texts, tokens, heads, dim)


class _Attention(torch.autograd.Function):
    """`attend_by_products` for each rectangle, with a gradient.

    All of it in one node of the graph: parts of a batch that were cut and joined by nodes of their own would
    each have a gradient of the whole batch's size.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: _How
    ) -> Tensor:
        output = torch.empty_like(query)
        saved: list[Tensor] = []
        start = 0
        for texts, tokens in how.rectangles:
            rows = slice(start, start + texts * tokens)
            start = rows.stop
            own = mask.flatten()[rows] if how.packed and mask is not None else mask
            mixed, factors = attend_by_products(
                query[rows], key[rows], value[rows], texts, how.scale, partial(_hide, mask=own, how=how)
            )
            output[rows] = mixed
            saved += factors
        ctx.save_for_backward(*saved)
        ctx.how, ctx.kept = how, key.shape[1]
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        saved = ctx.saved_tensors
        of_query = torch.empty_like(gradient)
        of_key, of_value = (gradient.new_empty(len(gradient), ctx.kept, gradient.shape[2]) for _ in range(2))
        start = 0
        for number, (texts, tokens) in enumerate(ctx.how.rectangles):
            scaled, keys, values, probabilities = saved[4 * number : 4 * number + 4]
            rows = slice(start, start + texts * tokens)
            start = rows.stop
            outer = _heads(gradient[rows], ctx.kept, texts)
            of_value[rows] = _rows(torch.bmm(probabilities.transpose(1, 2), outer), texts, tokens)
            of_scores = torch._softmax_backward_data(
                torch.bmm(outer, values.transpose(1, 2)), probabilities, -1, probabilities.dtype
            )
            of_query[rows] = _rows(torch.bmm(of_scores, keys), texts, tokens).mul_(ctx.how.scale)
            of_key[rows] = _rows(torch.bmm(of_scores.transpose(1, 2), scaled), texts, tokens)
        return of_query, of_key, of_value, None, None


def attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, texts: int, scale: float, hide: Callable[[Tensor], None]
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Attend within texts of one length by `products`, with what a backward pass needs.

    Query heads are stacked below the key head that they share.

    Args:
        query: [texts * tokens, heads, dim], one text behind the other.
        key: [texts * tokens, key heads, dim].
        value: like `key`.
        texts: how many.
        scale: of the scores.
        hide: takes what is not seen out of the scores [texts, heads, tokens, tokens], in place.

    Returns:
        [texts * tokens, heads, dim]; and what a backward pass needs: scaled queries, keys, values and
        probabilities, [texts * key heads, rows, ...] each.
    """
    kept, tokens = key.shape[1], len(query) // texts
    keys, values = _heads(key, kept, texts), _heads(value, kept, texts)
    scaled = _heads(query, kept, texts) * scale  # of fewer numbers than the scores, forward and backward
    mixed, probabilities = products(scaled, keys, values, texts, hide)
    return _rows(mixed, texts, tokens), (scaled, keys, values, probabilities)


def products(
    scaled: Tensor,
    keys: Tensor,
    values: Tensor,
    texts: int,
    hide: Callable[[Tensor], None],
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend by two products and a softmax; training and encoding both do.

    Args:
        scaled: queries, [texts * key heads, heads of one * tokens, dim].
        keys: [texts * key heads, tokens, dim].
        values: like `keys`.
        texts: how many.
        hide: takes what is not seen out of the scores [texts, heads, tokens, tokens], in place.
        out: what to write the result to.

    Returns:
        The result, of the shape of `scaled`, and the probabilities.
    """
    tokens = keys.shape[1]
    scores = torch.bmm(scaled, keys.transpose(1, 2))
    hide(scores.view(texts, -1, tokens, tokens))
    probabilities = torch.softmax(scores, dim=-1)
    return torch.bmm(probabilities, values, out=out), probabilities


def _hide(scores: Tensor, *, mask: Tensor | None, how: _How) -> None:
    """Take what a token does not see out of the scores [texts, heads, tokens, tokens], in place.

    `mask` is transformers' own, or of a packed batch the flags of these texts' tokens.
    """
    texts, _, tokens, _ = scores.shape
    if mask is not None and mask.is_floating_point():
        scores.add_(mask)
        return
    if how.packed:
        flags = None if mask is None or bool(mask.all()) else mask
        mask = _seen(flags, texts, tokens, causal=how.causal, device=scores.device)
    if mask is not None:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)


def _heads(part: Tensor, kept: int, texts: int) -> Tensor:
    """Lay [texts * tokens, heads, dim] out as [texts * key heads, heads of one * tokens, dim]."""
    by_text = part.view(texts, -1, kept, part.shape[1] // kept, part.shape[2])
    return by_text.permute(0, 2, 3, 1, 4).reshape(texts * kept, -1, part.shape[2])


def _rows(heads: Tensor, texts: int, tokens: int) -> Tensor:
    """Undo `_heads`: a view of [texts * tokens, heads, dim]."""
    apart = heads.view(texts, -1, heads.shape[1] // tokens, tokens, heads.shape[2])
    return apart.permute(0, 3, 1, 2, 4).reshape(texts * tokens, -1, heads.shape[2])


AttentionInterface.register(NAME, short_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
