"""Memory of a process that encodes texts in a loop: it must not grow.

    python benchmarks/memory.py                         # the bundled decoder, 20,000 texts in slices of 100
    python benchmarks/memory.py embedforge:base embedforge:forge-tiny --texts 100000
    python benchmarks/memory.py --call model.encode     # sentence-transformers' loop instead of ours

Each model is a process of its own, in the dtype that is native here. Slices are new texts of many lengths,
so that batches come in many shapes, which is what made memory grow once: oneDNN keeps what it has compiled
for a shape. Tells what each process holds after each tenth, and fails where one has grown by more than
`--most-mb` since the first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Entry, measure, native_dtype, report, resident
from texts import passages

CALLS = ("embedforge.encode", "model.encode")


def encoder(name: str, call: str) -> Callable[[list[str]], Any]:
    """Return what embeds a list of texts, with a saved model, or with a decoder and mean pooling."""
    import embedforge
    from embedforge.model.encoder import embedding_model, to_sentence_transformer
    from embedforge.model.folder import find_folder

    if (find_folder(name) / "contract.json").exists():
        model = embedding_model(embedforge.load(name, device="cpu"))
    else:
        contract = embedforge.Contract(pooling="mean", max_tokens=512, dtype=native_dtype())
        model = embedforge.build(base=name, contract=contract).eval()
    if call == "model.encode":
        whole = to_sentence_transformer(model)
        return lambda texts: whole.encode(texts, show_progress_bar=False)
    return lambda texts: embedforge.encode(model, texts)


def loop(name: str, asked: argparse.Namespace) -> Callable[[], list[tuple[int, float]]]:
    """Return the loop; its value is how many texts were done, and the MB held then, ten times."""
    encode = encoder(name, asked.call)

    def run() -> list[tuple[int, float]]:
        held, began = [], time.process_time()
        for done in range(asked.slice, asked.texts + 1, asked.slice):
            encode(passages(asked.slice, asked.words, seed=done))
            if done % (asked.texts // 10) < asked.slice:
                held.append((done, resident(os.getpid())))
                spent = time.process_time() - began
                print(f"{name}: {done:,} texts, {held[-1][1]:.0f} MB, {spent:.0f} CPU s", file=sys.stderr)
        return held

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=["embedforge:base"])
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--slice", type=int, default=100, help="texts of one call")
    parser.add_argument(
        "--words", type=int, default=12, help="median length of a text, the longest 4 times that"
    )
    parser.add_argument("--call", choices=CALLS, default=CALLS[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--most-mb", type=float, default=100)
    parser.add_argument("--out", type=Path, help="folder of the table and its JSON")
    asked = parser.parse_args()
    timings, held = {}, {}
    for name in asked.models:
        timing = measure([Entry(name, loop, (name, asked))], rounds=1, warm_up=0, threads=asked.threads)[name]
        timings[name], held[name] = timing, timing.values[0]
    rows = [
        {"texts": done, **{f"{name}, MB": held[name][tenth][1] for name in asked.models}}
        for tenth, (done, _) in enumerate(held[asked.models[0]])
    ]
    grown = {name: round(values[-1][1] - values[0][1]) for name, values in held.items()}
    folder = {} if asked.out is None else {"folder": asked.out}
    about = {"call": asked.call, "slice": asked.slice, "words": asked.words, "grown_mb": grown}
    name = "memory" if asked.call == CALLS[0] else "memory-model-encode"
    report(name, rows, timings, threads=asked.threads, **folder, **about)
    if most := {name: mb for name, mb in grown.items() if mb > asked.most_mb}:
        sys.exit(f"memory has grown by more than {asked.most_mb:.0f} MB: {most}")


if __name__ == "__main__":
    main()
