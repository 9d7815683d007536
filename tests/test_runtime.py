"""Devices by name, and precision by what the machine has."""

from __future__ import annotations

import builtins
import importlib
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from embedforge import runtime
from embedforge.errors import EmbedforgeError
from embedforge.runtime import bfloat16_autocast, fast_bfloat16, keep_freed_memory, pick_device, side_by_side

CPU = torch.device("cpu")


def test_the_device_without_a_name_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(None) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None) == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x"])
def test_a_name_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(EmbedforgeError, match=f"--device {name}: not a device; use cpu, cuda"):
        pick_device(name)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbedforgeError, match="--device meta: there is no such device"):
        pick_device("meta")
    if torch.cuda.is_available():
        with pytest.raises(EmbedforgeError, match="--device cuda:99: there is no such device"):
            pick_device("cuda:99")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EmbedforgeError, match="sees no CUDA device; use --device cpu"):
        pick_device("cuda:0")


def test_under_torchrun_each_rank_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in (None, "cuda", "cuda:1"):
        assert pick_device(name) == torch.device("cuda:1")
    assert pick_device("cpu") == CPU
    with pytest.raises(EmbedforgeError, match=r"--device cuda:0: .* this one cuda:1; leave --device out"):
        pick_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(EmbedforgeError, match="rank 2 of this machine has no GPU: 2 are visible"):
        pick_device(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None) == CPU


def test_autocast_is_on_inside_only_and_only_when_asked_for() -> None:
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with bfloat16_autocast(CPU, True):
        assert (left @ right).dtype == torch.bfloat16
    with bfloat16_autocast(CPU, False):
        assert (left @ right).dtype == torch.float32
    assert (left @ right).dtype == torch.float32


@pytest.mark.parametrize(
    ("capability", "cpuinfo", "expected"),
    [
        ("AMX", None, True),
        ("AVX512", "flags\t: avx512f avx512_bf16\n", True),
        ("AVX512", "flags\t: avx512f\n", False),
        ("AVX512", None, False),
        ("AVX2", "flags\t: avx512_bf16\n", False),
        ("DEFAULT", None, False),
    ],
)
def test_bfloat16_is_fast_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, cpuinfo: str | None, expected: bool
) -> None:
    honest = builtins.open

    def read(file: Any, *rest: Any, **options: Any) -> Any:
        if file != "/proc/cpuinfo":
            return honest(file, *rest, **options)
        if cpuinfo is None:
            raise FileNotFoundError(file)
        return io.StringIO(cpuinfo)

    monkeypatch.setattr(builtins, "open", read)
    monkeypatch.setattr(runtime, "_has_cpu_flag", runtime._has_cpu_flag.__wrapped__)
    monkeypatch.setattr(runtime, "onednn_limit", lambda: "")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert fast_bfloat16(CPU) is expected


@pytest.mark.parametrize(
    ("limit", "bfloat16", "eight_bits"),
    [
        ("", True, True),
        ("AVX512_CORE_BF16", True, True),
        ("avx512_core_vnni", False, True),
        ("AVX2", False, False),
        ("AVX2_VNNI", False, False),
    ],
)
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_processor_that_onednn_takes_for_an_older_one_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: str, bfloat16: bool, eight_bits: bool
) -> None:
    """Products of 8-bit bytes would else overflow: oneDNN adds two of them in 16 bits then."""
    flags = "avx512f avx512_bf16 avx512_vnni"
    monkeypatch.setattr(runtime, "_has_cpu_flag", lambda word: word in flags)
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setenv(name, limit)
    assert (fast_bfloat16(CPU), runtime.fast_bytes()) == (bfloat16, eight_bits)


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_keeping_freed_memory_does_no_harm_anywhere(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    keep_freed_memory()


def test_a_c_library_that_has_no_such_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    keep_freed_memory()


@pytest.mark.parametrize(("own", "kept"), [(None, "512"), ("7", "7")])
def test_few_compiled_shapes_are_kept_unless_the_user_says_otherwise(
    own: str | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of texts hardly have a shape twice: oneDNN's default, 1024 of them, filled a gigabyte."""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    if own is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, own)
    importlib.reload(runtime)
    assert os.environ[name] == kept


def test_work_side_by_side_comes_in_order_and_leaves_the_threads_as_they_were(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=30)
    seen: set[tuple[int, int]] = set()

    def work(item: int) -> int:
        if item < 2:
            meeting.wait()  # passed by two at a time only
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return item * item

    assert list(side_by_side(work, range(9))) == [item * item for item in range(9)]
    assert {threads for _, threads in seen} == {1}, "two items share two threads"
    assert torch.get_num_threads() == 2
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2], "a thread that begins later would be slow for no reason that anybody sees"
    assert list(side_by_side(lambda _: threading.get_ident(), [1, 2])) == [threading.get_ident()] * 2, "few"


def test_a_fault_side_by_side_ends_the_rest(two_threads: None) -> None:
    done = []

    def work(item: int) -> int:
        if item == 1:
            raise MemoryError("out of memory")
        done.append(item)
        time.sleep(0.01)
        return item

    with pytest.raises(MemoryError):
        list(side_by_side(work, range(100)))
    assert len(done) < 50
    assert torch.get_num_threads() == 2


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
