"""The switch between causal and bidirectional attention, and the check that it took effect.

LLM2Vec (sec. 2.1) and NV-Embed (sec. 3.1) drop the causal mask of a decoder before training it as an encoder.
transformers has had a switch for it since 5.2, `config.is_causal = False`; set on the live config it is saved
and survives a reload. Two things stand between that flag and its effect. Where a batch needs no mask, a
kernel decides by a flag of the attention module instead, and stablelm and nemotron do not pass the config's
on; clearing only the module flags, on the other hand, leaves padded batches causal. And convolutions, linear
attention and state-space layers stay causal whatever the flag. Hence: set both, then probe every layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from embedforge.errors import EmbedforgeError
from embedforge.model.probe import (
    LayerReport,
    ProbeReport,
    decoder_layers,
    position_ids,
    probe,
    takes_position_ids,
)

__all__ = [
    "LayerReport",
    "ProbeReport",
    "decoder_layers",
    "ensure_attention",
    "make_bidirectional",
    "make_causal",
    "needs_module_flags",
    "position_ids",
    "probe",
    "require_decoder",
    "require_transformers",
    "takes_position_ids",
]

UNLIMITED = 2**30
"""Window, in tokens, of a layer whose window is off: wider than any text.

Not None, and no relabelling of the layer types: cohere2, exaone4, gemma3, olmo3 and others also choose a
layer's rotary embedding or head width by whether it has a window.
"""

_FLOOR = (5, 2)


def require_transformers(version: str = transformers.__version__) -> None:
    """Raise unless transformers honours `config.is_causal = False`; older releases ignore it silently.

    Raises:
        EmbedforgeError: names the version found and the one needed.
    """
    if Version(version).release[:2] < _FLOOR:
        raise EmbedforgeError(
            f"transformers {version} ignores config.is_causal = False and would stay causal without a word; "
            "bidirectional attention needs transformers >= 5.2. Upgrade it: pip install 'transformers>=5.2'"
        )


def require_decoder(model: PreTrainedModel) -> None:
    """Raise unless the model is a decoder-only language model; custom model types pass (the probe decides).

    Raises:
        EmbedforgeError: an encoder (bert, modernbert), an encoder-decoder (t5) or no language model at all.
    """
    config = model.config
    kind = config.model_type
    # Families that are both masked and causal language models say by `is_decoder` which one this is.
    both = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    encoder = kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (
        both and not getattr(config, "is_decoder", True)
    )
    if config.is_encoder_decoder or (kind in CONFIG_MAPPING_NAMES and encoder):
        what = "an encoder-decoder" if config.is_encoder_decoder else "an encoder, or no text model"
        raise EmbedforgeError(
            f"{type(model).__name__} (model type '{kind}') is not a decoder: it is {what}. Choose a "
            "decoder-only language model, mistral or qwen3 say; docs/families.md lists those that work"
        )


def make_bidirectional(model: PreTrainedModel, *, sliding_window: Literal["off", "keep"] = "off") -> None:
    """Let every token of `model` see every other one, in place; `ensure_attention` also checks the result.

    Args:
        model: a decoder, with or without a language-model head or a PEFT wrapper.
        sliding_window: "off" lifts windows, as the official NV-Embed and LLM2Vec code does; "keep" leaves a
            window of w tokens, which reaches w back and w ahead once the causal mask is gone.
    """
    for config in _configs(model):
        config.is_causal = False
    _set_module_flags(model, causal=False)
    if sliding_window == "off":
        _lift_windows(model)


def make_causal(model: PreTrainedModel) -> None:
    """Undo `make_bidirectional`, in place, its lifted windows apart; a causal model stays as it is."""
    configs = [config for config in _configs(model) if not getattr(config, "is_causal", True)]
    for config in configs:
        config.is_causal = True
    if configs:
        _set_module_flags(model, causal=True)


def ensure_attention(
    model: PreTrainedModel,
    kind: Literal["bidirectional", "causal"],
    *,
    sliding_window: Literal["off", "keep"] = "off",
    allow_causal_layers: bool = False,
    padding_side: Literal["right", "left"] = "right",
) -> ProbeReport:
    """Switch `model` to `kind` in place and prove it by probing every layer.

    Args:
        model: a decoder-only model.
        kind: "causal" keeps the decoder as it was trained, its windows included.
        sliding_window: see `make_bidirectional`; for "bidirectional" only.
        allow_causal_layers: accept layers that cannot look ahead, as long as at least one layer can.
        padding_side: where batches will be padded; that side must not leak into real tokens.

    Raises:
        EmbedforgeError: not a decoder; transformers too old; layers that stay causal (their share and kinds),
            that change with the padding of the batch, or that let padding in; or the family's code fails.
    """
    require_decoder(model)
    if kind == "causal":
        make_causal(model)
        report = probe(model)
        _refuse_errors(report)
        if not report.is_causal:
            raise EmbedforgeError(
                f"{report.model_type} was to be causal, but some layers see later tokens:\n{report}\n"
                "Set attention: bidirectional in the contract, or choose a causal decoder"
            )
    else:
        require_transformers()
        make_bidirectional(model, sliding_window=sliding_window)
        report = probe(model)
        _refuse_errors(report)
        _refuse_causal(report, allow_causal_layers)
        if sliding_window == "off" and any("window" in layer.sight for layer in report.layers):
            raise EmbedforgeError(
                f"{report.model_type}: sliding_window is 'off', but some layers still see a window "
                f"only:\n{report}\nSet model.sliding_window: keep to accept it"
            )
    if report.leaks(f"{padding_side} padded"):
        raise EmbedforgeError(
            f"{report.model_type}: tokens padded on the {padding_side} change real tokens:\n{report}\n"
            "Set padding_side in the contract to the other side, or choose another decoder"
        )
    return report


def needs_module_flags(model: PreTrainedModel) -> bool:
    """Return whether plain `AutoModel.from_pretrained` would load this bidirectional model (partly) causal.

    True for stablelm and nemotron: their attention modules are built causal and do not listen to the config
    where a batch has no padding, so `make_bidirectional` must run again after each load. Measured with the
    modules' flags as built and, where the model has it, under sdpa, the implementation of a plain load.
    """
    flags = {module: module.is_causal for module in model.modules() if hasattr(module, "is_causal")}
    before = probe(model)
    _set_module_flags(model, causal=True)
    try:
        with _plain_implementation(model):
            after = probe(model)
    finally:
        for module, flag in flags.items():
            module.is_causal = flag
    return len(after.causal_layers) > len(before.causal_layers)


@contextlib.contextmanager
def _plain_implementation(model: PreTrainedModel) -> Iterator[None]:
    """Switch to the attention implementation that a load without options would choose."""
    current = model.config._attn_implementation
    plain = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    model.set_attn_implementation(plain)
    try:
        yield
    finally:
        model.set_attn_implementation(current)


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """Every config object that a part of the model reads: mostly one, shared by all."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())


