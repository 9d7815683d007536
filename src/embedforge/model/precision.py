"""The dtype of a model's weights, on disk and in memory; casts that leave rotary frequencies exact."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from embedforge.files import read_object, write_json
from embedforge.model.decoder import DTYPES, torch_dtype
from embedforge.model.int8 import BESIDE_INT8
from embedforge.model.shards import list_tensors
from embedforge.runtime import fast_bfloat16

HALVES = (torch.bfloat16, torch.float16)
INT8 = "int8"
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(folder: Path) -> str:
    """Return the dtype of most of a folder's weights; of quantised ones what config.json names."""
    sizes: Counter[str] = Counter()
    for entry in list_tensors(folder):
        sizes[entry.dtype] += entry.end - entry.begin
    most = sizes.most_common(1)[0][0]
    return _STORED[most] if most in _STORED else named_dtype(folder)


def named_dtype(folder: Path) -> str:
    """Return the dtype that config.json names: of int8 weights that of what is beside them."""
    values = read_object(folder / "config.json")
    named = str(values.get("dtype") or values.get("torch_dtype")).removeprefix("torch.")
    return named if named in DTYPES else "float32"


def saved_dtype(decoder: PreTrainedModel, wanted: str) -> str:
    """Return the dtype to save in: what the contract wants, and never more bits than the weights have.

    Of int8 weights what is beside them keeps its own.
    """
    if wanted == INT8:
        return str(getattr(decoder, BESIDE_INT8, decoder.dtype)).removeprefix("torch.")
    return str(decoder.dtype).removeprefix("torch.") if decoder.dtype in HALVES else wanted


def memory_dtype(folder: Path, saved: str, device: str) -> str:
    """Return the dtype to load a saved model in when nobody says: the saved one, or float32 on most CPUs.

    A CPU without instructions for 16-bit products computes them many times slower than float32, which is the
    same numbers. Where they would take more than half of the machine's memory, they stay as saved. A model
    without layers, a static embedder, has no products that would be worth the rounding. Of int8 weights it is
    the dtype of what is beside them, and of what they are multiplied with.
    """
    saved = named_dtype(folder) if saved == INT8 else saved
    if saved == "float32" or torch.device(device).type != "cpu":
        return saved
    has_layers = read_object(folder / "config.json").get("num_hidden_layers") != 0
    if saved == "bfloat16" and has_layers and fast_bfloat16(torch.device("cpu")):
        return saved
    needed = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed * 2
    return "float32" if needed <= pages / 2 else saved


def save_decoder(decoder: PreTrainedModel, folder: str, dtype: str) -> None:
    """Write a decoder in a dtype; a cast takes memory for one copy of it in that dtype."""
    target = torch_dtype(dtype)
    if decoder.dtype == target:
        decoder.save_pretrained(folder)
        return
    weights = decoder.state_dict().items()
    state = {name: tensor.to(target) if tensor.is_floating_point() else tensor for name, tensor in weights}
    before = decoder.config.dtype
    decoder.save_pretrained(folder, state_dict=state)
    decoder.config.dtype = before
    file = Path(folder) / "config.json"
    write_json(file, read_object(file) | {"dtype": dtype})


class ExactRotary(nn.Module):
    """A module of which `.to(torch.bfloat16)`, `.bfloat16()` and `.half()` leave rotary frequencies float32.

    They are computed, not learned, and multiply the position: rounded to the 8 bits of a bfloat16 they are
    off by up to 0.4 %, so that the fast angles at position 4,000 are off by whole radians.
    `from_pretrained(dtype=torch.bfloat16)` of transformers leaves them float32 as well.
    """

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        """Do what every cast and move comes down to in torch, then bring rounded frequencies back."""
        exact = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name.endswith("inv_freq") and buffer.dtype == torch.float32
        ]
        super()._apply(fn, recurse)
        for module, name, buffer in exact:
            cast = getattr(module, name)
            if cast.dtype in HALVES:
                setattr(module, name, buffer.to(cast.device))
        return self
