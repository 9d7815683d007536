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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedforge.model.int8 import Int8Linear, maps_of, multiplies_bytes
from embedforge.model.quick_batch import Batch, Group, batch_of, is_causal
from embedforge.model.short_attention import products
from embedforge.runtime import fast_bfloat16, keep_freed_memory, release_freed_memory

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
    key = (is_causal(decoder), decoder.dtype, len(decoder.layers), *how)
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

    batch = batch_of(decoder, ids, mask)
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
        pairs.append((states, _layer(layer, states, batch), batch.packed(made)))
    return all(_is_near(*(states[: batch.tokens] for states in each)) for each in pairs)


def _is_near(given: Tensor, ours: Tensor, theirs: Tensor) -> bool:
    """Compare what a step adds to the states, for the median token, within what rounding explains."""
    slack = 1.0 if ours.dtype == torch.float32 else 50.0
    given, ours, theirs = given.float(), ours.float(), theirs.float()
    error, added = (ours - theirs).norm(dim=-1), (theirs - given).norm(dim=-1)
    allowed = slack * (1e-3 * added + 2e-4 * theirs.norm(dim=-1))
    return bool((error <= allowed).float().mean() > 0.5)


# --- the forward pass ---------------------------------------------------------------------------------


def _states(decoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    batch = batch_of(decoder, input_ids, attention_mask)
    states = decoder.embed_tokens(batch.packed(input_ids)).to(batch.dtype)
    for layer in decoder.layers[: decoder.config.num_hidden_layers]:
        states = _layer(layer, states, batch)
    states = _normed(decoder.norm, states)
    padded = states.new_zeros((*input_ids.shape, states.shape[-1]))
    padded[batch.real] = states[: batch.tokens]
    return padded


def _layer(layer: Any, states: Tensor, batch: Batch) -> Tensor:
    states = _attention(layer.self_attn, _normed(layer.input_layernorm, states), batch, states)
    return _network(layer.mlp, _normed(layer.post_attention_layernorm, states), states)


def _product(linear: nn.Linear | Int8Linear, states: Tensor, operation: str, other: Tensor) -> Tensor:
    """Return `linear(states)` plus ("add") or times ("mul") `other`.

    In bfloat16 by oneDNN, which does both before a result leaves the registers.
    """
    fuses = states.dtype == torch.bfloat16 and fast_bfloat16(states.device)
    if fuses and torch.backends.mkldnn.is_available():
        weight = linear.exact_weight(states) if isinstance(linear, Int8Linear) else linear.weight
        if weight is not None and weight.dtype == states.dtype:
            bias = None if linear.bias is None else linear.bias.to(states.dtype)
            fused: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, other, weight, bias, operation)
            return fused
    made: Tensor = linear(states)
    return made.add_(other) if operation == "add" else made.mul_(other)


def _normed(norm: Any, states: Tensor) -> Tensor:
    """RMSNorm in float32, in place: torch's own mixes dtypes, which costs five times as much."""
    with torch.autocast("cpu", enabled=False):
        exact = states.float() if states.dtype != torch.float32 else states.clone()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        scale = length.square_().div_(states.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
        return exact.mul_(scale).mul_(norm.weight.float()).to(states.dtype)


def _network(mlp: Any, states: Tensor, before: Tensor) -> Tensor:
    """Return `before` plus what the gated network makes of `states`."""
    if isinstance(mlp.up_proj, Int8Linear) and mlp.up_proj.takes_bytes(states):
        gate, up = maps_of(states, (mlp.gate_proj, mlp.up_proj))
        gated = functional.silu(gate, inplace=True).mul_(up)
    else:
        gate = functional.silu(mlp.gate_proj(states), inplace=True)
        gated = _product(mlp.up_proj, states, "mul", gate)
    return _product(mlp.down_proj, gated, "add", before)


def _attention(module: Any, states: Tensor, batch: Batch, before: Tensor) -> Tensor:
    """Return `before` plus what attention makes of `states`."""
    width = module.head_dim
    linears = module.q_proj, module.k_proj, module.v_proj
    query, key, value = (part.unflatten(-1, (-1, width)) for part in maps_of(states, linears))
    if hasattr(module, "q_norm"):
        query, key = _normed(module.q_norm, query), _normed(module.k_norm, key)
    scale = float(getattr(module, "scaling", width**-0.5))
    query, key = _rotated(query, *batch.rotary(scale)), _rotated(key, *batch.rotary(1.0))
    mixed = _mixed(query, key, value, batch)
    return _product(module.o_proj, mixed.flatten(1), "add", before)


def _mixed(query: Tensor, key: Tensor, value: Tensor, batch: Batch) -> Tensor:
    """Attend within each text: [rows, heads, dim] thrice, queries scaled, to the shape of `query`.

    What `key` and `value` have behind the last text is overwritten.
    """
    heads, kept = query.shape[1], key.shape[1]
    order = batch.head_rows(heads, kept)
    key[batch.tokens :] = 0  # what all texts see as padding: at weight 0, but 0 times what overflows is NaN
    value[batch.tokens :] = 0
    queries = query.flatten(0, 1).index_select(0, order.query)
    keys, values = (part.flatten(0, 1).index_select(0, order.key) for part in (key, value))
    found = queries.new_empty((len(queries) + 1, queries.shape[1]))
    found[-1] = 0  # for the rows behind the last text
    for group in batch.groups:
        _attend(
            group.of(queries, heads),
            group.of(keys, kept),
            group.of(values, kept),
            group.of(found, heads),
            group,
            causal=batch.causal,
        )
    return found.index_select(0, order.back).view_as(query)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads [rows, heads, width] by their positions; cos and sin are [rows, 1, width]."""
    half = heads.shape[-1] // 2
    turned = heads * cos
    turned[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return turned


def _attend(query: Tensor, key: Tensor, value: Tensor, found: Tensor, group: Group, *, causal: bool) -> None:
    """Attend within a group's texts: [texts, heads, width, dim] thrice, into `found` of queries' shape."""
    texts, kept, _, dim = key.shape
    if causal or group.is_long:
        found.copy_(
            functional.scaled_dot_product_attention(
                query, key, value, scale=1.0, is_causal=causal, enable_gqa=True
            )
        )
        return
    by_key = (texts * kept, -1, dim)
    products(
        query.view(by_key),
        key.view(by_key),
        value.view(by_key),
        texts,
        partial(_hide, group.lengths),
        out=found.view(by_key),
    )


def _hide(lengths: Sequence[int], scores: Tensor) -> None:
    """Take what stands behind each text out of the scores [texts, heads, width, width], in place."""
    for text, length in enumerate(lengths):
        if length < scores.shape[-1]:
            scores[text, :, :, length:] = -torch.inf
