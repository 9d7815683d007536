"""Memory of a process that embeds 100,000 texts, lot after lot: does it grow?

    python benchmarks/encode_memory.py embedforge:forge-tiny embedforge:base
    python benchmarks/encode_memory.py MODEL --texts 100000 --lot 1000 --words 12

Texts are of 1 to --words words, so that batches come in many shapes, which is what made memory grow once
(oneDNN keeps what it has compiled for a shape).
Each model is a process of its own, in bfloat16 where the machine multiplies that fast, as `encode` does.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

from serve import WORDS, resident


def measure(name: str, texts: int, lot: int, words: int) -> None:
    """Print the resident memory as it goes."""
    import embedforge
    from embedforge.model.encoder import embedding_model
    from embedforge.runtime import fast_bfloat16

    model = (
        embedforge.build(base=name, contract=embedforge.Contract(max_tokens=64))
        if name == "embedforge:base"  # a decoder of four layers
        else embedding_model(embedforge.load(name))
    )
    draw, seen, start = random.Random(0), [], time.perf_counter()
    for done in range(0, texts, lot):
        batch = [" ".join(draw.choices(WORDS, k=draw.randint(1, words))) for _ in range(lot)]
        embedforge.encode(model, batch)
        if done % (texts // 10) == 0 or done + lot >= texts:
            seen.append(resident(os.getpid()))
    bfloat16 = "bfloat16" if fast_bfloat16(model.device) else "float32"
    numbers = " ".join(f"{each:.0f}" for each in seen)
    seconds = time.perf_counter() - start
    print(f"{name} ({bfloat16}), {texts:,} texts in {seconds:.0f} s, MB at each tenth: {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--lot", type=int, default=1000)
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options.models[0], options.texts, options.lot, options.words)
        return
    sizes = ["--texts", str(options.texts), "--lot", str(options.lot), "--words", str(options.words)]
    for name in options.models:
        subprocess.run([sys.executable, __file__, name, *sizes, "--here"], check=True)


if __name__ == "__main__":
    main()
