"""Negatives found anew by the model, between two stages of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedforge.errors import EmbedforgeError
from embedforge.mine.refresh import refresh_stage
from embedforge.recipe import parse_recipe
from embedforge.train.run import train
from training_for_tests import assert_same_weights, tiny_recipe, write_pairs


def recipe_of(base: Path, data: Path, **again: object):
    values = tiny_recipe(base, data).model_dump(mode="json")
    values["stages"][1] |= {"mine_again": {"candidates": 20, "rule": "top_k", **again}, "negatives": 2}
    values["stages"][1]["objective"]["in_batch"] = "none"
    return parse_recipe(values, "test")


def mined_texts(work: Path) -> list[str]:
    return [path.name for path in sorted(work.rglob("*")) if path.is_file()]


def test_the_second_stage_trains_on_what_the_first_ones_model_finds(tmp_path, tiny_base):
    data = tmp_path / "pairs.jsonl"
    write_pairs(data)
    seen = []

    def watch(model, stage, examples, work, folder):
        found = refresh_stage(model, stage, examples, work, folder)
        seen.append((stage.name, examples, found))
        return found

    recipe = recipe_of(tiny_base, data)
    model = train(recipe, tmp_path / "run", refresh=watch, quiet=True)
    assert (model / "contract.json").exists()
    [(stage, before, after)] = seen
    assert stage == "two"
    assert [row.query for row in after["pairs"]] == [row.query for row in before["pairs"]]
    changed = [
        new.negatives != old.negatives for old, new in zip(before["pairs"], after["pairs"], strict=True)
    ]
    assert any(changed)
    for row in after["pairs"]:
        assert not set(row.negatives) & set(row.positives), "a listed positive became a negative"
    assert mined_texts(tmp_path / "run" / "stages" / "2-two" / "mined")


def test_a_run_that_goes_on_is_the_same_run(tmp_path, tiny_base):
    data = tmp_path / "pairs.jsonl"
    write_pairs(data)
    recipe = recipe_of(tiny_base, data)
    whole = train(recipe, tmp_path / "whole", refresh=refresh_stage, quiet=True)

    def stop(*_):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(recipe, tmp_path / "cut", refresh=stop, quiet=True)
    again = train(recipe, tmp_path / "cut", resume=True, refresh=refresh_stage, quiet=True)
    assert_same_weights(whole, again)


def test_it_is_never_ignored(tmp_path, tiny_base, monkeypatch):
    data = tmp_path / "pairs.jsonl"
    write_pairs(data)
    recipe = recipe_of(tiny_base, data)
    with pytest.raises(EmbedforgeError, match="refresh_stage"):
        train(recipe, tmp_path / "run", quiet=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EmbedforgeError, match="one rank"):
        train(recipe, tmp_path / "run", refresh=refresh_stage, quiet=True)


def test_sources_that_share_classes_keep_their_negatives(tmp_path, tiny_base):
    data = tmp_path / "pairs.jsonl"
    write_pairs(data)
    values = recipe_of(tiny_base, data).model_dump(mode="json")
    values["stages"][1]["mix"]["sources"][0]["in_batch_negatives"] = False
    recipe = parse_recipe(values, "test")
    with pytest.raises(EmbedforgeError, match="in_batch_negatives: false"):
        train(recipe, tmp_path / "run", refresh=refresh_stage, quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"negatives": 0}, "negatives is 0"), ({"mine_again": {"rule": "percent"}}, "percentage")],
)
def test_settings_without_effect_are_refused(tiny_base, tmp_path, change, message):
    values = recipe_of(tiny_base, tmp_path / "pairs.jsonl").model_dump(mode="json")
    values["stages"][1] |= change
    with pytest.raises(EmbedforgeError, match=message):
        parse_recipe(values, "test")


def test_a_run_of_a_version_without_the_key_can_be_resumed(tmp_path, tiny_base):
    """A key that did not exist when a run began stands at its default; one that was set otherwise differs."""
    data = tmp_path / "pairs.jsonl"
    write_pairs(data)
    recipe, run = tiny_recipe(tiny_base, data), tmp_path / "run"
    train(recipe, run, quiet=True)
    file = run / "recipe.json"
    stored = json.loads(file.read_text())
    for stage in stored["recipe"]["stages"]:
        del stage["mine_again"]
    file.write_text(json.dumps(stored))
    assert train(recipe, run, resume=True, quiet=True) == run / "model"
    stored["recipe"]["stages"][0]["steps"] += 1
    file.write_text(json.dumps(stored))
    with pytest.raises(EmbedforgeError, match=r"stages\.0\.steps was 7, is 6"):
        train(recipe, run, resume=True, quiet=True)
