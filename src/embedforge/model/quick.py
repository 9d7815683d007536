"""The quick way through a decoder on a CPU: texts one behind the other, without padding, and few shapes.

Most decoders today are of one shape: RMSNorm, rotary positions, attention with shared keys, a gated SiLU
network. Of such a one this module computes the last states from the weights where they are, with

- no padding: products, norms and activations see real tokens only, one text behind the other;
- attention by groups of texts whose lengths are alike, all heads that share keys in one product;
- few shapes. What oneDNN compiles for a new shape of a product costs half a millisecond and most of a
  megabyte, more than a short text's share of the work, so rows and lengths are rounded up to a short list.

`quick_states` is proven before it is used: on a probe the stock forward must give the same states. What it
does not know (other modules, adapters, hooks, windows, gradients, a GPU) goes the stock way.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedforge.model.int8 import Int8Linear, maps_of, multiplies_bytes
from embedforge.model.short_attention import attend_by_products
from embedforge.runtime import keep_freed_memory, release_freed_memory

LONGEST_BY_PRODUCTS = 1024
"""Texts above that many tokens are left to torch's own attention, which holds no matrix of all scores."""
GROUP = 256
"""Tokens of the texts whose attention is computed together."""
TOKENS_TO_RELEASE = 2**17
"""After so many tokens freed memory is handed back after all: batches of many sizes leave holes in it."""
_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_NETWORK = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_PROVEN: weakref.WeakKeyDictionary[nn.Module, dict[Any, bool]] = weakref.WeakKeyDictionary()
_PROVING = threading.Lock()
"""The proof hangs hooks into the decoder, which another thread would take for somebody's own."""
_since_release = [0]
"""Tokens."""

Stock = Callable[[Tensor, Tensor], Tensor]
"""The decoder's own forward: ids and mask [texts, tokens] to states [texts, tokens, hidden]."""


