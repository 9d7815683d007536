"""Does pure bfloat16 learn what autocast learns? Trainings of the same seeds: loss and retrieval by step.

    python benchmarks/precision_curve.py                    # 300 steps, seeds 0 and 1
    python benchmarks/precision_curve.py --steps 100 --seeds 0

The bundled decoder learns to find the code of a description of Python's standard library; a tenth of the
files is held out, and retrieval among its pairs is measured as training goes on. Runs that were stopped go on
where they were, so that the command may be repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import report

PRECISIONS = ("bfloat16_autocast", "bfloat16")


def recipe_of(data: Path, precision: str, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    stage = {
        "name": "retrieval",
        "steps": asked.steps,
        "batch_queries": asked.queries,
        "negatives": 0,
        "document_max_tokens": asked.max_tokens,
        "query_max_tokens": 48,
        "learning_rate": 5e-4,
        "warmup_steps": asked.steps // 10,
        "objective": {"temperature": 0.05, "in_batch": "all"},
        "mix": {"sources": [{"path": str(data)}]},
    }
    third = asked.steps // 3
    training = {"precision": precision, "log_steps": min(10, third), "save_steps": 50, "eval_steps": third}
    return {
        "name": f"curve-{precision}-{seed}",
        "seed": seed,
        "model": {"base": "embedforge:base", "pooling": {"kind": "mean"}},
        "contract": {"max_tokens": 128, "default_instruction": ""},
        "stages": [stage],
        "training": training,
    }


def run(precision: str, seed: int, work: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Train, or take what is there, and return the lines of its log."""
    import embedforge
    from embedforge.data.example import Example
    from embedforge.documents import read_folder
    from embedforge.files import write_jsonl
    from embedforge.recipe import parse_recipe

    data, held = work / "pairs.jsonl", work / "held-out.jsonl"
    if not held.exists():
        folder = read_folder(Path(sysconfig.get_paths()["stdlib"]), seed=0)
        write_jsonl(data, ({"query": one.query, "positive": one.document} for one in folder.train_pairs))
        write_jsonl(held, ({"query": one.query, "positive": one.document} for one in folder.pairs[:300]))
    rows = [json.loads(line) for line in held.read_text(encoding="utf-8").splitlines()]
    out = work / f"{precision}-{seed}"
    embedforge.train(
        parse_recipe(recipe_of(data, precision, seed, asked), "curve"),
        out,
        device=asked.device,
        held_out=[Example(row["query"], (row["positive"],), (), "") for row in rows],
        own_test=True,
        resume=out.exists(),
        quiet=True,
    )
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def row_of(
    lines: list[dict[str, Any]], precision: str, seed: int, third: int, minutes: float
) -> dict[str, Any]:
    """Return the mean loss of each third of the steps, and retrieval of the held-out pairs at their ends."""
    row: dict[str, Any] = {"precision": precision, "seed": seed}
    ends = (third, 2 * third, 3 * third)
    for end in ends:
        losses = [line["loss"] for line in lines if "loss" in line and end - third < line["step"] <= end]
        row[f"loss to step {end}"] = statistics.mean(losses)
    found = {line["step"]: line["eval_mrr@10"] for line in lines if "eval_mrr@10" in line}
    return row | {f"MRR@10 at {end}": found[end] for end in ends} | {"minutes": minutes}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/precision_curve"))
    asked = parser.parse_args(arguments)
    if asked.steps < 3:
        parser.error("--steps: the curve is told in thirds, so at least 3")
    asked.work.mkdir(parents=True, exist_ok=True)
    rows, curves = [], {}
    for seed in asked.seeds:
        for precision in PRECISIONS:
            began = time.perf_counter()
            lines = curves[f"{precision} {seed}"] = run(precision, seed, asked.work, asked)
            rows.append(row_of(lines, precision, seed, asked.steps // 3, (time.perf_counter() - began) / 60))
    report("precision_curve", rows, {}, curves=len(curves), steps=asked.steps, queries=asked.queries)
    (asked.work / "curves.json").write_text(json.dumps(curves), encoding="utf-8")


if __name__ == "__main__":
    main()
