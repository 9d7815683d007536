"""What a pooler is: the base class of the package's and of yours, and how one is built by its kind."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.model.memory import parameter_bytes, require_memory


class Pooler(nn.Module, ABC):
    """Token states and a pooling mask to one vector a text. A subclass with a `kind` is a pooling.

    The arguments of its `__init__` after `hidden_size` are the settings of the kind: those that a recipe's
    section of the same kind has (`recipe.model.Pooling`), and that a saved model keeps beside the weights.
    """

    kind: ClassVar[str]
    stock: ClassVar[str | None] = None
    """The same pooling's name in sentence-transformers, which then loads the model without embedforge."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()

    @classmethod
    def defined_in(cls) -> str:
        """Return the module to import before a saved model is loaded; "" for embedforge's own."""
        module = cls.__module__
        if module == "__main__":
            file = getattr(sys.modules[module], "__file__", None)  # there is none in a notebook
            return Path(file).stem if file else module
        return "" if module.startswith("embedforge.") else module

    @classmethod
    def settings(cls) -> list[str]:
        """Return the names of the kind's settings."""
        return [name for name in inspect.signature(cls).parameters if name != "hidden_size"]

    @abstractmethod
    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        """Pool [texts, tokens, H] by a mask [texts, tokens] of 0/1 into [texts, H], float32, not unit length.

        What stands in tokens outside the mask, NaN included, must not reach the result.
        """


def poolers() -> dict[str, type[Pooler]]:
    """Return all poolers that have been imported, by kind."""
    waiting = list(Pooler.__subclasses__())
    for pooler in waiting:
        waiting += pooler.__subclasses__()
    return {pooler.kind: pooler for pooler in waiting if "kind" in vars(pooler)}


def pooler_class(kind: str, defined_in: str = "") -> type[Pooler]:
    """Return the pooler of a kind.

    Args:
        kind: of a recipe, a contract, or a saved pooler.
        defined_in: the module that a saved model says its pooler is from; for the message, never imported.

    Raises:
        EmbedforgeError: no pooler of this kind has been imported.
    """
    known = poolers()
    if kind in known:
        return known[kind]
    if defined_in:
        raise EmbedforgeError(
            f"pooling '{kind}' is not embedforge's: it was defined in a module '{defined_in}'. Import that "
            f"module first (import {defined_in}), if you trust it"
        )
    raise EmbedforgeError(
        f"there is no pooling '{kind}'; choose one of {', '.join(known)}.{did_you_mean(kind, known)} One of "
        "your own is there once its module, with a subclass of Pooler, is imported"
    )


def build_pooler(kind: str, hidden_size: int, **settings: Any) -> Pooler:
    """Build a pooler: `forward(token_states, pooling_mask)`, [B, T, H] and [B, T] of 0/1, to [B, H].

    The result is float32 (float64 for float64 states) and not of unit length.

    Args:
        kind: last, mean, weighted_mean, cls, latent, self_attention, or one of your own.
        hidden_size: H, width of the decoder's states and of the result.
        settings: of the kind; see its class.

    Raises:
        EmbedforgeError: there is no such kind, or it has no such setting.
    """
    pooler = pooler_class(kind)
    for name in settings:
        if name not in pooler.settings():
            raise EmbedforgeError(
                f"pooling '{kind}' has no setting '{name}', only {', '.join(pooler.settings()) or 'none'}."
                f"{did_you_mean(name, pooler.settings())}"
            )
    named = f"pooling '{kind}' {settings or ''}".rstrip()
    if settings:
        require_memory(parameter_bytes(lambda: pooler(hidden_size, **settings), named), named)
    return pooler(hidden_size, **settings)
