"""The machine: devices, precision on it, and memory habits of the C library."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch

from embedforge.errors import EmbedforgeError


def pick_device(name: str | None) -> torch.device:
    """Return the device by name, or CUDA where there is one, else the CPU.

    Raises:
        EmbedforgeError: a name that torch does not know, or CUDA where there is none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EmbedforgeError(f"--device {name}: not a device; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EmbedforgeError(
            f"--device {name}: this torch ({torch.__version__}) sees no CUDA device; use --device cpu"
        )
    return device


@contextlib.contextmanager
def bfloat16_autocast(device: torch.device, enabled: bool) -> Iterator[None]:
    """Run matrix products in bfloat16 on float32 weights, where `enabled`."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
        yield


def fast_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 matrix products are native here: CUDA, or a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capabilities or (capabilities.startswith("AVX512") and _has_cpu_flag("bf16"))


def _has_cpu_flag(word: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as lines:  # noqa: PTH123
            return any(line.startswith("flags") and word in line for line in lines)
    except OSError:
        return False


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step instead of handing them back.

    A training step on CPU frees and takes the same large buffers over and over; by default each one is
    mapped afresh and its pages faulted in, which was measured to cost up to 40 % of a step. Other
    systems than glibc/Linux are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # <malloc.h>
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(top_pad, 2**26)
        libc.mallopt(mmap_threshold, 2**30)
