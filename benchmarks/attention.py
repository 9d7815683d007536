"""Attention over short texts on a CPU: ours against transformers' `sdpa` and `eager`, forward and backward.

    python benchmarks/attention.py
    python benchmarks/attention.py --heads 9 --key-heads 3

Milliseconds of one thread's CPU time for 2,048 tokens in texts of one length, the smallest of several.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from common import report

TOKENS = 2048


def forms(dtype: str, length: int, asked: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return each form as a function that goes forward and backward once."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.mistral.modeling_mistral import eager_attention_forward

    from embedforge.model.short_attention import short_attention

    kind, texts = getattr(torch, dtype), TOKENS // length

    def heads(count: int) -> Any:
        return torch.randn(texts, length, count, 64).to(kind).transpose(1, 2).requires_grad_()

    query, key, value = heads(asked.heads), heads(asked.key_heads), heads(asked.key_heads)
    outer = torch.randn(texts, length, asked.heads, 64).to(kind)
    groups = asked.heads // asked.key_heads
    layer = SimpleNamespace(num_key_value_groups=groups, is_causal=False, training=True)
    seen = torch.ones(texts, 1, length, length, dtype=torch.bool)
    added = torch.zeros(texts, 1, length, length, dtype=kind)
    functions = {
        "sdpa": (sdpa_attention_forward, seen),
        "eager": (eager_attention_forward, added),
        "ours": (short_attention, seen),
    }

    def run(function: Callable[..., Any], mask: Any) -> Callable[[], Any]:
        def once() -> None:
            mixed, _ = function(layer, query, key, value, mask, scaling=64**-0.5)
            torch.autograd.grad(mixed, (query, key, value), outer)

        return once

    return {name: run(*what) for name, what in functions.items()}


def milliseconds(work: Callable[[], Any], rounds: int) -> float:
    work()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found) * 1e3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[32, 64, 128, 256, 512])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--key-heads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    rows = []
    for dtype in ("bfloat16", "float32"):
        for length in asked.lengths:
            times = {name: milliseconds(f, asked.rounds) for name, f in forms(dtype, length, asked).items()}
            rows.append({"dtype": dtype, "tokens a text": length, **times})
    report("attention", rows, {}, threads=1, heads=asked.heads, key_heads=asked.key_heads)


if __name__ == "__main__":
    main()
