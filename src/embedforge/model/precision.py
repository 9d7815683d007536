"""Casting a model without rounding the frequencies of its rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

HALVES = (torch.bfloat16, torch.float16)


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