def quick_states(decoder: Any, input_ids: Tensor, attention_mask: Tensor, stock: Stock) -> Tensor | None:
    """Return a decoder's last states, zero where there is padding; None where the stock way must be gone.

    Args:
        decoder: a transformers decoder without language-model head.
        input_ids: [texts, tokens] int64.
        attention_mask: of the same shape, 1 for real tokens; on whichever side the padding is.
        stock: the decoder's own forward, which this one must agree with.

    Returns:
        [texts, tokens, hidden] in the dtype of the weights, or of autocast where it is on.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or decoder.training:
        return None
    if input_ids.device.type != "cpu":
        return None
    with _PROVING:
        if not _is_known(decoder, input_ids.shape[1]) or not _is_proven(decoder, stock):
            return None
    states = _states(decoder, input_ids, attention_mask)
    _since_release[0] += input_ids.numel()
    if _since_release[0] >= TOKENS_TO_RELEASE:
        _since_release[0] = 0
        release_freed_memory()
    return states


# --- what is known ------------------------------------------------------------------------------------


def _is_known(decoder: Any, tokens: int) -> bool:
    """Tell whether a decoder has the modules that are computed here, and nothing that listens to them."""
    if {name for name, _ in decoder.named_children()} != _DECODER:
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in decoder.modules()):
        return False
    window = getattr(decoder.config, "sliding_window", None)
    if window is not None and window < tokens and getattr(decoder.config, "use_sliding_window", True):
        return False
    layers = decoder.layers[: decoder.config.num_hidden_layers]
    table = type(decoder.embed_tokens) is nn.Embedding
    return table and _is_norm(decoder.norm) and all(_is_known_layer(layer) for layer in layers)


def _is_known_layer(layer: Any) -> bool:
    if {name for name, _ in layer.named_children()} != _LAYER:
        return False
    attention = {name for name, _ in layer.self_attn.named_children()}
    network = {name for name, _ in layer.mlp.named_children()}
    if attention not in (_ATTENTION, _ATTENTION | _HEAD_NORMS) or network != _NETWORK:
        return False
    linear = [getattr(layer.self_attn, name) for name in _ATTENTION]
    linear += [getattr(layer.mlp, name) for name in _NETWORK - {"act_fn"}]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(layer.self_attn, name) for name in attention & _HEAD_NORMS]
    is_silu = isinstance(layer.mlp.act_fn, nn.SiLU) or type(layer.mlp.act_fn).__name__ == "SiLUActivation"
    return (
        is_silu
        and all(type(part) in (nn.Linear, Int8Linear) for part in linear)
        and all(map(_is_norm, norms))
    )


def _is_norm(norm: Any) -> bool:
    return hasattr(norm, "variance_epsilon") and [name for name, _ in norm.named_parameters()] == ["weight"]


def _is_proven(decoder: Any, stock: Stock) -> bool:
    """Compare with the stock forward on a probe, once for each way that the decoder may be set.

    Layer by layer, each from the states that the stock forward gave it: at 16 bits a decoder that was not
    trained to see ahead is chaotic, so that its last states differ from run to run for no fault of anybody.
    """
    if decoder not in _PROVEN:
        keep_freed_memory()  # of a layer's states, for the next one's
    found = _PROVEN.setdefault(decoder, {})
    how = torch.is_autocast_enabled("cpu"), multiplies_bytes(decoder)
    key = (_is_causal(decoder), decoder.dtype, len(decoder.layers), *how)
    if key not in found:
        ids = (torch.arange(3 * 40).view(3, 40) * 7919 + 13) % decoder.embed_tokens.num_embeddings
        mask = (torch.arange(40) < torch.tensor([[40], [33], [5]])).long()
        found[key] = _same_steps(decoder, ids, mask, stock)
    return found[key]


def _same_steps(decoder: Any, ids: Tensor, mask: Tensor, stock: Stock) -> bool:
    """Tell whether table, each layer and the last norm give what the stock forward has in their place."""
    steps: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, given: Any, named: Any, output: Any) -> None:
        states = given[0] if given else named["hidden_states"]
        steps.append((states, output[0] if isinstance(output, tuple) else output))

    batch = _batch_of(decoder, ids, mask)
    layers = decoder.layers[: decoder.config.num_hidden_layers]
    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        last = stock(ids, mask)
    finally:
        for handle in handles:
            handle.remove()
    if len(steps) != len(layers):
        return False
    rows = decoder.embed_tokens(ids)
    first, before_norm = (steps[0][0], steps[-1][1]) if steps else (rows, rows)
    if not torch.equal(first, rows):
        return False
    pairs = [
        (batch.packed(before_norm), _normed(decoder.norm, batch.packed(before_norm)), batch.packed(last))
    ]
    for layer, (given, made) in zip(layers, steps, strict=True):
        states = batch.packed(given)
        pairs.append((states, _layer(layer, states.clone(), batch), batch.packed(made)))
    return all(_is_near(*(states[: batch.tokens] for states in each)) for each in pairs)


def _is_near(given: Tensor, ours: Tensor, theirs: Tensor) -> bool:
    """Compare what a step adds to the states, for the median token, within what rounding explains."""
    slack = 1.0 if ours.dtype == torch.float32 else 50.0
    given, ours, theirs = given.float(), ours.float(), theirs.float()
    error, added = (ours - theirs).norm(dim=-1), (theirs - given).norm(dim=-1)
    allowed = slack * (1e-3 * added + 2e-4 * theirs.norm(dim=-1))
    return bool((error <= allowed).float().mean() > 0.5)


def _is_causal(decoder: Any) -> bool:
    return bool(getattr(decoder.config, "is_causal", True))


# --- the forward pass ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Texts whose attention is computed together."""

    rows: Tensor
    """[texts * width]: where each of their tokens stands among all; the last row, of no text, for padding."""
    lengths: Sequence[int]
    width: int


@dataclass(frozen=True)
class _Batch:
    """Where the tokens of texts stand, and what attention needs to know of them."""

    real: Tensor
    """[texts, tokens] bool."""
    tokens: int
    rows: int
    """`tokens` and at least one more, rounded up."""
    rotary: tuple[Tensor, Tensor]
    groups: Sequence[_Group]
    causal: bool
    dtype: torch.dtype

    def packed(self, padded: Tensor) -> Tensor:
        """Bring [texts, tokens, ...] to [rows, ...], zero behind the last token."""
        packed = padded.new_zeros((self.rows, *padded.shape[2:]))
        packed[: self.tokens] = padded[self.real]
        return packed if packed.dtype == torch.int64 else packed.to(self.dtype)


def _batch_of(decoder: Any, input_ids: Tensor, attention_mask: Tensor) -> _Batch:
    real = attention_mask.bool()
    lengths = real.sum(dim=1).tolist()
    tokens = sum(lengths)
    rows = _rounded_rows(tokens + 1)
    positions = input_ids.new_zeros(rows)
    positions[:tokens] = (attention_mask.cumsum(dim=1) - 1)[real]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else decoder.dtype
    cos, sin = decoder.rotary_emb(torch.empty(0, dtype=dtype), positions[None])
    groups = list(_groups(lengths, rows - 1))
    rotary = cos[0, :, None], sin[0, :, None]
    return _Batch(real, tokens, rows, rotary, groups, _is_causal(decoder), dtype)


