"""Recipes that extend others: what is joined, what is replaced, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedforge.errors import EmbedforgeError
from embedforge.recipe import load_recipe, shipped_recipes
from embedforge.recipe.file import read_values
from embedforge.recipe.objectives import Objective
from embedforge.recipe.schema import recipe_schema

BASE: dict[str, Any] = {
    "name": "base",
    "model": {
        "base": "a/b",
        "pooling": {"kind": "latent", "latents": 16},
        "adapter": {"targets": ["q", "k"]},
    },
    "contract": {"max_tokens": 64},
    "stages": [
        {
            "name": "mntp",
            "steps": 10,
            "objective": {"kind": "mntp", "probability": 0.8, "style": "all_mask"},
            "mix": {"sources": [{"path": "one.txt", "kind": "texts"}, {"path": "two.txt", "kind": "texts"}]},
        },
        {
            "name": "simcse",
            "steps": 20,
            "objective": {"kind": "simcse"},
            "mix": {"sources": [{"path": "one.txt", "kind": "texts"}]},
        },
    ],
}


def write(folder: Path, **files: Any) -> Path:
    """Write recipes by their names; return the path of the last one."""
    folder.mkdir(exist_ok=True)
    for name, values in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder / f"{list(files)[-1]}.yaml"


def test_a_section_of_another_kind_is_replaced_one_of_the_same_is_joined(tmp_path: Path) -> None:
    contrastive = {"name": "pairs", "objective": {"temperature": 0.05, "in_batch": "all"}}
    base = {**BASE, "stages": [*BASE["stages"], contrastive]}
    above = {
        "extends": "base",
        "name": "above",
        "model": {"pooling": {"kind": "self_attention", "heads": 2}},
        "stages": [
            {"name": "mntp", "objective": {"kind": "mntp", "style": "bert"}},
            {"name": "simcse", "objective": {"kind": "contrastive", "temperature": 0.1}},
            {"name": "pairs", "objective": {"kind": "contrastive", "temperature": 0.1}},
        ],
    }
    found = read_values(write(tmp_path, base=base, above=above))
    assert found["model"]["pooling"] == {"kind": "self_attention", "heads": 2}
    assert [stage["objective"] for stage in found["stages"]] == [
        {"kind": "mntp", "probability": 0.8, "style": "bert"},
        {"kind": "contrastive", "temperature": 0.1},
        {"kind": "contrastive", "temperature": 0.1, "in_batch": "all"},
    ]


def test_mappings_are_joined_lists_and_values_replaced(tmp_path: Path) -> None:
    above = {
        "extends": "base",
        "name": "above",
        "model": {"pooling": {"latents": 32}, "adapter": {"targets": ["v"]}},
        "contract": {"max_tokens": 48},
        "training": {"save_steps": 7},
    }
    found = read_values(write(tmp_path, base=BASE, above=above))
    assert found == {
        **BASE,
        "name": "above",
        "model": {"base": "a/b", "pooling": {"kind": "latent", "latents": 32}, "adapter": {"targets": ["v"]}},
        "contract": {"max_tokens": 48},
        "training": {"save_steps": 7},
    }


def test_null_takes_a_mapping_away_and_a_mapping_replaces_null(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base=BASE,
        plain={"extends": "base", "model": {"adapter": None, "pooling": {"kind": "mean", "latents": 512}}},
        again={"extends": "plain", "model": {"adapter": {"rank": 2}}},
    )
    assert load_recipe(str(tmp_path / "plain.yaml")).model.adapter is None
    assert load_recipe(str(path)).model.adapter.rank == 2


def test_stages_are_joined_by_name_in_their_order_and_new_ones_follow(tmp_path: Path) -> None:
    last = {"name": "last", "steps": 5, "mix": {"sources": [{"path": "pairs.jsonl"}]}}
    above = {
        "extends": "base",
        "stages": [
            last,
            {"name": "simcse", "steps": 9, "objective": {"temperature": 0.1}},
            {
                "name": "mntp",
                "objective": {"probability": 0.2},
                "mix": {"sources": [{"path": "t.txt", "kind": "texts"}]},
            },
        ],
    }
    recipe = load_recipe(str(write(tmp_path, base=BASE, above=above)))
    assert [stage.name for stage in recipe.stages] == ["mntp", "simcse", "last"]
    mntp, simcse, _ = recipe.stages
    assert (mntp.steps, mntp.objective.probability, mntp.objective.style) == (10, 0.2, "all_mask")
    assert [source.path for source in mntp.mix.sources] == ["t.txt"]
    assert (simcse.steps, simcse.objective.kind, simcse.objective.temperature) == (9, "simcse", 0.1)


def test_a_stage_is_skipped_and_may_come_back_as_another(tmp_path: Path) -> None:
    skip = {"name": "simcse", "skip": True}
    path = write(tmp_path, base=BASE, above={"extends": "base", "stages": [skip]})
    assert [stage.name for stage in load_recipe(str(path)).stages] == ["mntp"]
    new = {"name": "simcse", "steps": 3, "mix": {"sources": [{"path": "pairs.jsonl"}]}}
    path = write(tmp_path, above={"extends": "base", "stages": [skip, new]})
    recipe = load_recipe(str(path))
    assert recipe.stages[1].objective.kind == "contrastive"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"name": "simsce", "skip": True},
            r"above\.yaml: stage 'simsce' is to be skipped.*Did you mean 'simcse'",
        ),
        ({"name": "simcse", "skip": True, "steps": 4}, r"stages\.1\.skip: unknown key"),
        ({"name": "simcse", "skip": False}, r"stages\.1\.skip: unknown key"),
        ({"name": "new", "steps": 3}, r"stages\.2\.mix: "),
        ({"name": "mntp", "objektive": {}}, r"stages\.0\.objektive: unknown key\. Did you mean 'objective'"),
        (
            {"name": "mntp", "objective": {"temperature": 1}},
            r"stages\.0\.objective\.temperature: unknown key",
        ),
        ({"name": "mntp", "objective": {"kind": "simcs"}}, r"stages\.0\.objective\.kind: 'simcs'.*'simcse'"),
    ],
)
def test_mistakes_in_a_stage_are_named(stage: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE, above={"extends": "base", "stages": [stage]})
    with pytest.raises(EmbedforgeError, match=message):
        load_recipe(str(path))


def test_files_extend_each_other_in_a_row_from_other_folders_and_formats(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, base=BASE)
    (tmp_path / "json.json").write_text(json.dumps({"extends": "base.yaml", "seed": 3}))
    (tmp_path / "v1.5.yml").write_text("extends: json.json\nname: middle\n")
    path = write(tmp_path / "deep", top={"extends": "../v1.5.yml", "about": "top"})
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.seed, recipe.about, recipe.stages[0].steps) == ("middle", 3, "top", 10)
    (tmp_path / "v1.5.yaml").write_text("extends: base\nname: dotted\n")
    assert load_recipe(str(write(tmp_path, top={"extends": "v1.5"}))).name == "dotted"


@pytest.mark.parametrize("around", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_circle_is_refused(around: list[str], tmp_path: Path) -> None:
    following = [*around[1:], around[0]]
    write(
        tmp_path / "f",
        **{one: {"extends": f"../f/{other}"} for one, other in zip(around, following, strict=True)},
    )
    with pytest.raises(EmbedforgeError, match=r"extends goes in a circle: .*a\.yaml -> .*a\.yaml"):
        load_recipe(str(tmp_path / "f" / "a.yaml"))


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        (
            "bass",
            r"above\.yaml: it extends 'bass', and there is no file .*bass\.yaml nor .* Did you mean 'base'\?",
        ),
        (["base"], r"extends names one other recipe file, this is \['base'\]"),
        (None, "extends names one other recipe file, this is None"),
        ("broken", r"broken\.yaml, line 2: not valid YAML"),
        ("folder.yaml", r"folder\.yaml: cannot be read as a recipe file"),
    ],
)
def test_what_cannot_be_extended_is_named(extends: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: x\nstages: [}\n")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(EmbedforgeError, match=message):
        load_recipe(str(write(tmp_path, base=BASE, above={"extends": extends})))


def test_overrides_come_last_and_reach_stages_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE, above={"extends": "base", "stages": [{"name": "mntp", "steps": 5}]})
    overrides = ["stages.mntp.objective.probability=0.5", "stages.simcse.steps=1", "stages.mntp.steps=2"]
    mntp, simcse = load_recipe(str(path), overrides).stages
    assert (mntp.steps, mntp.objective.probability, simcse.steps) == (2, 0.5, 1)
    with pytest.raises(EmbedforgeError, match="extends: unknown key"):
        load_recipe(str(path), ["extends=base"])


def test_files_that_are_extended_stay_as_they_are_for_others(tmp_path: Path) -> None:
    first = write(tmp_path, base=BASE, one={"extends": "base", "stages": [{"name": "mntp", "steps": 5}]})
    assert load_recipe(str(first)).stages[0].steps == 5
    assert load_recipe(str(tmp_path / "base.yaml")).stages[0].steps == 10


def test_a_shipped_recipe_extends_shipped_ones() -> None:
    names = shipped_recipes()
    above = load_recipe("llm2vec-sup-llama")
    assert "extends" in names["llm2vec-sup-llama"].read_text()
    assert [stage.name for stage in above.stages] == ["mntp", "supervised"]
    assert above.stages[0].objective.style == "bert"
    assert above.stages[1] == load_recipe("llm2vec-sup").stages[1]


def test_the_schema_lets_a_file_that_extends_leave_things_out() -> None:
    schema = recipe_schema()
    assert schema["properties"]["extends"]["type"] == "string"
    assert schema["if"] == {"required": ["extends"]}
    whole = schema["else"]
    assert set(whole["required"]) == {"name", "stages"}
    of_stages = whole["properties"]["stages"]["items"]
    assert of_stages["required"] == ["name"]
    assert set(of_stages["else"]["required"]) == {"mix", "steps"}, (
        "all but a merge of models train on something"
    )
    assert "required" not in schema
    stage = schema["$defs"]["Stage"]
    assert stage["required"] == ["name"]
    assert stage["properties"]["skip"]["const"] is True
    # A temperature alone fits two objectives, and is neither's mistake.
    assert len(stage["properties"]["objective"]["anyOf"]) == len(Objective.kinds())
    assert schema["$defs"]["Sum"]["properties"]["terms"]["items"]["anyOf"]


@pytest.mark.parametrize("name", ["mine", "llm2vec-unsup"])
def test_a_recipe_anywhere_extends_a_shipped_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text("extends: llm2vec-unsup\nname: mine\nmodel: {base: some/decoder}\n")
    recipe, shipped = load_recipe(str(path)), load_recipe("llm2vec-unsup")
    assert (recipe.name, recipe.model.base, recipe.stages) == ("mine", "some/decoder", shipped.stages)