def _set_module_flags(model: nn.Module, *, causal: bool) -> None:
    module: Any
    for module in model.modules():
        if isinstance(getattr(module, "is_causal", None), bool):
            module.is_causal = causal


def _lift_windows(model: nn.Module) -> None:
    module: Any
    for config in _configs(model):
        if getattr(config, "sliding_window", None):
            config.sliding_window = UNLIMITED if getattr(config, "layer_types", None) else None
        if getattr(config, "local_attention", None):
            config.local_attention = 2 * UNLIMITED  # modernbert-decoder: twice the window, read at load
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = UNLIMITED


def _refuse_errors(report: ProbeReport) -> None:
    if report.errors:
        what = "; ".join(f"{condition}: {error}" for condition, error in report.errors.items())
        raise EmbedforgeError(
            f"{report.model_type} fails under attention implementation '{report.implementation}' ({what}). "
            "Try another model.attention_implementation, or choose another decoder (docs/families.md)"
        )


def _refuse_causal(report: ProbeReport, allowed: bool) -> None:
    erratic = [str(layer.index) for layer in report.layers if not layer.is_consistent]
    if erratic:
        raise EmbedforgeError(
            f"{report.model_type}: layers {', '.join(erratic)} see later tokens or not depending on the "
            f"padding of the batch, so a text's vector would depend on its neighbours:\n{report}\n"
            "Choose another decoder or attention implementation (docs/families.md)"
        )
    causal = report.causal_layers
    if not causal or (allowed and report.causal_share < 1):
        return
    kinds: dict[str, list[str]] = {}
    for layer in causal:
        kinds.setdefault(layer.kind, []).append(str(layer.index))
    named = "; ".join(f"{kind} (layers {', '.join(indices)})" for kind, indices in kinds.items())
    accept = ", set model.allow_causal_layers: true to accept them" if report.causal_share < 1 else ""
    raise EmbedforgeError(
        f"{report.model_type}: {len(causal)} of {len(report.layers)} layers ({report.causal_share:.0%}) stay "
        f"causal under '{report.implementation}': {named}. Choose a decoder made of attention layers "
        f"(docs/families.md){accept}, or set attention: causal in the contract"
    )
