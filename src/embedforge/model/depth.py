"""Fewer layers for a while: a stage trains the first ones of a decoder, a later stage adds the others.

A step of a static embedder, which is a decoder without any layer, costs a thirtieth of one with three; what
the token table learns there the whole model starts from. Layers that come in begin without an effect, so that
nothing of it is lost (their last products are zero, as those of a new LoRA adapter are). They also begin
anew: what the decoder's own layers know is how to read a table that is no longer there (docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from embedforge.errors import EmbedforgeError
from embedforge.model.attention import decoder_layers

_OUTPUTS = ("o_proj", "down_proj")
"""The last products of attention and of the feed-forward block, by the names of Llama's descendants."""


class Depth:
    """How many of a decoder's layers run; the others wait outside of it, neither trained nor saved."""

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder: Any = decoder
        self._all = list(decoder_layers(self._decoder))
        self._list = next(
            module
            for module in self._decoder.modules()
            if isinstance(module, nn.ModuleList) and list(module) == self._all
        )

    def set(self, layers: int | None) -> bool:
        """Let the first `layers` run, all when None; say whether some came in, which have no effect at first.

        Raises:
            EmbedforgeError: the decoder has not so many, or layers that come in are not of Llama's kind.
        """
        wanted = len(self._all) if layers is None else layers
        if wanted > len(self._all):
            raise EmbedforgeError(f"layers is {wanted}, and the decoder has {len(self._all)}")
        running = len(self._list)
        for number, layer in enumerate(self._all[running:wanted], start=running):
            _anew(self._decoder, layer, number)
            without_effect(layer)
        while len(self._list) > wanted:
            del self._list[-1]
        self._list.extend(self._all[len(self._list) : wanted])
        self._decoder.config.get_text_config().num_hidden_layers = wanted
        return wanted > running


@torch.no_grad()
def _anew(decoder: Any, layer: nn.Module, number: int) -> None:
    """Give a layer the weights that its family's untrained decoders have, the same on every rank."""
    with torch.random.fork_rng():
        torch.manual_seed(number)
        for module in layer.modules():
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]  # loaded ones are left alone
            decoder._init_weights(module)


@torch.no_grad()
def without_effect(layer: nn.Module) -> None:
    """Make a layer hand on the states that it gets."""
    outputs = [module for name, module in layer.named_modules() if name.rpartition(".")[2] in _OUTPUTS]
    if len(outputs) != len(_OUTPUTS):
        raise EmbedforgeError(
            f"{type(layer).__name__}: found no {' and '.join(_OUTPUTS)} in it, which a layer that comes in "
            "later is silenced by; leave `layers` of the stages out"
        )
    for module in outputs:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
