"""Linear layers with int8 weights and a scale for each row: a quarter of float32, in memory and on disk.

Products are computed in the dtype of what comes in, so nothing but the weights is rounded. The file has a
name of its own: a loader that does not know of the scales finds no weights, instead of wrong ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from embedforge.errors import EmbedforgeError
from embedforge.model.probe import decoder_layers
from embedforge.model.shards import WEIGHTS, read_header

FILE_NAME = "model.int8.safetensors"
LARGEST = 127
_ONE_FILE = "1000TB"


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
        product = functional.linear(states, self.weight.to(states.dtype))
        product = product * self.scale.to(product.dtype)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        """Move with the model, but leave the scales in float32: a bfloat16 one would round every weight."""
        super()._apply(fn, recurse)
        self.scale = self.scale.float()
        return self


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


def save_int8(decoder: PreTrainedModel, folder: Path) -> None:
    """Write config and weights of a decoder with int8 layers."""
    decoder.save_pretrained(folder, max_shard_size=_ONE_FILE)
    (folder / WEIGHTS).rename(folder / FILE_NAME)


def read_int8(folder: Path, config: PreTrainedConfig, dtype: Any, attention: str | None) -> PreTrainedModel:
    """Read what `save_int8` wrote.

    Args:
        folder: with `FILE_NAME` in it.
        config: of the decoder.
        dtype: of all that is not int8; as stored when None or "auto".
        attention: implementation, transformers' choice when None.

    Raises:
        EmbedforgeError: the file is damaged, or of another model.
    """
    file = folder / FILE_NAME
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
    except (OSError, ValueError, RuntimeError, SafetensorError, StopIteration) as error:
        raise EmbedforgeError(
            f"{file}: these are not the weights of config.json beside it: {error}"
        ) from error
    return model
