"""Sizes that are refused by arithmetic, before anything is allocated."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from embedforge.errors import EmbedforgeError


def memory_at_hand() -> int:
    """Return the bytes that this process may have: the machine's memory, or a limit if that is less.

    Limits are the process's own and those of its container.
    """
    most = min([2**63, *_container_limits()])
    try:
        import resource

        limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
        most = min([most, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
        return min(most, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ImportError, ValueError, OSError):  # Windows
        return most


def _container_limits() -> list[int]:
    found = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no container, another system, or the word "max"
            found.append(int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii")))
    return [limit for limit in found if limit > 0]


def require_memory(needed: int, what: str) -> None:
    """Refuse what does not fit this machine's memory.

    Raises:
        EmbedforgeError: names what, and both sizes.
    """
    there = memory_at_hand()
    if needed > there:
        raise EmbedforgeError(
            f"{what}: needs {_gigabytes(needed)} of memory, and there are {_gigabytes(there)}; is a size "
            "meant to be smaller? Else take a smaller model, or a larger machine"
        )


def parameter_bytes(make: Callable[[], nn.Module], what: str) -> int:
    """Return the bytes of a module's parameters without making them.

    Raises:
        EmbedforgeError: sizes that no tensor can have.
    """
    try:
        with torch.device("meta"):
            return sum(weight.numel() * weight.element_size() for weight in make().parameters())
    except (RuntimeError, OverflowError, TypeError) as error:
        if isinstance(error, TypeError) and "Overflow" not in str(error):  # which torch says by a TypeError
            raise
        raise EmbedforgeError(
            f"{what}: sizes that no tensor can have ({str(error).splitlines()[0]:.200})"
        ) from None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
