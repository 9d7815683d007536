"""Memory of `model.encode` in a loop over many texts: it must not grow.

    python benchmarks/memory.py                    # 20,000 texts in slices of 100
    python benchmarks/memory.py --texts 100000

Prints what the process holds after each tenth, and fails where it has grown by more than `--most-mb` since
the first.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from common import Timing, report
from texts import passages


def held_mb() -> float:
    """What the process holds in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedforge:base", help="a decoder")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--slice", type=int, default=100, help="texts of one call")
    parser.add_argument("--words", type=int, default=12, help="median length of a text")
    parser.add_argument("--most-mb", type=float, default=100)
    arguments = parser.parse_args()

    import embedforge
    from embedforge.model.encoder import to_sentence_transformer

    contract = embedforge.Contract(pooling="mean", max_tokens=512, dtype="bfloat16")
    model = to_sentence_transformer(embedforge.build(base=arguments.model, contract=contract).eval())
    held, start = [], time.perf_counter()
    for done in range(arguments.slice, arguments.texts + 1, arguments.slice):
        model.encode(passages(arguments.slice, arguments.words, seed=done), show_progress_bar=False)
        if done % (arguments.texts // 10) < arguments.slice:
            held.append({"texts": done, "MB": held_mb(), "seconds": time.perf_counter() - start})
            print(held[-1], file=sys.stderr, flush=True)
    grown = held[-1]["MB"] - held[0]["MB"]
    report("memory", held, {"encode": Timing([held[-1]["seconds"]])}, grown_mb=round(grown))
    if grown > arguments.most_mb:
        sys.exit(f"memory has grown by {grown:.0f} MB, more than {arguments.most_mb:.0f}")


if __name__ == "__main__":
    main()
