"""FSDP: two ranks with half of the model each train the model of one rank, and resume after a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import MistralConfig, MistralModel

from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, load_recipe, parse_recipe
from embedforge.train.run import train
from embedforge.train.sharding import check_fsdp, layer_classes, reshards_after_forward
from training_for_tests import logged, tiny_recipe, weights, write_pairs

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
    whole = sum(parameter.numel() for parameter in parameters)
    assert sum(parameter.to_local().numel() for parameter in parameters) < 0.6 * whole
    if self.work.stage.name == "STAGE" and self.state.global_step == 3:
        os._exit(7)
    return honest(self, model, *rest)

StageTrainer.training_step = step
train(load_recipe(sys.argv[1]), Path(sys.argv[2]), device="cpu", quiet=True)
"""


def on_two_ranks(*command: str | Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launcher, *map(str, command)], env=environment, capture_output=True, text=True, timeout=240
    )


def sharded_recipe(base: Path, pairs: Path, precision: str, adapter: dict[str, Any] | None) -> Recipe:
    training = {
        "precision": precision,
        "save_steps": 2,
        "log_steps": 1,
        "held_out": str(pairs),
        "eval_steps": 3,
        "eval_queries": 8,
        "fsdp": "full_shard auto_wrap",
    }
    recipe = tiny_recipe(base, pairs, training=training)
    values = recipe.model_dump(mode="json")
    values["model"]["adapter"] = adapter
    return parse_recipe(values, "test")


@pytest.mark.parametrize(
    ("precision", "adapter", "stage", "tolerance"),
    [
        # One step of bfloat16 is 2^-7 for numbers from 1 to 2.
        ("float32", None, "one", 2e-5),
        ("bfloat16", {"rank": 4, "dropout": 0.0}, "two", 2**-6),
    ],
)
def test_two_ranks_with_shards_train_the_model_of_one_also_after_a_crash(
    tiny_base: Path,
    tmp_path: Path,
    precision: str,
    adapter: dict[str, Any] | None,
    stage: str,
    tolerance: float,
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs)
    recipe = sharded_recipe(tiny_base, pairs, precision, adapter)
    file, script, run = tmp_path / "recipe.yaml", tmp_path / "crash.py", tmp_path / "run"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    script.write_text(CRASH.replace("STAGE", stage))

    crashed = on_two_ranks(script, file, run)
    assert "exitcode  : 7" in crashed.stderr, crashed.stderr
    folder = run / "stages" / ("1-one" if stage == "one" else "2-two")
    assert (folder / "checkpoint-2" / "complete").exists()
    assert not list(folder.glob("checkpoint-*/pytorch_model_fsdp*"))
    resumed = on_two_ranks("-m", "embedforge", "train", file, "--out", run, "--device", "cpu", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert len(logged(run, "loss")) == 10
    assert len(logged(run, "eval_mrr@10")) == 3

    alone = recipe.model_copy(update={"training": recipe.training.model_copy(update={"fsdp": ""})})
    one, two = weights(train(alone, tmp_path / "alone", quiet=True)), weights(run / "model")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert two[name].shape == tensor.shape
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=tolerance, msg=name)


def test_fsdp_on_one_rank_is_refused_before_anything_is_written(tiny_base: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs)
    with pytest.raises(EmbedforgeError, match=r"the only one: start two or more with 'torchrun"):
        train(sharded_recipe(tiny_base, pairs, "float32", None), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_fsdp_on_the_cpu_beside_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(EmbedforgeError, match="CUDA_VISIBLE_DEVICES"):
        check_fsdp("full_shard", "cpu")


def test_fsdp_options() -> None:
    assert reshards_after_forward("full_shard auto_wrap")
    assert not reshards_after_forward("shard_grad_op")
    with pytest.raises(EmbedforgeError, match=r"'full_shad' is not supported.*Did you mean 'full_shard'"):
        reshards_after_forward("full_shad")
    with pytest.raises(EmbedforgeError, match="'offload' is not supported"):
        reshards_after_forward("full_shard offload")
    for options in ("auto_wrap", "full_shard shard_grad_op"):
        with pytest.raises(EmbedforgeError, match="name one of full_shard"):
            reshards_after_forward(options)


def test_the_layers_of_a_decoder_are_known_or_asked_for() -> None:
    config = MistralConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    assert layer_classes(MistralModel(config)) == ["MistralDecoderLayer"]
    with pytest.raises(EmbedforgeError, match="Linear does not say"):
        layer_classes(torch.nn.Linear(2, 2))


def test_a_shipped_recipe_can_be_told_to_shard() -> None:
    assert load_recipe("tiny", ["training.fsdp=full_shard"]).training.fsdp == "full_shard"
