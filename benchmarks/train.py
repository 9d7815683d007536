"""A step of contrastive training against sentence-transformers' own losses: tokens a second, padding, memory.

    python benchmarks/train.py                          # texts of varied length, 16 queries x (1 + 7)
    python benchmarks/train.py --max-tokens 96          # lengths that hardly vary: nearly all are cut there
    python benchmarks/train.py --only mnrl --sweep      # find the peer's best setting first
    python benchmarks/train.py --peers "flag 4" tevatron # where FlagEmbedding and Tevatron are installed
    python benchmarks/train.py --base MODEL --data FILE # another decoder, own Examples

The same decoder, texts, precision, loss, clipping and AdamW on both sides; a step is tokenised, embedded,
back-propagated and applied. Texts are the descriptions and code of Python's standard library. What is
compared: `MultipleNegativesRankingLoss` and its cached form, each at the best setting of a sweep, and other
trainers (train_peers.py), against `embedforge`'s step with its defaults, in autocast (the peers' precision)
and in pure bfloat16; all in float32 where this processor has no instructions for bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import train_peers
from common import Entry, gemm_peak, measure, native_dtype, peak_of, report
from train_peers import NEGATIVES, TEMPERATURE, mixture_of

QUERIES = 16
OBJECTIVE = {"temperature": TEMPERATURE, "in_batch": "all", "mask_false_negatives": False}
PEAK = "gemm peak"
SWEEP = [f"mnrl {attention}" for attention in ("sdpa", "eager")] + [
    f"cached {attention} {size}" for attention in ("sdpa", "eager") for size in (1, 4, 8, 16, 32, 64)
]
"""The peer's settings: which attention, and for the cached loss how many texts go through at once."""
BEST = ["mnrl sdpa", "mnrl eager", "cached sdpa 8", "cached eager 8"]


def ours_here() -> list[str]:
    """Our precisions: the peers' own first."""
    return ["ours bfloat16_autocast", "ours bfloat16"] if native_dtype() == "bfloat16" else ["ours float32"]


# --- the data ----------------------------------------------------------------------------------------


def write_examples(path: Path, count: int) -> None:
    """Write queries, what answers them, and seven passages drawn from the others."""
    from embedforge.documents import read_folder

    pairs = read_folder(Path(sysconfig.get_paths()["stdlib"]), chunk_characters=2000, seed=0).train_pairs
    draw = random.Random(0)
    passages = [pair.document for pair in pairs]
    with path.open("w", encoding="utf-8") as lines:
        for pair in draw.sample(pairs, min(count, len(pairs))):
            negatives = draw.sample(passages, NEGATIVES)
            row = {"query": pair.query, "positive": pair.document, "negatives": negatives}
            lines.write(json.dumps(row) + "\n")


# --- the competitors, each in a process of its own ---------------------------------------------------


def ours(settings: dict[str, Any], precision: str) -> Callable[[], dict[str, float]]:
    """Return a step as `embedforge train` takes it; its value is what was computed."""
    import torch

    from embedforge.recipe import parse_recipe
    from embedforge.runtime import keep_freed_memory, release_freed_memory
    from embedforge.train.contrastive import ContrastiveWork
    from embedforge.train.optimizer import build_optimizer, parameter_groups
    from embedforge.train.stages import prepare_model
    from embedforge.train.work import StageContext

    keep_freed_memory()
    stage: dict[str, Any] = {"name": "s", "steps": 1000, "batch_queries": settings["queries"]}
    stage |= {"negatives": NEGATIVES, "objective": OBJECTIVE}
    stage |= {"mix": {"sources": [{"path": "x.jsonl"}]}, **settings["stage"]}
    recipe = parse_recipe(
        {
            "name": "benchmark",
            "model": {"base": settings["base"], "pooling": {"kind": "mean"}, **settings["model"]},
            # As the peer's tokenizer has it, so that both read the same tokens.
            "contract": {"max_tokens": settings["max_tokens"], "add_bos": False, "add_eos": False},
            "stages": [stage],
            "training": {"precision": precision, **settings["training"]},
        },
        "benchmark",
    )
    model = prepare_model(recipe, settings["device"])
    mixture = mixture_of(settings)
    work = ContrastiveWork(model, recipe.stages[0], mixture, 0)
    work.begin(
        StageContext(
            device=model.device,
            rank=0,
            world=1,
            autocast=precision == "bfloat16_autocast",
            accumulate=torch.Tensor.backward,
            no_sync=lambda _: contextlib.nullcontext(),
        )
    )
    groups = parameter_groups(model, learning_rate=1e-5, weight_decay=0.01)
    optimizer = build_optimizer(groups, fp32_master=precision == "bfloat16")
    number = 0

    def step() -> dict[str, float]:
        nonlocal number
        if number % 4 == 0:
            release_freed_memory()
        model.train()
        figures = work.step(model, number)
        number += 1
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"tokens": figures.tokens, "computed": figures.padded_tokens, "loss": float(figures.loss)}

    return step


