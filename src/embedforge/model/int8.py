"""Linear layers with int8 weights and a scale for each row: a quarter of float32.

Products are computed in the dtype of what comes in, so nothing but the weights is rounded. On a CPU they can
be products of bytes (`multiply_bytes`), by oneDNN: what comes in is rounded too, each token's state with a
scale of its own. The file has a name of its own: a loader that does not know of the scales finds no weights,
instead of wrong ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, write_json
from embedforge.model.memory import memory_at_hand
from embedforge.model.probe import decoder_layers
from embedforge.model.shards import INT8_WEIGHTS, WEIGHTS, read_header
from embedforge.model.versions import version_of
from embedforge.runtime import fast_bfloat16, fast_bytes

LARGEST = 127
LEAST_COSINE = 0.995
"""Of a golden's vector by products of bytes with that by exact ones."""
BESIDE_INT8 = "dtype_beside_int8"
"""Attribute of a decoder that was read with int8 weights: the dtype that the others have in the file."""
logger = logging.getLogger(__name__)
_ONE_FILE = "1000TB"


class Rounded(NamedTuple):
    """States as bytes, each row with a scale of its own."""

    numbers: Tensor
    """uint8 [rows, width]; `zero_byte()` stands for 0."""
    scale: Tensor
    """float32 [rows, 1]: what 1 is worth."""
    dtype: torch.dtype
    """Of the states, or of autocast: what their products have."""


def zero_byte() -> int:
    """Return the byte that stands for 0: 128, or 64 where a processor would not hold products of 8 bits.

    Without VNNI it adds two products of a byte and a signed byte in 16 bits, which 255 * 127 * 2 exceeds, and
    127 * 127 * 2 does not.
    """
    return 128 if fast_bytes() else 64


def rounded(states: Tensor) -> Rounded:
    """Round states [..., width], each row by its largest number."""
    exact, zero = states.flatten(0, -2).float(), zero_byte()
    largest = torch.maximum(exact.amax(1, keepdim=True), exact.amin(1, keepdim=True).neg_())
    scale = largest.clamp_min_(1e-12).div_(zero - 1)
    numbers = exact.mul(scale.reciprocal()).add_(zero + 0.5).to(torch.uint8)  # cut off, so rounded
    autocast = torch.is_autocast_enabled("cpu")
    return Rounded(numbers, scale, torch.get_autocast_dtype("cpu") if autocast else states.dtype)


