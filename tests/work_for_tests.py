"""What a piece of work did, counted: bytes copied, operations, graphs compiled. The same on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

COPIES = {
    "copy_", "clone", "_to_copy", "contiguous", "cat", "stack", "index", "index_select", "index_copy",
    "index_copy_", "index_put_", "gather", "constant_pad_nd", "repeat", "embedding",
}  # fmt: skip
"""Operations that write numbers which are there already, at most in another dtype or order."""


class CopiedBytes(TorchDispatchMode):
    """Counts the bytes that copies write, by operation, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operation: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        """Of every operation, copies or not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in COPIES:
            written = args[2] if name == "index_put_" else args[3] if name == "index_copy_" else made
            self.by_operation[name] += written.nbytes if isinstance(written, Tensor) else made.nbytes
        return made

    @property
    def total(self) -> int:
        """Of all operations."""
        return sum(self.by_operation.values())


def copied_bytes(work: Callable[[], Any]) -> CopiedBytes:
    """Return what `work` copies."""
    with CopiedBytes() as counted:
        work()
    return counted


def operations(work: Callable[[], Any]) -> int:
    """Return the FLOPs of products, a multiplication and its addition being two."""
    with FlopCounterMode(display=False) as counted:
        work()
    return int(counted.get_total_flops())


def compiled(work: Callable[[], Any]) -> tuple[int, int]:
    """Return how many graphs `work` makes torch compile, and how often one of them breaks off."""
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    work()
    return int(counters["stats"]["unique_graphs"]), sum(counters["graph_break"].values())
