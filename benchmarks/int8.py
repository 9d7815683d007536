"""Products of bytes against bfloat16 at a decoder layer's shapes, alone and with the rounding of their input.

    python benchmarks/int8.py

Processor time of one thread, the forms in turns, medians. A layer is its seven products; weights are packed
for oneDNN beforehand, with a scale for each row, and each token's state is rounded with a scale of its own
(queries, keys and values share one rounding, the gate and what it gates another). What a decoder does with
the products besides, and scaling them by their tokens, is not in these figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import Timing, report

SHAPES = {"embedforge:base": (384, 128, 1024), "SmolLM2-135M": (576, 192, 1536)}
"""States, keys and the network of a layer, in numbers a token."""
ZERO, LARGEST = 128, 127


def rounded(states: Any) -> tuple[Any, Any]:
    """Return states [rows, width] as bytes, and the scale of each row."""
    import torch

    exact = states.float()
    largest = torch.maximum(exact.amax(1, keepdim=True), exact.amin(1, keepdim=True).neg_())
    scale = largest.clamp_min_(1e-12).div_(LARGEST)
    found = torch.quantize_per_tensor(exact * scale.reciprocal(), 1.0, ZERO, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(found.untyped_storage(), 0, found.shape), scale


def product(given: int, made: int) -> tuple[Any, Callable[[Any], Any]]:
    """Return weights in bfloat16, and their product with bytes, in bfloat16."""
    import torch

    exact = torch.randn(made, given)
    scale = exact.abs().amax(1) / LARGEST
    numbers = (exact / scale[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(numbers, None)
    zeros = torch.zeros(made, dtype=torch.int32)
    rest = (packed, scale, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")
    return exact.bfloat16(), lambda rows: torch.ops.onednn.qlinear_pointwise(rows, 1.0, ZERO, *rest)


def forms(shape: tuple[int, int, int], rows: int) -> dict[str, Callable[[], Any]]:
    """Return a layer's products in bfloat16, in bytes, and the four roundings before the latter."""
    import torch

    states, keys, network = shape
    layer = [product(states, made) for made in (states, keys, keys, states, network, network)]
    last, down = product(network, states)
    given, inner = torch.randn(rows, states).bfloat16(), torch.randn(rows, network).bfloat16()
    given_bytes, inner_bytes = rounded(given)[0], rounded(inner)[0]

    def bfloat16() -> None:
        for weight, _ in layer:
            torch.nn.functional.linear(given, weight)
        torch.nn.functional.linear(inner, last)

    def of_bytes() -> None:
        for _, times in layer:
            times(given_bytes)
        down(inner_bytes)

    def rounding() -> None:
        for _ in range(3):
            rounded(given)
        rounded(inner)

    return {"bfloat16": bfloat16, "bytes": of_bytes, "rounding": rounding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    import torch

    from embedforge.runtime import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    rows, timings = [], {}
    for name, shape in SHAPES.items():
        for count in asked.rows:
            with torch.inference_mode():
                work = forms(shape, count)
                spent: dict[str, list[float]] = {form: [] for form in work}
                for turn in range(asked.rounds + 2):
                    for form, once in work.items():
                        began = time.process_time()
                        once()
                        if turn > 1:
                            spent[form].append(time.process_time() - began)
            middle = {form: statistics.median(seconds) for form, seconds in spent.items()}
            each = {f"{form}, us a token": middle[form] / count * 1e6 for form in work}
            alone = middle["bfloat16"] / middle["bytes"]
            whole = middle["bfloat16"] / (middle["bytes"] + middle["rounding"])
            rows.append({"layer of": name, "rows": count, **each, "alone": alone, "with rounding": whole})
            timings |= {f"{name} {count} {form}": Timing(seconds) for form, seconds in spent.items()}
    report("int8", rows, timings, threads=1)


if __name__ == "__main__":
    main()