def maps_of(states: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
    """Apply linear layers to the same states, which those that multiply bytes have rounded once."""
    own = [linear for linear in linears if isinstance(linear, Int8Linear) and linear.takes_bytes(states)]
    if len(own) == len(linears):
        given = rounded(states)
        return [linear.of_bytes(given).view(*states.shape[:-1], linear.out_features) for linear in own]
    return [linear(states) for linear in linears]


class Int8Linear(nn.Module):
    """y = x W^T + b with W = weight * scale, a scale for each row."""

    def __init__(self, out_features: int, in_features: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.float32))
        self.bias = bias
        self.by_bytes = False
        self._packed: tuple[Any, Tensor] | None = None
        """The weights as oneDNN has them, from the first product of bytes on, and which weights they were."""

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """Round the weights of a linear layer; a row's largest becomes 127, and zeros stay zero."""
        made = cls(linear.out_features, linear.in_features, linear.bias)
        exact = linear.weight.detach().float()
        scale = exact.abs().amax(dim=1).clamp_min(1e-12) / LARGEST
        made.weight = (exact / scale[:, None]).round().to(torch.int8)
        made.scale = scale
        return made

    def forward(self, states: Tensor) -> Tensor:
        """Map states [..., in] to [..., out], in their dtype."""
        if self.takes_bytes(states):
            return self.of_bytes(rounded(states)).view(*states.shape[:-1], self.out_features)
        if (weight := self.exact_weight(states)) is not None:
            bias = None if self.bias is None else self.bias.to(states.dtype)
            return functional.linear(states, weight, bias)
        product = functional.linear(states, self.weight.to(states.dtype))
        product = product * self.scale.to(product.dtype)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def exact_weight(self, states: Tensor) -> Tensor | None:
        """Return W in the dtype of states [..., in]; None where scaling their product takes less."""
        if states.numel() < self.in_features**2 or self.takes_bytes(states):
            return None
        return (self.weight.float() * self.scale[:, None]).to(states.dtype)

    def takes_bytes(self, states: Tensor) -> bool:
        """Tell whether states are multiplied as bytes: where asked for, without a gradient, on a CPU."""
        known = states.device.type == "cpu" and states.dtype in (torch.float32, torch.bfloat16)
        return self.by_bytes and known and not torch.is_grad_enabled()

    def of_bytes(self, given: Rounded) -> Tensor:
        """Map rounded states to [rows, out], in the dtype that the states had."""
        key = version_of(self.weight)
        if self._packed is None or self._packed[0] != key:
            self._packed = key, torch.ops.onednn.qlinear_prepack(self.weight, None)
        zeros = torch.zeros(self.out_features, dtype=torch.int32)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            given.numbers,
            1.0,
            zero_byte(),
            self._packed[1],
            self.scale,
            zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        product.mul_(given.scale)
        return (product if self.bias is None else product.add_(self.bias)).to(given.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        """Move with the model, but leave the scales in float32: a bfloat16 one would round every weight."""
        exact = self.scale
        super()._apply(fn, recurse)
        self.scale = exact.to(self.weight.device)
        if self.weight.device.type != "cpu":
            self._packed = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what oneDNN has packed, which can be neither copied nor sent to another process."""
        return {**self.__dict__, "_packed": None}


def to_int8(decoder: PreTrainedModel) -> int:
    """Replace the linear layers of a decoder's layers, in place; return how many.

    Raises:
        EmbedforgeError: there are none, or they are int8 already.
    """
    if is_int8(decoder):
        raise EmbedforgeError("the weights of this model are int8 already")
    count = 0
    for layer in decoder_layers(decoder):
        for name, part in list(layer.named_modules()):
            if isinstance(part, nn.Linear):
                layer.set_submodule(name, Int8Linear.of(part))
                count += 1
    if not count:
        raise EmbedforgeError("the decoder has no layers with linear maps; there is nothing to round")
    return count


def is_int8(decoder: nn.Module) -> bool:
    """Tell whether `to_int8` was here."""
    return any(isinstance(part, Int8Linear) for part in decoder.modules())


def multiply_bytes(decoder: nn.Module, on: bool = True) -> None:
    """Let a decoder's int8 layers multiply bytes on a CPU, without a gradient; or no longer.

    They keep their weights a second time, as oneDNN wants them.
    """
    for part in decoder.modules():
        if isinstance(part, Int8Linear):
            part.by_bytes = on
            part._packed = part._packed if on else None


def multiplies_bytes(decoder: nn.Module) -> bool:
    """Tell whether `multiply_bytes` is on."""
    return any(isinstance(part, Int8Linear) and part.by_bytes for part in decoder.modules())


def multiply_bytes_where_near(decoder: nn.Module, embed: Callable[[], Tensor], name: str) -> None:
    """Let int8 layers multiply bytes where that is faster, and unit vectors keep `LEAST_COSINE`; or warn.

    Args:
        decoder: on its device.
        embed: embeds the model's goldens, [texts, dim].
        name: of the model, for the warning.
    """
    if not bytes_are_fast(decoder):
        return
    size = sum(part.weight.numel() for part in decoder.modules() if isinstance(part, Int8Linear))
    if 4 * size > memory_at_hand():
        obstacle = "as bytes oneDNN would need them a second time, and memory is short"
    else:
        with torch.no_grad():
            exact = embed()
            multiply_bytes(decoder)
            least = float((exact * embed()).sum(dim=1).min())
        if least >= LEAST_COSINE:
            return
        obstacle = f"as bytes they would bring a golden text's vector to a cosine of {least:.4f}"
    multiply_bytes(decoder, on=False)
    logger.warning(
        "%s: its int8 weights are multiplied as floats, which is slower: %s (dtype float32 says that this is "
        "meant)",
        name,
        obstacle,
    )


def bytes_are_fast(decoder: nn.Module) -> bool:
    """Tell whether products of bytes are worth their rounding: int8 layers, on a CPU without fast bfloat16.

    With bfloat16 they gained 9 %, without it a third (docs/performance.md).
    """
    device = next(decoder.parameters()).device
    known = torch.backends.cpu.get_cpu_capability().startswith("AVX") and hasattr(
        torch.ops.onednn, "qlinear_prepack"
    )
    return is_int8(decoder) and device.type == "cpu" and known and not fast_bfloat16(device)


def save_int8(decoder: PreTrainedModel, folder: Path, dtype: str) -> None:
    """Write config and weights of a decoder with int8 layers, in `dtype` what is neither int8 nor a scale."""
    state = decoder.state_dict()
    scales = {f"{n}.scale" for n, part in decoder.named_modules() if isinstance(part, Int8Linear)}
    for name, tensor in state.items():
        if tensor.is_floating_point() and name not in scales:
            state[name] = tensor.to(getattr(torch, dtype))
    decoder.save_pretrained(folder, max_shard_size=_ONE_FILE, state_dict=state)
    (folder / WEIGHTS).rename(folder / INT8_WEIGHTS)
    config = folder / "config.json"
    write_json(config, read_object(config) | {"dtype": dtype})


def read_int8(folder: Path, config: PreTrainedConfig, dtype: Any, attention: str | None) -> PreTrainedModel:
    """Read what `save_int8` wrote.

    Args:
        folder: with `INT8_WEIGHTS` in it.
        config: of the decoder.
        dtype: of all that is not int8; as stored when None or "auto".
        attention: implementation, transformers' choice when None.

    Raises:
        EmbedforgeError: the file is damaged, or of another model.
    """
    file = folder / INT8_WEIGHTS
    read_header(file)  # refuses one that was cut off
    try:
        stored = load_file(file)
        own = next(
            value.dtype
            for name, value in stored.items()
            if value.is_floating_point() and not name.endswith(".scale")
        )
        chosen = own if dtype in (None, "auto") else dtype
        options = {} if attention is None else {"attn_implementation": attention}
        model: PreTrainedModel = AutoModel.from_config(config, dtype=chosen, **options)
        for layer in decoder_layers(model):
            for name, part in list(layer.named_modules()):
                if isinstance(part, nn.Linear):
                    layer.set_submodule(name, Int8Linear(part.out_features, part.in_features, part.bias))
        model.load_state_dict(stored)
        setattr(model, BESIDE_INT8, own)
    except (OSError, ValueError, RuntimeError, SafetensorError, StopIteration) as error:
        raise EmbedforgeError(
            f"{file}: these are not the weights of config.json beside it: {error}"
        ) from error
    return model
