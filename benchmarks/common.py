"""What the benchmarks share: competitors in turns, each in its own process; the machine's peak; the report.

A benchmark is a list of `Entry`, each with a function that prepares the work (in its own process, outside
of any figure) and gives back what does it once. `measure` starts them all, lets them warm up, and then runs
one after the other, round after round, so that whatever else the machine does falls on all of them;
`gemm_peak` is one more entry. Medians are told, and every single figure is in the JSON. With one thread the
clock is the processor's: that is what a quiet machine's would show, and company hardly changes it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "numpy")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Entry:
    """A competitor: `make(*arguments)` prepares, and returns what does the work once; its value is kept."""

    name: str
    make: Callable[..., Callable[[], Any]]
    arguments: tuple[Any, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Timing:
    """All figures of a competitor."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Seconds of all its threads, which company on the machine changes less."""
    values: list[Any] = field(default_factory=list)
    """What each round returned."""
    peak_mb: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(
    entries: Sequence[Entry], rounds: int = 5, warm_up: int = 1, threads: int | None = None
) -> dict[str, Timing]:
    """Run the entries in turns; return their figures by name. One that fails ends all, with its words."""
    threads = threads or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    timings = {entry.name: Timing() for entry in entries}
    try:
        for entry in entries:
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(entry, threads, warm_up, there), daemon=True)
            process.start()
            there.close()
            workers[entry.name] = process, here
            _answer(entry.name, here)
        for number in range(rounds):
            for name, (_, pipe) in workers.items():
                pipe.send("go")
                seconds, processor, value, peak = _answer(name, pipe)
                timing = timings[name]
                timing.seconds.append(seconds)
                timing.processor.append(processor)
                timing.values.append(value)
                timing.peak_mb = peak
                print(f"round {number + 1}/{rounds}  {name:32} {seconds:8.3f} s", file=sys.stderr, flush=True)
    finally:
        for process, _ in workers.values():
            process.kill()
    return timings


def clock() -> float:
    """Seconds: of the processor with one thread, of the wall with several."""
    import torch

    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def resident(pid: int) -> float:
    """What a process holds in memory now, in MB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def _answer(name: str, pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        sys.exit(f"{name}: its process ended without a word (out of memory?)")
    if isinstance(answer, str):
        sys.exit(f"{name}: {answer}")
    return answer


def _work(entry: Entry, threads: int, warm_up: int, pipe: Connection) -> None:
    os.environ.update(entry.environment)
    try:
        import torch

        torch.set_num_threads(threads)
        run = entry.make(*entry.arguments)
        for _ in range(warm_up):
            run()
        pipe.send(())
        while pipe.recv() == "go":
            begin, processor = clock(), time.process_time()
            value = run()
            seconds, processor = clock() - begin, time.process_time() - processor
            pipe.send((seconds, processor, value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    except Exception:
        pipe.send(traceback.format_exc())


def native_dtype() -> str:
    """The dtype that this CPU multiplies fastest: bfloat16 where it has instructions for it, else float32."""
    import torch

    from embedforge.runtime import fast_bfloat16

    return "bfloat16" if fast_bfloat16(torch.device("cpu")) else "float32"


def gemm_peak(dtype: str | None = None) -> Callable[[], float]:
    """Return what measures the machine's best product of matrices, in TFLOP/s: the values of its rounds.

    In the dtype that is native here when None.

    Shapes of a model's own layers would reach less: a share of it is of what the machine can, not of what the
    shapes allow.
    """
    import torch

    rows, size = 2048, 2048
    kind = getattr(torch, dtype or native_dtype())
    a, b = torch.randn(rows, size).to(kind), torch.randn(size, size).to(kind)

    def run() -> float:
        best = float("inf")
        with torch.inference_mode():
            for _ in range(8):
                start = clock()
                torch.nn.functional.linear(a, b)
                best = min(best, clock() - start)
        return 2 * rows * size * size / best / 1e12

    return run


def peak_of(timing: Timing) -> float:
    """The median over the rounds of what `gemm_peak` found, TFLOP/s."""
    return statistics.median(timing.values)


def machine(threads: int | None = None) -> dict[str, Any]:
    """What the figures were made on, and with."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads or os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    values = dict(part for line in lines if len(part := [word.strip() for word in line.split(":", 1)]) == 2)
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    kinds = [flag for flag in wanted if flag in values.get("flags", "").split()]
    return f"{values.get('model name', platform.processor())} ({', '.join(kinds)})"


def kind_of_processor() -> str:
    """What decides about speed, and names the folder of results: amx, avx512_bf16, avx512f, avx2 or other.

    Where ONEDNN_MAX_CPU_ISA lets oneDNN take this processor for an older one, that is the kind.
    """
    from embedforge.runtime import onednn_limit

    if limit := onednn_limit():
        return f"as_{limit.lower()}"
    named = _processor()
    known = {"amx_bf16": "amx", "avx512_bf16": "avx512_bf16", "avx512f": "avx512f", "avx2": "avx2"}
    return next((kind for flag, kind in known.items() if flag in named), "other")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as Markdown; floats in three digits that count."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row[head]) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    timings: Mapping[str, Timing],
    folder: Path | None = None,
    **facts: Any,
) -> None:
    """Print the table; write it, with the machine and every figure, to NAME.json and NAME.md.

    They go to `folder`, or that of the processor's kind in `RESULTS` when None.
    """
    folder = folder or RESULTS / kind_of_processor()
    figures = {
        key: {"seconds": t.seconds, "processor": t.processor, "peak_mb": t.peak_mb}
        for key, t in timings.items()
    }
    about = machine(facts.pop("threads", None))
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": about, **facts, "rows": list(rows), "figures": figures}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    told = ", ".join(f"{key} {value}" for key, value in {**about, **facts}.items())
    (folder / f"{name}.md").write_text(f"{table(rows)}\n\n{told}\n", encoding="utf-8")
    print(table(rows))
    print("\n" + told)
