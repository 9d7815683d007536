"""A recipe that trains a tiny model in seconds, and what is read from its run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from embedforge.recipe import Recipe, parse_recipe

WORDS = ["river", "stone", "cloud", "engine", "letter", "garden"]


def write_pairs(path: Path, rows: int = 48, seed: int = 0) -> None:
    """Queries and documents about two words each: a task that a tiny model can learn in seconds."""
    chance = random.Random(seed)
    lines = []
    for number in range(rows):
        one, two = chance.sample(WORDS, 2)
        record = {
            "query": f"find {one} {two} {number}",
            "positives": [f"{two} and {one} number {number}", f"{one} with {two} number {number}"],
            "negatives": [f"{chance.choice(WORDS)} alone {number}", f"{chance.choice(WORDS)} again {number}"],
        }
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")


def tiny_recipe(base: Path, data: Path, **changes: Any) -> Recipe:
    """Two stages over one file: in-batch negatives, then none."""
    source = {"path": str(data), "instruction": "Find the document"}
    common = {"batch_queries": 8, "negatives": 1, "learning_rate": 3e-3, "warmup_steps": 1}
    values = {
        "name": "test",
        "model": {
            "base": str(base),
            "pooling": {
                "kind": "latent",
                "latents": 8,
                "heads": 2,
                "head_dim": 16,
                "feed_forward_multiple": 1,
            },
        },
        "contract": {"max_tokens": 48},
        "stages": [
            {"name": "one", "steps": 6, "mix": {"sources": [source]}, **common},
            {
                "name": "two",
                "steps": 4,
                "mix": {"sources": [source]},
                "objective": {"in_batch": "none"},
                **common,
            },
        ],
        "training": {"precision": "float32", "save_steps": 2, "log_steps": 1},
    }
    return parse_recipe({**values, **changes}, "test")


def weights(model: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(model.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_weights(one: Path, other: Path) -> None:
    first = {key.split("/", 1)[1]: value for key, value in weights(one).items()}
    second = {key.split("/", 1)[1]: value for key, value in weights(other).items()}
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"{len(different)} of {len(first)} tensors differ, for example {different[:3]}"


def logged(run: Path, key: str) -> list[float]:
    return [
        entry[key] for entry in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if key in entry
    ]
