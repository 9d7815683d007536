"""A stage that merges what earlier stages have left, and finished models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import load
from embedforge.recipe import Recipe, parse_recipe
from embedforge.train.run import DONE, stage_folder, train
from embedforge.train.stages import model_after
from stages_for_tests import LORA, crash_in, recipe_of, supervised
from training_for_tests import assert_same_weights, write_pairs

MERGE = {"kind": "merge", "models": ["stage:one", "stage:two"]}


def three(base: Path, pairs: Path, adapter: dict[str, Any] | None = None, **merging: Any) -> Recipe:
    """Two stages, what lies between them, and a third that goes on from there."""
    stages = [supervised(pairs) | {"name": name, "steps": 2} for name in ("one", "two", "after")]
    stages.insert(2, {"name": "soup", "objective": MERGE | merging})
    return recipe_of(base, *stages, adapter=adapter)


def cut(recipe: Recipe, count: int) -> Recipe:
    return recipe.model_copy(update={"stages": recipe.stages[:count]})


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "pairs.jsonl")
    return tmp_path / "pairs.jsonl"


@pytest.mark.parametrize("adapter", [None, LORA | {"dropout": 0.0}], ids=["whole", "lora"])
def test_the_mean_of_two_stages_is_that_of_their_models_and_training_goes_on_from_it(
    tiny_base: Path, pairs: Path, tmp_path: Path, adapter: dict[str, Any] | None, monkeypatch
) -> None:
    """Under LoRA the merged weights are averaged, not A and B; a run that breaks off after it is the same."""
    recipe = three(tiny_base, pairs, adapter)
    whole = train(recipe, tmp_path / "whole", quiet=True)
    done = [stage_folder(tmp_path / "whole", recipe, number) / DONE for number in range(4)]
    one, other = (plain_weights(recipe, done[:count]) for count in (1, 2))
    found = load_file(done[2])
    assert found.keys() == one.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, (one[name] + other[name]) / 2, rtol=0, atol=1e-6)
    assert any((one[name] != other[name]).any() for name in one)
    assert any((plain_weights(recipe, done)[name] != weight).any() for name, weight in found.items())
    assert json.loads((done[2].parent / "merge.json").read_text())["how"] == "mean"
    with crash_in(monkeypatch, "after", 1):
        train(recipe, tmp_path / "broken", quiet=True)
    assert_same_weights(train(recipe, tmp_path / "broken", resume=True, quiet=True), whole)


def plain_weights(recipe: Recipe, done: list[Path]) -> dict[str, torch.Tensor]:
    """What a stage has left, its adapter merged."""
    model = model_after(recipe, done, "cpu").eval()
    if isinstance(model.decoder, PeftModel):
        model.decoder = model.decoder.merge_and_unload()
    return model.state_dict()


def test_finished_models_are_chosen_greedily_from_where_sources_start(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe = three(tiny_base, pairs)
    train(cut(recipe, 1), tmp_path / "other", quiet=True)
    rows = [{"query": word, "positives": [word]} for word in ("river", "stone", "cloud")]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    soup = {**MERGE, "models": ["stage:one", "other/model"], "dev": ["dev.jsonl"]}
    recipe = recipe_of(tiny_base, recipe.stages[0].model_dump(), {"name": "soup", "objective": soup})
    model = train(recipe, tmp_path / "run", source_folder=tmp_path, quiet=True)
    parts = json.loads((tmp_path / "run" / "stages" / "2-soup" / "merge.json").read_text())["models"]
    assert {part["model"] for part in parts} == {"stage:one", "other/model"}
    assert parts[0]["alone"] is not None
    assert load(model, device="cpu").encode(["river"]).shape == (1, 32)
    rows.append({"query": "letter", "positives": ["letter"]})
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(EmbedforgeError, match=r"the data differs .*soup"):
        train(recipe, tmp_path / "run", source_folder=tmp_path, resume=True, quiet=True)


@pytest.mark.parametrize(
    ("objective", "more", "message"),
    [
        ({"models": ["stage:one", "stage:soup"]}, {}, r"no stage 'soup' comes before it, only one, two"),
        ({"models": ["stage:one", "stage:one"]}, {}, "one stands twice"),
        ({"weights": [1.0]}, {}, "1 weights for 2 models"),
        ({"weights": [1.0, 2.0], "dev": ["d.jsonl"]}, {}, "leave one out"),
        ({}, {"steps": 3}, r"steps \(3\) has no effect on objective 'merge'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny_base: Path, pairs: Path, objective: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    values = three(tiny_base, pairs).model_dump(mode="json")
    values["stages"][2] = {"name": "soup", "objective": MERGE | objective, **more}
    with pytest.raises(EmbedforgeError, match=message):
        parse_recipe(values, "r.yaml")


def test_a_recipe_with_a_merge_is_read_back_as_it_was(tiny_base: Path, pairs: Path) -> None:
    recipe = three(tiny_base, pairs, how="slerp", weights=[2.0, 1.0])
    assert parse_recipe(recipe.model_dump(mode="json"), "again") == recipe
