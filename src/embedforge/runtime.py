"""The machine: devices, ranks, precision, what to do where memory does not suffice."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
"""oneDNN, torch's bfloat16 on CPUs, keeps what it compiled for each shape of a matrix product, by default for
the last 1024, at up to 0.7 MB and half a millisecond each; what it forgets it hardly gives back. Padded
batches hardly ever have a shape twice, so that was a gigabyte for nothing. Encoding without padding
(model/quick.py) has a few hundred in all, which are all kept. Read when the first product is computed.
"""

_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
_WITHOUT_BFLOAT16 = (*_WITHOUT_VNNI, "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE_VNNI")
"""What oneDNN may be held to by its environment variable: bfloat16 is emulated then, whatever the CPU has."""
MOST_SIDE_BY_SIDE = 8
"""Batches in memory at once; beyond that many threads each has several."""
Given = TypeVar("Given")
Made = TypeVar("Made")


def pick_device(name: str | None) -> torch.device:
    """Return the device by name, or CUDA where there is one, else the CPU.

    Under torchrun, which names each rank's place on its machine in LOCAL_RANK, CUDA is that GPU.

    Raises:
        EmbedforgeError: a name that torch does not know, a device that is not there, or not this rank's.
    """
    rank = int(os.environ.get("LOCAL_RANK", "-1"))
    if name is None and not torch.cuda.is_available():
        return torch.device("cpu")
    if rank >= 0 and (name or "cuda").startswith("cuda") and torch.cuda.is_available():
        return _device_of_rank(name, rank)
    if name is None:
        return torch.device("cuda")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EmbedforgeError(f"--device {name}: not a device; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EmbedforgeError(
            f"--device {name}: this torch ({torch.__version__}) sees no CUDA device; use --device cpu"
        )
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EmbedforgeError(
            f"--device {name}: there is no such device that this torch ({torch.__version__}) can use; "
            "use cpu, cuda or cuda:N"
        ) from error
    return device


def _device_of_rank(name: str | None, rank: int) -> torch.device:
    if name not in (None, "cuda", f"cuda:{rank}"):
        raise EmbedforgeError(
            f"--device {name}: under torchrun each rank has the GPU of its own number, this one cuda:{rank}; "
            "leave --device out, and choose the GPUs by CUDA_VISIBLE_DEVICES"
        )
    if rank >= torch.cuda.device_count():
        raise EmbedforgeError(
            f"rank {rank} of this machine has no GPU: {torch.cuda.device_count()} are visible; start at most "
            "as many ranks (torchrun --nproc-per-node), or use --device cpu"
        )
    return torch.device("cuda", rank)


def under_torchrun() -> bool:
    """Say whether this process is one of the ranks that torchrun started, be it the only one."""
    return "WORLD_SIZE" in os.environ


def world_size() -> int:
    """Return the number of ranks: 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Say whether this process writes files: the only one, or rank 0 under torchrun."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def bfloat16_autocast(device: torch.device, enabled: bool) -> Iterator[None]:
    """Run matrix products in bfloat16 on float32 weights, where `enabled`."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
        yield


def fast_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 matrix products are native here: CUDA, or a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if onednn_limit() in _WITHOUT_BFLOAT16:
        return False
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capabilities or (capabilities.startswith("AVX512") and _has_cpu_flag("bf16"))


def fast_bytes() -> bool:
    """Say whether this CPU sums products of bytes in 32 bits at once (VNNI): AVX-512 or AVX2 with it, AMX."""
    if onednn_limit().startswith("AVX2_VNNI"):  # its own instructions, which not every one with AVX-512's has
        return _has_cpu_flag("avx_vnni")
    return onednn_limit() not in _WITHOUT_VNNI and _has_cpu_flag("vnni")


def onednn_limit() -> str:
    """Return the processor that oneDNN is told to take this one for, if it is told."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()