def _states(decoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    batch = _batch_of(decoder, input_ids, attention_mask)
    states = decoder.embed_tokens(batch.packed(input_ids)).to(batch.dtype)
    for layer in decoder.layers[: decoder.config.num_hidden_layers]:
        states = _layer(layer, states, batch)
    states = _normed(decoder.norm, states)
    padded = states.new_zeros((*input_ids.shape, states.shape[-1]))
    padded[batch.real] = states[: batch.tokens]
    return padded


def _layer(layer: Any, states: Tensor, batch: _Batch) -> Tensor:
    states = _attention(layer.self_attn, _normed(layer.input_layernorm, states), batch).add_(states)
    return _network(layer.mlp, _normed(layer.post_attention_layernorm, states)).add_(states)


def _normed(norm: Any, states: Tensor) -> Tensor:
    """RMSNorm in float32, in place: torch's own mixes dtypes, which costs five times as much."""
    with torch.autocast("cpu", enabled=False):
        exact = states.float() if states.dtype != torch.float32 else states.clone()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        scale = length.square_().div_(states.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
        return exact.mul_(scale).mul_(norm.weight.float()).to(states.dtype)


def _network(mlp: Any, states: Tensor) -> Tensor:
    gate, up = maps_of(states, (mlp.gate_proj, mlp.up_proj))
    return mlp.down_proj(functional.silu(gate, inplace=True).mul_(up))


def _attention(module: Any, states: Tensor, batch: _Batch) -> Tensor:
    width = module.head_dim
    linears = module.q_proj, module.k_proj, module.v_proj
    query, key, value = (part.unflatten(-1, (-1, width)) for part in maps_of(states, linears))
    if hasattr(module, "q_norm"):
        query, key = _normed(module.q_norm, query), _normed(module.k_norm, key)
    scale = float(getattr(module, "scaling", width**-0.5))
    query, key = _rotated(query, *batch.rotary), _rotated(key, *batch.rotary)
    mixed = torch.zeros_like(query)
    for group in batch.groups:
        rows = group.rows
        found = _attended(
            query.index_select(0, rows),
            key.index_select(0, rows),
            value.index_select(0, rows),
            group,
            scale,
            causal=batch.causal,
        )
        mixed.index_copy_(0, rows, found)
    mixed[batch.tokens :] = 0  # a text that has overflown leaves NaN there, which all would see as padding
    return module.o_proj(mixed.flatten(1))


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads [rows, heads, width] by their positions; cos and sin are [rows, 1, width]."""
    half = heads.shape[-1] // 2
    turned = heads * cos
    turned[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return turned


def _attended(
    query: Tensor, key: Tensor, value: Tensor, group: _Group, scale: float, *, causal: bool
) -> Tensor:
    """Attend within each text: [texts * width, heads, head] thrice to the shape of `query`."""
    texts = len(group.lengths)
    if not causal and group.width <= LONGEST_BY_PRODUCTS:
        return attend_by_products(query, key, value, texts, scale, partial(_hide, group.lengths))[0]
    query, key, value = (
        part.unflatten(0, (texts, group.width)).transpose(1, 2) for part in (query, key, value)
    )
    found = functional.scaled_dot_product_attention(
        query, key, value, scale=scale, is_causal=causal, enable_gqa=True
    )
    return found.transpose(1, 2).flatten(0, 1)


def _hide(lengths: Sequence[int], scores: Tensor) -> None:
    """Take what stands behind each text out of the scores [texts, heads, width, width], in place."""
    for text, length in enumerate(lengths):
        if length < scores.shape[-1]:
            scores[text, :, :, length:] = -torch.inf


# --- few shapes ---------------------------------------------------------------------------------------


def _groups(lengths: Sequence[int], spare: int) -> Iterator[_Group]:
    """Put texts together by length; `spare` is the row that stands for padding."""
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    widths: dict[int, list[int]] = {}
    for text, length in enumerate(lengths):
        if length:
            widths.setdefault(_rounded_width(length), []).append(text)
    for width, texts in sorted(widths.items()):
        while texts:  # by powers of two, so that there are few shapes of these products too
            together = min(len(texts), max(1, GROUP // width))
            together = 1 << (together.bit_length() - 1)
            some, texts = texts[:together], texts[together:]
            rows = torch.full((len(some), width), spare)
            for place, text in enumerate(some):
                rows[place, : lengths[text]] = torch.arange(starts[text], starts[text] + lengths[text])
            yield _Group(rows.flatten(), [lengths[text] for text in some], width)


def _rounded_rows(rows: int) -> int:
    """Round up the rows of a product: eight shapes for each doubling, and steps of 256 from 2,048 on."""
    step = min(256, max(16, 1 << max(0, rows.bit_length() - 4)))
    return -(-rows // step) * step


def _rounded_width(tokens: int) -> int:
    """Round up the tokens of a text in attention: by 16 to 64, then by 32; exact where nothing is masked."""
    if tokens > LONGEST_BY_PRODUCTS:
        return tokens
    step = 16 if tokens <= 64 else 32
    return -(-tokens // step) * step
