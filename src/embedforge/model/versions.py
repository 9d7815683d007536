"""When what was derived from weights has to be made anew."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def version_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what changes when a tensor is replaced, moved, cast or written to in place."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device
