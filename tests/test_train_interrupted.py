"""Runs that are killed, run out of something, or are asked to go where another run was."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import embedforge
from embedforge.errors import EmbedforgeError
from embedforge.recipe import load_recipe, parse_recipe
from embedforge.train import checkpoints as checkpoints_module
from embedforge.train import contrastive as contrastive_module
from embedforge.train.checkpoints import last_complete_checkpoint
from embedforge.train.run import train
from training_for_tests import assert_same_weights, tiny_recipe, weights, write_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    write_pairs(path)
    return path


@pytest.mark.parametrize("adapter", [None, {"rank": 4, "dropout": 0.2}])
def test_a_killed_run_resumes_to_bit_identical_weights(
    tiny_base: Path, pairs: Path, tmp_path: Path, adapter: dict[str, Any] | None
) -> None:
    """A real kill -9, at a moment that the machine chooses, in the middle of the first or second stage."""
    recipe = tiny_recipe(tiny_base, pairs)
    values = {
        **recipe.model_dump(mode="json"),
        "model": {**recipe.model.model_dump(mode="json"), "adapter": adapter},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    whole = train(load_recipe(str(file)), tmp_path / "whole", quiet=True)

    command = [sys.executable, "-m", "embedforge", "train", str(file), "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    first, deadline = tmp_path / "cut" / "stages" / "1-one", time.monotonic() + 120
    while not list(first.glob("checkpoint-*/complete")) and not (first / "done.safetensors").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "model").exists()
    phases = tmp_path / "cut" / "phases.json"  # written after a checkpoint, so it may not be there yet
    before = json.loads(phases.read_text()) if phases.exists() else {}

    resumed = train(load_recipe(str(file)), tmp_path / "cut", resume=True, quiet=True)
    assert_same_weights(whole, resumed)
    steps = [
        (entry["stage"], entry["step"]) for entry in map(json.loads, (tmp_path / "cut" / "log.jsonl").open())
    ]
    assert len(set(steps)) >= 10
    after = json.loads(phases.read_text())
    assert list(after) == [f"stage {stage.name}" for stage in recipe.stages]
    assert all(after[stage] >= seconds for stage, seconds in before.items())


def test_resume_ignores_a_checkpoint_that_was_not_finished(tmp_path: Path) -> None:
    for number, complete in ((2, True), (4, False)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        if complete:
            (folder / "complete").touch()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    tiny_base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    honest, calls = contrastive_module.info_nce, []

    def poisoned(*args: Any) -> torch.Tensor:
        calls.append(1)
        losses = honest(*args)
        return losses if len(calls) < 4 else losses * float("nan")

    monkeypatch.setattr(contrastive_module, "info_nce", poisoned)
    with pytest.raises(
        EmbedforgeError, match=r"(?s)stage 'one', step 3: the loss is not finite.*find .*checkpoint-2"
    ):
        train(recipe, tmp_path / "run", quiet=True)
    monkeypatch.setattr(contrastive_module, "info_nce", honest)
    train(recipe, tmp_path / "run", resume=True, quiet=True)


def test_a_full_disk_keeps_the_older_checkpoint(
    tiny_base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    honest = checkpoints_module.save_file

    def full(tensors: dict[str, torch.Tensor], path: str) -> None:
        if "checkpoint-4" in path:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(tensors, path)

    monkeypatch.setattr(checkpoints_module, "save_file", full)
    with pytest.raises(EmbedforgeError, match=r"No space left.*checkpoint-2"):
        train(recipe, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "stages" / "1-one" / "checkpoint-2" / "complete").exists()
    monkeypatch.setattr(checkpoints_module, "save_file", honest)
    assert_same_weights(
        train(recipe, tmp_path / "run", resume=True, quiet=True),
        train(recipe, tmp_path / "whole", quiet=True),
    )


def test_out_of_memory_halves_the_budget_and_the_model_stays_the_same(
    tiny_base: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    whole = train(recipe, tmp_path / "whole", quiet=True)
    honest = embedforge.model.encoder.EmbeddingModel.forward

    def small(self: Any, input_ids: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        if self.training and input_ids.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, input_ids, **rest)

    monkeypatch.setattr(embedforge.model.encoder.EmbeddingModel, "forward", small)
    shrunk = train(recipe, tmp_path / "shrunk", quiet=True)
    assert "out of memory" in caplog.text
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(shrunk)[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_a_run_is_not_overwritten_and_not_resumed_with_another_recipe(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    train(recipe, tmp_path / "run", quiet=True)
    with pytest.raises(EmbedforgeError, match="--resume"):
        train(recipe, tmp_path / "run", quiet=True)
    finished = tmp_path / "run" / "model"
    assert train(recipe, tmp_path / "run", resume=True, quiet=True) == finished
    other = parse_recipe({**recipe.model_dump(mode="json"), "seed": 1}, "t")
    with pytest.raises(EmbedforgeError, match="seed was 0, is 1"):
        train(other, tmp_path / "run", resume=True, quiet=True)
    shutil.rmtree(tmp_path / "run" / "stages")  # to save space; the model still is that of the first recipe
    with pytest.raises(EmbedforgeError, match="seed was 0, is 1"):
        train(other, tmp_path / "run", resume=True, quiet=True)
    finished.rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "stages" / "1-one" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(EmbedforgeError, match="seed was 0, is 1"):
        train(other, tmp_path / "run", resume=True, quiet=True)
    write_pairs(pairs, seed=5)
    with pytest.raises(EmbedforgeError, match="the data differs"):
        train(recipe, tmp_path / "run", resume=True, quiet=True)


def test_ctrl_c_saves_and_the_run_goes_on(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    recipe = tiny_recipe(
        tiny_base, pairs, training={"precision": "float32", "save_steps": 1000, "log_steps": 1}
    )
    values = recipe.model_dump(mode="json")
    values["stages"][0]["steps"] = 400
    file.write_text(yaml.safe_dump(values))
    asked = ["train", str(file), "--out", str(tmp_path / "run"), "--set", "contract.max_tokens=40"]
    asked += ["--data", str(tmp_path), "--device", "cpu"]
    command = [sys.executable, "-m", "embedforge", *asked]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
    while not log.exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, message
    assert message.rstrip().endswith(f"go on with: {shlex.join(['embedforge', *asked, '--resume'])}")
    assert last_complete_checkpoint(tmp_path / "run" / "stages" / "1-one") is not None