def entry_of(name: str, settings: dict[str, Any]) -> Entry:
    """Return the competitor of a name: "ours PRECISION", or one of `train_peers.PEERS` and its settings."""
    kind, *options = name.split()
    make = ours if kind == "ours" else train_peers.PEERS[kind]
    return Entry(name, make, (settings, *options))


# --- the report --------------------------------------------------------------------------------------


def rows_of(timings: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, timing in timings.items():
        if name == PEAK:
            continue
        speeds = [value["tokens"] / s for value, s in zip(timing.values, timing.seconds, strict=True)]
        cpu = [value["tokens"] / s for value, s in zip(timing.values, timing.processor, strict=True)]
        tokens = sum(value["tokens"] for value in timing.values)
        computed = sum(value["computed"] for value in timing.values)
        rows.append(
            {
                "step": name,
                "real tokens/s": statistics.median(speeds),
                "tokens per CPU second": statistics.median(cpu),
                "padding": f"{1 - tokens / computed:.1%}",
                "peak memory, MB": int(timing.peak_mb),
                "loss, first and last": f"{timing.values[0]['loss']:.3f}, {timing.values[-1]['loss']:.3f}",
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", default="embedforge:base")
    parser.add_argument("--data", help="a file of Examples with seven negatives each")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sweep", action="store_true", help="all settings of the peer")
    parser.add_argument("--only", nargs="*", help="entries whose name contains one of these")
    parser.add_argument("--ours", nargs="*", default=ours_here(), help="ours PRECISION")
    parser.add_argument(
        "--peers", nargs="*", help='entries of train_peers.py: "flag SIZE", tevatron, "mnrl sdpa"'
    )
    parser.add_argument("--stage", type=json.loads, default={}, help="keys of the stage, as JSON")
    parser.add_argument("--model", type=json.loads, default={}, help="keys of the model, as JSON")
    parser.add_argument("--name", default="train")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(asked.data or Path(folder, "examples.jsonl"))
        if not asked.data:
            write_examples(data, 400)
        settings = {key: getattr(asked, key) for key in ("base", "max_tokens", "queries", "device")}
        settings |= {"data": str(data), "stage": asked.stage, "model": asked.model, "training": {}}
        names = [*asked.ours, *(asked.peers or (SWEEP if asked.sweep else BEST))]
        if asked.only:
            if missed := [part for part in asked.only if not any(part in name for name in names)]:
                parser.error(f"--only {missed[0]}: there is {', '.join(names)}")
            names = [name for name in names if any(part in name for part in asked.only)]
        entries = [Entry(PEAK, gemm_peak), *(entry_of(name, settings) for name in names)]
        timings = measure(entries, rounds=asked.rounds, threads=asked.threads)
    report(
        asked.name,
        rows_of(timings),
        timings,
        peak_tflops=round(peak_of(timings[PEAK]), 3),
        threads=asked.threads,
        base=asked.base,
        max_tokens=asked.max_tokens,
        queries=asked.queries,
    )


if __name__ == "__main__":
    main()
