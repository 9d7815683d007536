"""How many tokens of a step memory can hold with their graphs: measured once in a stage, and written down.

What is held need not be embedded again for its gradient (`objectives.gradcache`), a quarter of a step. Held
or not, the gradient is the same but for rounding. So that a resumed stage rounds as an unbroken one, it is
counted against the whole memory, not against what happens to be free, and kept in `held.json` of the
stage's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from embedforge.files import read_object, write_json
from embedforge.model.memory import memory_at_hand

FILE = "held.json"
SHARE_OF_CPU, SHARE_OF_GPU = 0.25, 0.6
"""Of the memory, for the graphs of one step. A machine's main memory has others in it; what a GPU's weights,
gradients and optimizer take is counted before."""
ROUNDED = 1024
TRAINED_BYTES = 16
"""A trained parameter at most: weight, gradient, two moments, all float32."""


class HeldTokens:
    """The tokens that a stage holds; `folder` keeps the number, where there is one."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = folder / FILE if folder is not None else None
        self._tokens: int | None = None

    def tokens(self, embed: Callable[[], Tensor], count: int, model: nn.Module) -> int:
        """Return the number, measured by embedding `count` tokens where nobody has yet."""
        if self._tokens is None and self._file is not None and self._file.exists():
            self._tokens = int(read_object(self._file)["tokens"])
        if self._tokens is None:
            each = graph_bytes(embed, model.parameters()) / count + _checkpointed(model)
            self._tokens = int(_room(model) / each) // ROUNDED * ROUNDED
            if self._file is not None:
                write_json(self._file, {"tokens": self._tokens, "bytes_a_token": round(each)})
        return self._tokens


def graph_bytes(embed: Callable[[], Tensor], parameters: Iterable[Tensor] = ()) -> int:
    """Return what a forward pass keeps for its backward pass, parameters apart; the random state stays.

    What gradient checkpointing keeps, the input of each layer, is not seen here: `_checkpointed` counts it.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        result = embed()
    total = sum(kept.values())
    del result
    return max(total, 1)


def _checkpointed(model: nn.Module) -> int:
    """Return bytes a token: inputs that checkpointed layers keep, and a layer's graph while it is redone."""
    layers = [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True
    ]
    config = getattr(getattr(model, "decoder", None), "config", None)
    if not layers or config is None:
        return 0
    text = config.get_text_config()
    widest = max(getattr(text, "intermediate_size", None) or 0, 4 * text.hidden_size)
    return 4 * (len(layers) * text.hidden_size + 8 * widest)


def _room(model: nn.Module) -> float:
    device = next(model.parameters()).device
    if device.type != "cuda":
        return SHARE_OF_CPU * memory_at_hand()
    whole = torch.cuda.get_device_properties(device).total_memory
    taken = sum(
        part.numel() * (TRAINED_BYTES if part.requires_grad else part.element_size())
        for part in model.parameters()
    )
    return SHARE_OF_GPU * max(0, whole - taken)
