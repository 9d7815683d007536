"""NV-Embed's latent block in three arrangements: official, keys and values shared by all texts, and folded.

    python benchmarks/latent.py  # training on 1,024 and 4,096 tokens, inference on 16,384
    python benchmarks/latent.py --hidden 1024                   # nearer to a language model's width
    python benchmarks/latent.py --hidden 4096 --device cuda

The official arrangement repeats the latents for every text and projects keys and values of each (here from
the same weights); what `embedforge` computes is the folded form where that is cheaper. Only the
cross-attention is timed: the feed-forward is the same in all. Errors are against float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from common import Entry, gemm_peak, measure, native_dtype, peak_of, report

LATENTS, HEADS, TEXT = 512, 8, 128
FORMS = ("official", "shared", "embedforge")


def forms(hidden: int, device: str, dtype: str) -> tuple[Any, dict[str, Callable[[Any], Any]]]:
    """Return the block, and each arrangement as a function of [texts, tokens, hidden]."""
    import torch
    from torch.nn import functional

    from embedforge.model.latent import LatentAttention

    torch.manual_seed(0)
    block = LatentAttention(hidden, latents=LATENTS, heads=HEADS).to(device, getattr(torch, dtype))
    attention = block.attention

    def official(states: Any) -> Any:
        texts = len(states)
        queries = attention.fn.to_q(attention.norm(states))
        context = attention.norm_context(block.latents.expand(texts, -1, -1))
        keys, values = attention.fn.to_kv(context).chunk(2, dim=-1)
        split = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (queries, keys, values)]
        return attention.fn.to_out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))

    def shared(states: Any) -> Any:
        return attention.projected(states.flatten(0, 1), block.latents).view_as(states)

    def ours(states: Any) -> Any:
        return block._attend(states.flatten(0, 1)).view_as(states)

    return block, dict(zip(FORMS, (official, shared, ours), strict=True))


def make(form: str, hidden: int, tokens: int, train: bool, device: str) -> Callable[[], float]:
    """Return a pass over `tokens` tokens, with its backward pass in training; its value is the seconds."""
    import torch

    dtype = "bfloat16" if device != "cpu" else native_dtype()
    block, all_forms = forms(hidden, device, dtype)
    block.train(train)
    states = torch.randn(max(1, tokens // TEXT), TEXT, hidden, device=device, dtype=getattr(torch, dtype))

    def run() -> float:
        began = time.process_time() if device == "cpu" else time.perf_counter()
        with torch.set_grad_enabled(train):
            given = states.detach().requires_grad_(train)
            found = all_forms[form](given)
            if train:
                found.float().square().mean().backward()
                block.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.process_time() if device == "cpu" else time.perf_counter()) - began

    return run


def errors(hidden: int) -> dict[str, float]:
    """The relative error of each arrangement in bfloat16 against float64, in training."""
    import torch

    exact_block, exact = forms(hidden, "cpu", "float64")
    low_block, low = forms(hidden, "cpu", "bfloat16")
    exact_block.load_state_dict({name: value.double() for name, value in low_block.state_dict().items()})
    states = torch.randn(8, TEXT, hidden).bfloat16()
    wanted = exact["official"](states.double())
    assert torch.allclose(exact["embedforge"](states.double()), wanted, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        return {name: float((low[name](states) - wanted).norm() / wanted.norm()) for name in FORMS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--inferred", type=int, nargs="*", default=[16384], help="tokens, without gradients")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(arguments)
    rows, everything = [], {}
    work = [(tokens, True) for tokens in asked.tokens] + [(tokens, False) for tokens in asked.inferred]
    for tokens, train in work:
        entries = [Entry(f, make, (f, asked.hidden, tokens, train, asked.device)) for f in FORMS]
        timings = measure([Entry("peak", gemm_peak), *entries], rounds=asked.rounds, threads=asked.threads)
        middle = {form: statistics.median(timings[form].values) for form in FORMS}
        row: dict[str, Any] = {"tokens": tokens, "pass": "forward and backward" if train else "forward"}
        row |= {f"{form}, ms": seconds * 1e3 for form, seconds in middle.items()}
        row |= {f"x {form}": middle[form] / middle["embedforge"] for form in FORMS[:2]}
        rows.append(row | {"peak, TFLOP/s": peak_of(timings["peak"])})
        everything |= {f"{form} {tokens} {row['pass']}": timings[form] for form in FORMS}
    told = {name: f"{error:.1e}" for name, error in errors(asked.hidden).items()}
    name = "latent" if asked.hidden == parser.get_default("hidden") else f"latent-{asked.hidden}"
    report(name, rows, everything, threads=asked.threads, hidden=asked.hidden, errors=told)


if __name__ == "__main__":
    main()
