"""Where encoding's time goes: parts of `model/quick.py`, one thread, processor microseconds a token.

python benchmarks/encode_parts.py
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any

import torch
from common import Timing, native_dtype, report
from texts import passages

PARTS = ("_normed", "_rotated", "_mixed", "_states")
ROUNDS = 5


def main() -> None:
    import embedforge
    from embedforge.encode import encode_rendered
    from embedforge.model import quick

    torch.set_num_threads(1)
    native = native_dtype()
    contract = embedforge.Contract(pooling="mean", max_tokens=512, dtype=native)
    model = embedforge.build(base="embedforge:base", contract=contract).eval()
    window = model.renderer.render(passages(20))
    tokens = sum(len(text.input_ids) for text in window)
    spent: Counter[str] = Counter()

    within: set[str] = set()

    def wrap(owner: Any, name: str, part: str = "") -> None:
        whole, part = getattr(owner, name), part or name

        def timed(*given: Any, **named: Any) -> Any:
            if part in within:
                return whole(*given, **named)
            within.add(part)
            start = time.process_time()
            made = whole(*given, **named)
            spent[part] += time.process_time() - start
            within.discard(part)
            return made

        setattr(owner, name, timed)

    encode_rendered(model, window, 8192, bfloat16=native == "bfloat16")
    for name in PARTS:
        wrap(quick, name)
    wrap(torch.nn.Linear, "forward", "products")
    wrap(quick, "_product", "products")
    wrap(torch, "bmm")
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        spent.clear()
        encode_rendered(model, window, 8192, bfloat16=native == "bfloat16")
        rounds.append({name: 1e6 * seconds / tokens for name, seconds in spent.items()})
    part = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    row = {
        "products with weights, gates, residuals": part["products"],
        "attention: two products": part["bmm"],
        "attention: the rest": part["_mixed"] - part["bmm"],
        "norms": part["_normed"],
        "rotary": part["_rotated"],
        "in all": part["_states"],
    }
    timing = Timing([each["_states"] for each in rounds])
    report("encode-parts", [row], {"microseconds": timing}, tokens=tokens, threads=1, dtype=native)


if __name__ == "__main__":
    main()
