"""A step of contrastive training against sentence-transformers' own losses: tokens a second, padding, memory.

    python benchmarks/train.py                          # texts of varied length, 16 queries x (1 + 7)
    python benchmarks/train.py --max-tokens 96          # lengths that hardly vary: nearly all are cut there
    python benchmarks/train.py --only mnrl --sweep      # find the peer's best setting first
    python benchmarks/train.py --base MODEL --data FILE # another decoder, own Examples

The same decoder, texts, precision, loss, clipping and AdamW on both sides; a step is tokenised, embedded,
back-propagated and applied. Texts are the descriptions and code of Python's standard library. What is
compared: `MultipleNegativesRankingLoss` and its cached form, each at the best setting of a sweep, against
`embedforge`'s step with its defaults, in autocast (the peer's precision) and in pure bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Entry, gemm_peak, measure, peak_of, report

if TYPE_CHECKING:
    from embedforge.data.mixture import Mixture

QUERIES, NEGATIVES = 16, 7
TEMPERATURE = 0.05
OBJECTIVE = {"temperature": TEMPERATURE, "in_batch": "all", "mask_false_negatives": False}
PEAK = "gemm peak"
SWEEP = [f"mnrl {attention}" for attention in ("sdpa", "eager")] + [
    f"cached {attention} {size}" for attention in ("sdpa", "eager") for size in (1, 4, 8, 16, 32, 64)
]
"""The peer's settings: which attention, and for the cached loss how many texts go through at once."""
BEST = ["mnrl sdpa", "mnrl eager", "cached sdpa 8", "cached eager 8"]
OURS = ["ours bfloat16_autocast", "ours bfloat16"]


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


def read_rows(path: Path, queries: int) -> list[tuple[str, str, list[str]]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row["negatives"]) >= NEGATIVES]
    if len(rows) < queries:
        sys.exit(f"{path}: {len(rows)} rows with {NEGATIVES} negatives, and a step takes {queries}")
    return [(row["query"], row["positive"], row["negatives"][:NEGATIVES]) for row in rows]


def mixture_of(settings: dict[str, Any]) -> Mixture:
    """Return the steps that all competitors take, the same queries with the same negatives."""
    from embedforge.data.example import Example
    from embedforge.data.mixture import Mixture

    rows = read_rows(Path(settings["data"]), settings["queries"])
    return Mixture(
        {"x": [Example(query, (positive,), tuple(others), "") for query, positive, others in rows]},
        seed=0,
        batch_queries=settings["queries"],
        negatives=NEGATIVES,
    )


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


def peer(settings: dict[str, Any], kind: str, attention: str, size: int) -> Callable[[], dict[str, float]]:
    """Return the same step by sentence-transformers, bfloat16 autocast over float32 weights."""
    import torch
    from sentence_transformers import SentenceTransformer, losses
    from sentence_transformers.models import Normalize, Pooling, Transformer

    from embedforge.model.attention import make_bidirectional
    from embedforge.model.folder import find_folder

    options = {"attn_implementation": attention, "dtype": torch.float32}
    body = Transformer(
        str(find_folder(settings["base"])), max_seq_length=settings["max_tokens"], model_kwargs=options
    )
    make_bidirectional(body.model)
    pooling = Pooling(body.get_word_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[body, pooling, Normalize()], device=settings["device"] or "cpu")
    scale = 1 / TEMPERATURE
    loss: Any = (
        losses.CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=size)
        if kind == "cached"
        else losses.MultipleNegativesRankingLoss(model, scale=scale)
    )
    mixture = mixture_of(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    number = 0

    def step() -> dict[str, float]:
        nonlocal number
        drawn, queries = mixture.step(number), settings["queries"]
        number += 1
        texts = [text.text for text in drawn.texts]
        columns = [texts[:queries]]
        columns += [texts[queries + place :: 1 + NEGATIVES] for place in range(1 + NEGATIVES)]
        model.train()
        features = [
            {name: value.to(model.device) for name, value in model.preprocess(column).items()
             if isinstance(value, torch.Tensor)}
            for column in columns
        ]  # fmt: skip
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            value = loss(features, torch.zeros(queries))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        real = sum(int(one["attention_mask"].sum()) for one in features)
        computed = sum(one["attention_mask"].numel() for one in features)
        return {"tokens": real, "computed": computed, "loss": float(value)}

    return step


def entry_of(name: str, settings: dict[str, Any]) -> Entry:
    words = name.split()
    if words[0] == "ours":
        return Entry(name, ours, (settings, words[1]))
    size = int(words[2]) if len(words) > 2 else 0
    return Entry(name, peer, (settings, words[0], words[1], size))


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
    parser.add_argument("--ours", nargs="*", default=OURS, help="ours PRECISION")
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
        names = [*asked.ours, *(SWEEP if asked.sweep else BEST)]
        if asked.only:
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
