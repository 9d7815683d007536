"""Recipes: what is refused, what is resolved, and that every shipped one is valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from embedforge.errors import EmbedforgeError
from embedforge.recipe import load_recipe, parse_recipe, recipe_schema, shipped_recipes

MINIMAL = {"name": "r", "stages": [{"name": "one", "steps": 3, "mix": {"sources": [{"path": "a.jsonl"}]}}]}


def write(folder: Path, values: object) -> str:
    path = folder / "r.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = parse_recipe(json.loads(recipe.model_dump_json()), "round trip")
    assert again == recipe


def test_the_three_shipped_recipes_are_there() -> None:
    assert {"tiny", "nv-embed-v1", "nv-embed-v2"} <= set(shipped_recipes())


def test_nv_embed_v2_has_the_published_settings() -> None:
    recipe = load_recipe("nv-embed-v2")
    first, second = recipe.stages
    assert recipe.model.base == "mistralai/Mistral-7B-v0.1"
    assert (recipe.model.pooling.latents, recipe.model.pooling.heads, recipe.model.pooling.head_dim) == (
        512,
        8,
        4096,
    )
    assert first.objective.in_batch == "positives"
    assert second.objective.in_batch == "none"
    assert first.mix.batches == second.mix.batches == "blended"
    retrieval = {source.path for source in first.mix.sources}
    assert retrieval < {source.path for source in second.mix.sources}
    example_based = {
        source.path
        for source in second.mix.sources
        if source.kind in {"labels", "clusters"} and source.label_documents == "examples"
    }
    assert len(example_based) == 16  # 5 multi-class and 11 clustering sets (NV-Embed, table 5)


@pytest.mark.parametrize(
    ("change", "place", "hint"),
    [
        ({"sead": 1}, "sead", "seed"),
        ({"model": {"poling": {}}}, "model.poling", "pooling"),
        ({"training": {"precison": "float32"}}, "training.precison", "precision"),
        ({"contract": {"max_token": 5}}, "contract.max_token", "max_tokens"),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(change: dict, place: str, hint: str) -> None:
    with pytest.raises(EmbedforgeError, match=f"(?s)here.yaml.*{place}: unknown key.*Did you mean '{hint}'"):
        parse_recipe({**MINIMAL, **change}, "here.yaml")


def test_an_unknown_key_deep_inside_names_its_place_and_nothing_else() -> None:
    source = {"path": "a.jsonl", "wieght": 2}
    stage = {"name": "one", "steps": 3, "mix": {"sources": [source]}}
    with pytest.raises(EmbedforgeError) as caught:
        parse_recipe({"name": "r", "stages": [stage]}, "r.yaml")
    assert str(caught.value).splitlines() == [
        "r.yaml:",
        "  stages.0.mix.sources.0.wieght: unknown key. Did you mean 'weight'?",
    ]


def test_a_bad_value_is_shown(tmp_path: Path) -> None:
    with pytest.raises(EmbedforgeError, match=r"stages\.0\.steps: .*found 0"):
        load_recipe(write(tmp_path, MINIMAL), ["stages.0.steps=0"])


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(EmbedforgeError, match=r"r\.yaml, line 2: not valid YAML"):
        load_recipe(write(tmp_path, "name: x\nstages: [}\n"))


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    with pytest.raises(EmbedforgeError, match="Did you mean 'tiny'"):
        load_recipe("tinny")


def test_overrides_reach_lists_by_number_and_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(
        path, ["stages.one.steps=7", "stages.0.objective.temperature=0.1", "model.adapter.rank=4"]
    )
    assert recipe.stages[0].steps == 7
    assert recipe.stages[0].objective.temperature == 0.1
    assert recipe.model.adapter is not None
    assert recipe.model.adapter.rank == 4


@pytest.mark.parametrize("override", ["steps", "stages.two.steps=1", "stages.0.steps.x=1"])
def test_a_bad_override_is_an_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(EmbedforgeError, match="--set"):
        load_recipe(write(tmp_path, MINIMAL), [override])


def test_two_stages_may_not_share_a_name() -> None:
    with pytest.raises(EmbedforgeError, match="different names"):
        parse_recipe({**MINIMAL, "stages": MINIMAL["stages"] * 2}, "r.yaml")


def test_the_contract_takes_the_pooling_of_the_model() -> None:
    recipe = parse_recipe({**MINIMAL, "model": {"pooling": {"kind": "latent"}}}, "r.yaml")
    assert recipe.contract.pooling == "latent"
    both = {"model": {"pooling": {"kind": "latent"}}, "contract": {"pooling": "mean"}}
    with pytest.raises(EmbedforgeError, match=r"set only model\.pooling\.kind"):
        parse_recipe({**MINIMAL, **both}, "r.yaml")


def test_the_schema_describes_the_fields() -> None:
    schema = recipe_schema()
    assert "InfoNCE" in json.dumps(schema)
    assert schema["properties"]["stages"]["minItems"] == 1
