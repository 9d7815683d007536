"""What a step of other kinds costs beside full fine-tuning: LoRA, distillation, and the data of any of them.

    python benchmarks/train_kinds.py

All in pure bfloat16, or float32 where that is not native, on the same texts (benchmarks/train.py).
Distillation has its teacher's vectors in the cache, here random ones: what a step does with them does not
depend on their values. "data" is all of a step that is done without the model: drawing, rendering, packing;
once with texts that are new, once when all have been tokenised.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import Entry, gemm_peak, measure, native_dtype, peak_of, report
from train import ours, write_examples
from train_peers import NEGATIVES, read_rows

LORA = {"adapter": {"rank": 16, "alpha": 32, "dropout": 0.0}}
KINDS = ("full", "lora", "student alone", "distillation", "data, new", "data, known")


def kind(settings: dict[str, Any], name: str) -> Callable[[], Any]:
    if name.startswith("data"):
        return data(settings, known=name.endswith("known"))
    if name in ("full", "lora"):
        chosen = {**settings, "model": LORA if name == "lora" else {}}
        return ours(chosen, native_dtype())
    return distillation(settings, with_teacher=name == "distillation")


def data(settings: dict[str, Any], *, known: bool) -> Callable[[], dict[str, float]]:
    """Return a step's data work; the value has its seconds."""
    from embedforge.data.example import Example
    from embedforge.data.mixture import Mixture
    from embedforge.model.encoder import build
    from embedforge.recipe import Stage
    from embedforge.text.contract import Contract
    from embedforge.train.batches import TextCache, render_step, share_of_step

    model = build(base=settings["base"], contract=Contract(max_tokens=settings["max_tokens"]))
    rows = read_rows(Path(settings["data"]), settings["queries"])
    examples = [Example(query, (positive,), tuple(others), "") for query, positive, others in rows]
    mixture = Mixture(
        {"x": examples}, seed=0, batch_queries=settings["queries"], negatives=NEGATIVES, batches="blended"
    )
    stage = Stage.model_validate({"name": "s", "steps": 1, "mix": {"sources": [{"path": "x.jsonl"}]}})
    cache = TextCache()
    if known:
        for number in range(mixture.steps_per_epoch):
            render_step(model, mixture.step(number), stage, cache)
    number = 0

    def step() -> dict[str, float]:
        nonlocal number
        began = time.process_time()
        rendered = render_step(model, mixture.step(number), stage, cache)
        share = share_of_step(model.renderer, rendered, stage.tokens_per_micro_batch, 0, 1, packed=True)
        number += 1
        return {"tokens": share.tokens, "computed": share.padded_tokens, "cpu": time.process_time() - began}

    return step


def distillation(settings: dict[str, Any], *, with_teacher: bool) -> Callable[[], dict[str, float]]:
    """Return a step that embeds texts and takes a loss to a teacher's cached vectors, or a fixed gradient."""
    import json

    import numpy as np
    import torch

    from embedforge.recipe import parse_recipe
    from embedforge.train.mixtures import read_mixtures
    from embedforge.train.optimizer import build_optimizer, parameter_groups
    from embedforge.train.stages import prepare_model, work_of
    from embedforge.train.teacher import Teaching
    from embedforge.train.work import StageContext

    folder = Path(tempfile.mkdtemp())
    texts = list(dict.fromkeys(text for row in read_rows(Path(settings["data"]), 1) for text in row[2]))[:400]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    vectors = np.random.default_rng(0).standard_normal((len(texts), 384))
    with (folder / "vectors.jsonl").open("w") as lines:
        for text, vector in zip(texts, vectors.round(4), strict=True):
            lines.write(json.dumps({"text": text, "vector": vector.tolist()}) + "\n")
    objective = {"kind": "distill", "teacher": "file:vectors.jsonl", "projection": "drop"}
    stage = {"name": "s", "steps": 10, "batch_queries": 64, "objective": objective, "negatives": 0}
    stage |= {"mix": {"sources": [{"path": "texts.jsonl", "kind": "texts"}]}}
    recipe = parse_recipe(
        {
            "name": "distill",
            "model": {"base": settings["base"], "pooling": {"kind": "mean"}},
            "contract": {"max_tokens": settings["max_tokens"], "default_instruction": ""},
            "stages": [stage],
            "training": {"precision": native_dtype()},
        },
        "benchmark",
    )
    model = prepare_model(recipe, "cpu")
    mixture = read_mixtures(recipe, folder)["s"]
    work = work_of(recipe.stages[0].objective, model, recipe, recipe.stages[0], mixture)
    work.prepare(Teaching(None, folder / "cache", folder), folder, False)
    work.begin(StageContext(model.device, 0, 1, False, torch.Tensor.backward, lambda _: torch.no_grad()))
    groups = parameter_groups(work.module, learning_rate=1e-5, weight_decay=0.01)
    optimizer = build_optimizer(groups, fp32_master=native_dtype() == "bfloat16")
    if not with_teacher:  # the student alone: a fixed gradient, and nothing looked up
        work._loss = lambda step, per_query: lambda embeddings: embeddings.sum()  # type: ignore[attr-defined]
    number = 0

    def step() -> dict[str, float]:
        nonlocal number
        work.module.train()
        began = time.process_time()
        figures = work.step(work.module, number % 3)
        number += 1
        optimizer.step()
        optimizer.zero_grad()
        cpu = time.process_time() - began
        return {"tokens": figures.tokens, "computed": figures.padded_tokens, "cpu": cpu}

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", default="embedforge:base")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "examples.jsonl")
        write_examples(path, 400)
        settings = {"base": asked.base, "max_tokens": asked.max_tokens, "queries": asked.queries}
        settings |= {"device": "cpu", "data": str(path), "stage": {}, "model": {}, "training": {}}
        entries = [Entry("peak", gemm_peak), *(Entry(name, kind, (settings, name)) for name in asked.only)]
        timings = measure(entries, rounds=asked.rounds, threads=asked.threads)
    rows = []
    for name in asked.only:
        timing = timings[name]
        cpu = zip(timing.values, timing.processor, strict=True)
        each = statistics.median(seconds / value["tokens"] for value, seconds in cpu)
        speeds = zip(timing.values, timing.seconds, strict=True)
        row = {"step": name, "real tokens/s": statistics.median(v["tokens"] / s for v, s in speeds)}
        rows.append(row | {"CPU us a token": each * 1e6, "peak memory, MB": int(timing.peak_mb)})
    peak = round(peak_of(timings["peak"]), 3)
    report("train_kinds", rows, timings, threads=asked.threads, peak_tflops=peak)


if __name__ == "__main__":
    main()
