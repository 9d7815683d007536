"""Who sees whom: a proof, layer by layer, of whether a decoder's tokens see the tokens after them.

A flag says what a model was asked to do; transformers drops, ignores or half-applies such flags for some
families. The probe therefore measures. For each layer alone it takes the gradient of the first real token's
output with respect to every token's input to that layer. A masked attention weight is exactly zero and so is
its gradient; an open one leaves a gradient however small the weight. There is no threshold to choose, and a
16-bit residual stream that would round a small change away does not hide it.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from embedforge.errors import EmbedforgeError

Sight = Literal["all", "window", "none", "error"]
"""What the first real token sees: the last one, only nearer later ones, no later one; or the model failed."""

CONDITIONS = ("no mask", "all ones", "right padded", "left padded")
"""The attention masks tried: kernels skip the mask where nothing is padded, so each can differ."""

_ROWS, _TOKENS, _PADS = 2, 11, 3


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer: its kind, and per condition (in the order of `CONDITIONS`) what it sees."""

    index: int
    kind: str
    """From the config's list of layer types where it has one, else the layer's class."""
    sight: tuple[Sight, ...]
    leaks: tuple[bool, ...]
    """Whether a padding token changes the first real token."""

    @property
    def is_causal(self) -> bool:
        """True when the layer hides later tokens under at least one condition."""
        return "none" in self.sight

    @property
    def is_consistent(self) -> bool:
        """True when what the layer sees does not depend on how the batch is padded."""
        return len(set(self.sight) - {"error"}) <= 1


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What every layer of a model sees, under one attention implementation; prints as a table."""

    model_type: str
    implementation: str
    layers: tuple[LayerReport, ...]
    errors: Mapping[str, str] = field(default_factory=dict)
    """Conditions under which the model's own code failed, with what it raised."""

    @property
    def is_causal(self) -> bool:
        """True when no layer sees any later token under any condition."""
        return all(set(layer.sight) == {"none"} for layer in self.layers)

    @property
    def causal_layers(self) -> tuple[LayerReport, ...]:
        """The layers that hide later tokens under at least one condition."""
        return tuple(layer for layer in self.layers if layer.is_causal)

    @property
    def causal_share(self) -> float:
        """Share of the layers, 0 to 1, that hide later tokens under at least one condition."""
        return len(self.causal_layers) / len(self.layers)

    def leaks(self, condition: str) -> bool:
        """Whether padding tokens change real ones in some layer; `condition` is one of `CONDITIONS`."""
        return any(layer.leaks[CONDITIONS.index(condition)] for layer in self.layers)

    def __str__(self) -> str:
        rows = [["layers", "kind", *CONDITIONS]]
        for _, same in itertools.groupby(
            self.layers, key=lambda layer: (layer.kind, layer.sight, layer.leaks)
        ):
            first, *rest = same
            span = f"{first.index}-{rest[-1].index}" if rest else f"{first.index}"
            pairs = zip(first.sight, first.leaks, strict=True)
            rows.append([span, first.kind, *(f"{see}, leaks" if leak else see for see, leak in pairs)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        notes = [f"{condition}: {error}" for condition, error in self.errors.items()]
        title = f"{self.model_type} ({self.implementation}): which later tokens the first token sees"
        return "\n".join([title, *lines, *notes])


def probe(model: PreTrainedModel) -> ProbeReport:
    """Measure what each layer sees under every one of `CONDITIONS`.

    >>> import embedforge
    >>> model = embedforge.build(base="embedforge:base", contract=embedforge.Contract(attention="causal"))
    >>> print(embedforge.probe(model.decoder))
    mistral (sdpa): which later tokens the first token sees
    layers  kind                 no mask  all ones  right padded  left padded
    0-3     MistralDecoderLayer  none     none      none          none
    >>> model = embedforge.build(base="embedforge:base", contract=embedforge.Contract())
    >>> embedforge.probe(model.decoder).causal_layers
    ()

    Costs four forward and backward passes over 22 tokens, on the model's device and in its dtype. Weights,
    gradients, train/eval modes and random state stay as they were. A window wider than 10 tokens reads as
    "all". Works on a PEFT-wrapped or causal-LM model as well; only its decoder is run.

    Raises:
        EmbedforgeError: the list of the decoder's layers cannot be found.
    """
    layers = decoder_layers(model)
    results, errors = [], {}
    with _nothing_silent(layers):
        for condition in CONDITIONS:
            try:
                results.append(_look(model, layers, condition))
            except Exception as error:  # whatever the family's code raises here is a finding of the probe
                errors[condition] = f"{type(error).__name__}: {error}".splitlines()[0]
                results.append([("error", False)] * len(layers))
    kinds = _kinds(model, layers)
    return ProbeReport(
        model_type=model.config.model_type,
        implementation=model.config._attn_implementation or "eager",
        layers=tuple(
            LayerReport(index, kinds[index], tuple(see for see, _ in row), tuple(leak for _, leak in row))
            for index, row in enumerate(zip(*results, strict=True))
        ),
        errors=errors,
    )


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder's layers, first to last: the outermost module list as long as the config says.

    Raises:
        EmbedforgeError: there is no such list.
    """
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    candidates = [
        (name.count("."), -sum(weight.numel() for weight in module.parameters()), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not candidates:
        raise EmbedforgeError(
            f"{type(model).__name__}: found no list of {count} layers (config.num_hidden_layers), so its "
            "attention cannot be checked; use a decoder that keeps its layers in a torch.nn.ModuleList"
        )
    return list(min(candidates, key=lambda item: item[:2])[2])


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return positions that number the real tokens of each row 0, 1, 2, ... wherever its padding stands.

    Left-padded rows need this for learned absolute positions (gpt2, gpt_bigcode, xglm, biogpt), which count
    from the first column otherwise; rotary and ALiBi models give the same vectors with and without it. Pass
    it whenever a batch is left padded and `takes_position_ids(model)`.

    Args:
        attention_mask: [texts, tokens] int64, 1 for real tokens.

    Returns:
        [texts, tokens] int64; 0 on left padding, the last position on right padding.
    """
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def takes_position_ids(model: nn.Module) -> bool:
    """Return whether the decoder's forward has a `position_ids` argument."""
    wrapped: Any = model
    base = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
    return "position_ids" in inspect.signature(base.forward).parameters


def _look(model: PreTrainedModel, layers: Sequence[nn.Module], condition: str) -> list[tuple[Sight, bool]]:
    """Run the decoder once; per layer, what its first real token sees and whether padding leaks into it."""
    embeddings: Any = model.get_input_embeddings()
    device = embeddings.weight.device
    tokens = torch.arange(7, 7 + 5 * _ROWS * _TOKENS, 5, device=device).view(_ROWS, _TOKENS)
    mask = _mask(condition).to(device)
    batch = {"input_ids": tokens % embeddings.num_embeddings}
    if condition != "no mask":
        batch["attention_mask"] = mask
    if condition == "left padded" and takes_position_ids(model):
        batch["position_ids"] = position_ids(mask)
    decoder: Any = getattr(model, "base_model", model)
    with _watched(layers, mask.argmax(-1)) as influences, _eval_mode(model):
        decoder(**batch, use_cache=False)
    if len(influences) != len(layers):
        raise EmbedforgeError(f"{len(influences)} of {len(layers)} layers ran")
    return [_verdict(influence, mask.cpu()) for influence in influences]


def _mask(condition: str) -> Tensor:
    """[rows, tokens]: row 0 is never padded, row 1 where the condition says so."""
    mask = torch.ones(_ROWS, _TOKENS, dtype=torch.int64)
    if condition == "right padded":
        mask[1, -_PADS:] = 0
    elif condition == "left padded":
        mask[1, :_PADS] = 0
    return mask


def _verdict(influence: Tensor, mask: Tensor) -> tuple[Sight, bool]:
    """Read one layer's influences [rows, tokens] on the first real token; the worst row decides."""
    order: tuple[Sight, ...] = ("none", "window", "all")
    worst, leaks = len(order), False
    for row, real in zip(influence, mask.bool(), strict=True):
        later = row[real][1:] > 0
        worst = min(worst, 2 if later[-1] else 1 if later.any() else 0)
        leaks = leaks or bool((row[~real] > 0).any())
    return order[worst], leaks


@contextlib.contextmanager
@torch.no_grad()
def _nothing_silent(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Fill matrices of zeros for a while: a layer that has no effect yet would seem to see nothing."""
    silent = [
        weight
        for layer in layers
        for weight in layer.parameters()
        if weight.dim() > 1 and weight.numel() and weight.is_floating_point() and not weight.is_meta
        # The first row tells nearly always, and a large decoder takes seconds to read.
        if not (weight[0].any() or weight.any())
    ]
    try:
        for weight in silent:
            weight.fill_(0.01)
        yield
    finally:
        for weight in silent:
            weight.zero_()


@contextlib.contextmanager
def _watched(layers: Sequence[nn.Module], first: Tensor) -> Iterator[list[Tensor]]:
    """While open, every layer that runs adds its influences [rows, tokens] on the tokens `first` [rows].

    A layer's input is cut from the graph, so a gradient can only come through that layer itself, or through
    keys and values that an earlier layer handed on (gemma3n, gemma4): those count as the layer's own sight.
    """
    inputs: list[Tensor] = []
    influences: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        inputs.append(hidden.detach().requires_grad_())
        fresh = inputs[-1].clone()  # a layer may write into its input, which a leaf forbids
        return ((fresh, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": fresh})

    def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        states = _by_token(output if isinstance(output, Tensor) else output[0])
        read = states[torch.arange(_ROWS, device=states.device), first.to(states.device)]
        # Random weights: a plain sum is constant after a layer norm, and its gradient vanishes.
        weights = torch.randn(read.shape, generator=torch.Generator().manual_seed(0)).to(read)
        gradients = torch.autograd.grad((read * weights).sum(), inputs, retain_graph=True, allow_unused=True)
        reached = [_by_token(gradient) for gradient in gradients if gradient is not None]
        influence = torch.stack([part.abs().amax(-1).float().cpu() for part in reached]).sum(0)
        if not influence.isfinite().all():
            raise EmbedforgeError(f"layer {len(influences)}: the gradient is not finite")
        influences.append(influence)

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(leave).remove)
        with torch.inference_mode(False), torch.enable_grad():
            yield influences


def _by_token(states: Tensor) -> Tensor:
    """Bring the rows and tokens of a layer's states to the front: [rows, tokens, rest].

    Most layers have [rows, tokens, hidden]; gemma3n has several streams before, others streams after.
    """
    axis = next(at for at in range(states.dim() - 1) if states.shape[at : at + 2] == (_ROWS, _TOKENS))
    return states.movedim((axis, axis + 1), (0, 1)).flatten(2)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _kinds(model: PreTrainedModel, layers: Sequence[nn.Module]) -> list[str]:
    config = model.config.get_text_config()
    named = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if named and len(named) == len(layers):
        return [str(kind) for kind in named]
    return [type(layer).__name__ for layer in layers]