@cache
def _has_cpu_flag(word: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as lines:  # noqa: PTH123
            return any(line.startswith("flags") and word in line for line in lines)
    except OSError:
        return False


def native_precision(wanted: str, device: torch.device) -> str:
    """Return a recipe's precision, or "float32" where bfloat16 is only emulated, many times slower."""
    return wanted if wanted == "float32" or fast_bfloat16(device) else "float32"


def wait_for_first_rank(is_done: Callable[[], bool], what: str, patience: float = 3600.0) -> None:
    """Wait until the first rank has done what one process does for all.

    Raises:
        EmbedforgeError: it has not within `patience` seconds; `what` begins the message.
    """
    started = time.monotonic()
    while not is_done():
        if time.monotonic() - started > patience:
            raise EmbedforgeError(f"{what}: the first rank has not written it in {patience / 60:.0f} minutes")
        time.sleep(0.2)


def at_once() -> int:
    """Return how many items `side_by_side` works on at a time, where there are enough of them."""
    return min(torch.get_num_threads(), MOST_SIDE_BY_SIDE)


def side_by_side(work: Callable[[Given], Made], items: Sequence[Given]) -> Iterator[Made]:
    """Yield `work(item)` in the order of `items`, several at a time, each on its share of the CPU's threads.

    The products of a small model are too small for many cores, which wait for each other after each of them;
    with an item each they do not. `work` is torch's most of the time, so that Python's lock is free. Contexts
    such as `no_grad` are a thread's own: `work` enters them itself.

    Args:
        work: may be called from several threads at once.
        items: alike in size. With fewer than two for each thread they are done one after the other.
    """
    threads, workers = torch.get_num_threads(), min(at_once(), len(items) // 2)
    if workers < 2:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(
        workers, "embedforge", initializer=torch.set_num_threads, initargs=(threads // workers,)
    )
    try:
        for done in [pool.submit(work, item) for item in items]:
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # a new thread begins with what any thread has set last


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step instead of handing them back.

    A training step on CPU frees and takes the same large buffers over and over, and so does encoding, layer
    after layer; by default each one is mapped afresh and its pages faulted in, which was measured to cost up
    to 40 % of a step, and 6 % of encoding. Other systems than glibc/Linux are left alone.
    """
    if (libc := _glibc()) is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # <malloc.h>
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(top_pad, 2**26)
        libc.mallopt(mmap_threshold, 2**30)


def release_freed_memory() -> None:
    """Hand all freed memory back to the system, now.

    Batches of many sizes leave holes between blocks that are in use; kept, they were measured to add more
    than a gigabyte within a hundred steps. To be called every few steps: a call costs about what
    `keep_freed_memory` saves in one.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def halved_budget(error: Exception, budget: int, longest: int, way_out: str) -> int:
    """Return the budget of tokens to try after `error`; `longest`, the longest text alone, is the least.

    Raises:
        EmbedforgeError: that had been tried; the message ends with `way_out`.
        Exception: `error` itself, if it is not about memory.
    """
    if not out_of_memory(error):
        raise error
    if budget <= longest:
        raise EmbedforgeError(f"out of memory with one text of {longest} tokens: {way_out}") from error
    return max(budget // 2, longest)


def empty_cache() -> None:
    """Give memory that CUDA's allocator keeps back to it, where CUDA is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory did not suffice, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message
    )


def _glibc() -> ctypes.CDLL | None:
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL("libc.so.6")
    return None


def require_finite(vectors: NDArray[Any], texts: Sequence[Any]) -> None:
    """Refuse a text whose vector is not finite, of [texts, dim]: whatever is computed with it is nothing.

    Raises:
        EmbedforgeError: names the first such text.
    """
    if (finite := np.isfinite(vectors).all(axis=-1)).all():
        return
    text = texts[int(np.flatnonzero(~finite)[0])]
    raise EmbedforgeError(
        f"the vector of a text is not finite (NaN or infinity): {text!r:.60}. 16-bit numbers overflow where "
        "float32 ones may not: --dtype float32, in Python load(..., dtype='float32')"
    )
