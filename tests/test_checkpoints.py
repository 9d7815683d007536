"""Checkpoints: what must never be saved, what the system really says of a full disk, and damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from disk_for_tests import disk_with_room_for
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, load_recipe, parse_recipe
from embedforge.train.checkpoints import last_complete_checkpoint, load_trainable, trainable_state
from embedforge.train.run import train


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> Recipe:
    (tmp_path / "pairs.jsonl").write_text(
        "".join(f'{{"query": "find {n}", "positive": "text {n}"}}\n' for n in range(8))
    )
    source = {"path": str(tmp_path / "pairs.jsonl")}
    stage = {"name": "only", "steps": 4, "batch_queries": 4, "warmup_steps": 0, "mix": {"sources": [source]}}
    values = {
        "name": "mine",
        "model": {"base": str(tiny_base)},
        "contract": {"max_tokens": 48},
        "stages": [stage],
        "training": {"precision": "float32", "save_steps": 1},
    }
    return parse_recipe(values, "mine.yaml")


@pytest.mark.parametrize("room", [60_000, 200_000], ids=["weights", "optimizer state"])
def test_a_full_disk_is_told_as_it_is_and_resume_goes_on(recipe: Recipe, tmp_path: Path, room: int) -> None:
    """Safetensors and torch have errors of their own for it, which are no OSError."""
    run = tmp_path / "run"
    with (
        disk_with_room_for(room),
        pytest.raises(EmbedforgeError, match=r"checkpoint-1: saving .* disk space.*--resume"),
    ):
        train(recipe, run, device="cpu", quiet=True)
    assert not list((run / "stages" / "1-only").iterdir())
    assert (train(recipe, run, device="cpu", quiet=True, resume=True) / "contract.json").exists()


def test_a_finished_stage_that_cannot_be_written_keeps_its_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedforge.train import run as module

    honest, run = module.save_trainable, tmp_path / "run"

    def full(model: nn.Module, file: Path, *, write: bool) -> None:
        with disk_with_room_for(60_000):
            honest(model, file, write=write)

    monkeypatch.setattr(module, "save_trainable", full)
    with pytest.raises(EmbedforgeError, match=r"done\.safetensors.*checkpoint-4.*--resume"):
        train(recipe, run, device="cpu", quiet=True)
    folder = run / "stages" / "1-only"
    assert last_complete_checkpoint(folder) == folder / "checkpoint-4"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    monkeypatch.setattr(module, "save_trainable", honest)
    train(recipe, run, device="cpu", quiet=True, resume=True)


@pytest.mark.parametrize("spoilt_at", [3, 4], ids=["inside a stage", "at its last step"])
def test_weights_that_are_not_finite_never_take_the_place_of_good_ones(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt_at: int
) -> None:
    """The loss of a step may be finite and its update not: the next checkpoint would hold the damage."""
    honest, calls = torch.optim.AdamW.step, []

    def spoils(self: torch.optim.AdamW, *rest: object, **options: object) -> object:
        found = honest(self, *rest, **options)
        calls.append(1)
        if len(calls) == spoilt_at:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = torch.nan
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", spoils)
    run = tmp_path / "run"
    with pytest.raises(EmbedforgeError, match=r"made 1 of \d+ weight tensors not finite.*not saved"):
        train(recipe, run, device="cpu", quiet=True)
    folder = run / "stages" / "1-only"
    assert last_complete_checkpoint(folder) == folder / f"checkpoint-{spoilt_at - 1}"
    monkeypatch.setattr(torch.optim.AdamW, "step", honest)
    assert (train(recipe, run, device="cpu", quiet=True, resume=True) / "contract.json").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    (tmp_path / "trainable.safetensors").write_bytes(b"half")
    with pytest.raises(EmbedforgeError, match=r"trainable\.safetensors: cannot be read.*--resume goes on"):
        load_trainable(model, tmp_path / "trainable.safetensors")
    with pytest.raises(EmbedforgeError, match="cannot be read"):
        load_trainable(model, tmp_path / "gone.safetensors")
    assert set(trainable_state(model)) == {"weight", "bias"}


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "", ".hidden", "/root", "a b"])
def test_a_stage_cannot_name_a_folder_outside_its_run(recipe: Recipe, name: str) -> None:
    values = recipe.model_dump(mode="json")
    values["stages"][0]["name"] = name
    with pytest.raises(EmbedforgeError, match=r"stages\.0\.name: .*pattern"):
        parse_recipe(values, "mine.yaml")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"name: a\x01b"])
def test_a_recipe_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(EmbedforgeError, match=r"mine\.yaml: not (valid )?YAML"):
        load_recipe(str(path))


def test_a_folder_and_an_empty_name_are_no_recipes(tmp_path: Path) -> None:
    for name in (str(tmp_path), ""):
        with pytest.raises(EmbedforgeError, match="cannot be read as a recipe file"):
            load_recipe(name)


def test_an_override_that_is_no_yaml_is_shown() -> None:
    with pytest.raises(EmbedforgeError, match=r"--set seed=\[: the value is not valid YAML"):
        load_recipe("tiny", ["seed=["])
