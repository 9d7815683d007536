"""LLM2Vec's stages in processes of their own: on two ranks, in shards, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, parse_recipe
from embedforge.train.run import stage_folder, train
from embedforge.train.sharding import check_sharded_stages
from stages_for_tests import LORA, mntp, recipe_of, simcse, supervised, write_texts
from training_for_tests import assert_same_weights, logged, write_pairs

CRASH = """
import os, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from embedforge.recipe import load_recipe
from embedforge.train.run import train
from embedforge.train.trainer import StageTrainer

honest = StageTrainer.training_step

def step(self, model, *rest):
    parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
    assert parameters and all(isinstance(parameter, DTensor) for parameter in parameters)
    if self.work.stage.name == "supervised" and self.state.global_step == 3:
        os._exit(7)
    return honest(self, model, *rest)

StageTrainer.training_step = step
train(load_recipe(sys.argv[1]), Path(sys.argv[2]), device="cpu", quiet=True)
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def on_two_ranks(*command: str | Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    return subprocess.run(
        [*launcher, *map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )


def recipe_for(base: Path, folder: Path, **training: Any) -> Recipe:
    """MNTP, then supervised with its adapter merged, then SimCSE on top; no dropout but in the last stage."""
    texts = write_texts(folder / "texts.txt")
    write_pairs(folder / "pairs.jsonl")
    plain = {**LORA, "dropout": 0.0}
    return recipe_of(
        base,
        # 7 chunks in micro-batches of two: one rank has more to do than the other.
        mntp(texts, batch_queries=7, tokens_per_micro_batch=32),
        supervised(folder / "pairs.jsonl", earlier_adapter="merge", adapter={**plain, "rank": 2}),
        simcse(texts, earlier_adapter="stack", adapter=plain, tokens_per_micro_batch=64),
        adapter=plain,
        model={"pooling": {"kind": "latent", "latents": 8, "heads": 2, "head_dim": 16}},
        training=training,
    )


def write(recipe: Recipe, folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return file


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """The recipe, and its run on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = recipe_for(tiny_base, folder)
    train(recipe, folder / "run", device="cpu", quiet=True)
    return recipe, folder / "run"


def assert_same_stages(recipe: Recipe, one: Path, other: Path) -> None:
    """The trained weights of the stages without dropout, which every rank draws for itself."""
    for number in (0, 1):
        files = (stage_folder(run, recipe, number) / "done.safetensors" for run in (one, other))
        first, second = map(load_file, files)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_two_ranks_train_the_stages_of_one(alone: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, run = alone
    done = on_two_ranks(
        "-m", "embedforge", "train", write(recipe, tmp_path), "--out", tmp_path / "run", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert_same_stages(recipe, run, tmp_path / "run")
    assert len(logged(tmp_path / "run", "loss")) == 12
    assert (tmp_path / "run" / "model" / "contract.json").exists()


def test_two_ranks_with_shards_train_the_stages_of_one_also_after_a_crash(
    alone: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, run = alone
    values = recipe.model_dump(mode="json")
    values["training"]["fsdp"] = "full_shard"
    file, script, out = write(parse_recipe(values, "r"), tmp_path), tmp_path / "crash.py", tmp_path / "run"
    script.write_text(CRASH)
    crashed = on_two_ranks(script, file, out)
    assert "exitcode  : 7" in crashed.stderr, crashed.stderr
    assert (out / "stages" / "2-supervised" / "checkpoint-2" / "complete").exists()
    resumed = on_two_ranks("-m", "embedforge", "train", file, "--out", out, "--device", "cpu", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_stages(recipe, run, out)
    assert len(logged(out, "loss")) == 12


def test_a_killed_run_goes_on_to_the_same_bits(alone: tuple[Recipe, Path], tmp_path: Path) -> None:
    """A real kill -9, wherever the first stage then is."""
    recipe, run = alone
    out = tmp_path / "cut"
    command = [sys.executable, "-m", "embedforge", "train", str(write(recipe, tmp_path)), "--out", str(out)]
    process = subprocess.Popen([*command, "--device", "cpu"], env=ENVIRONMENT, stderr=subprocess.PIPE)
    first, deadline = stage_folder(out, recipe, 0), time.monotonic() + 120
    while not list(first.glob("checkpoint-*/complete")) and not (first / "done.safetensors").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model").exists()
    resumed = train(recipe, out, resume=True, device="cpu", quiet=True)
    assert_same_weights(run / "model", resumed)


def test_retrieval_is_not_measured_in_a_sharded_stage_of_mntp(tiny_base: Path, tmp_path: Path) -> None:
    measured = {"held_out": "held_out.jsonl", "eval_steps": 2}
    check_sharded_stages(recipe_for(tiny_base, tmp_path, **measured))
    check_sharded_stages(recipe_for(tiny_base, tmp_path, fsdp="full_shard"))
    with pytest.raises(EmbedforgeError, match=r"eval_steps.*stage 'mntp'.*leave one of the two settings out"):
        check_sharded_stages(recipe_for(tiny_base, tmp_path, fsdp="full_shard", **measured))
