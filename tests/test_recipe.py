"""Recipes: what is refused, what is resolved, and that every shipped one is valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from embedforge.errors import EmbedforgeError
from embedforge.recipe import load_recipe, parse_recipe, shipped_recipes
from embedforge.recipe.schema import recipe_schema

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


def test_a_folder_of_the_name_of_a_shipped_recipe_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert load_recipe("tiny").name == "tiny"


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


def test_a_dtype_to_save_in_is_kept_where_it_is_asked_for() -> None:
    """A recipe that leaves it out gets the base's, and is printed without one."""
    asked = parse_recipe(MINIMAL | {"contract": {"dtype": "bfloat16"}}, "a recipe")
    assert parse_recipe(asked.model_dump(mode="json"), "a recipe").contract.dtype == "bfloat16"
    assert "dtype" not in parse_recipe(MINIMAL, "a recipe").model_dump(mode="json")["contract"]


# --- settings that would have no effect ------------------------------------------------------------

STAGE = MINIMAL["stages"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"contract": {"goldens": [{"text": "a", "prefix": "", "input_ids": [1], "pooling_mask": [1]}]}},
            r"contract\.goldens are made when the model is saved",
        ),
        ({"model": {"pooling": {"latents": 64}}}, r"model\.pooling: latents \(64\) has no effect.*'mean'"),
        (
            {"model": {"pooling": {"kind": "last", "head_dim": 8}}},
            r"head_dim \(8\).*latent and self_attention",
        ),
        ({"model": {"pooling": {"kind": "self_attention", "feed_forward_multiple": 2}}}, "for latent: leave"),
        (
            {"contract": {"max_tokens": 64}, "stages": [STAGE | {"query_max_tokens": 65}]},
            r"one.query.*\(65\)",
        ),
        ({"stages": [STAGE | {"document_max_tokens": 513}]}, r"document.*\(513\).*max_tokens \(512\)"),
        (
            {"training": {"eval_queries": 50}},
            r"training: eval_queries \(50\) has no effect without eval_steps",
        ),
        ({"training": {"held_out": "dev.jsonl"}}, r"held_out \(dev\.jsonl\) has no effect without"),
    ],
)
def test_a_setting_without_effect_is_refused(change: dict, message: str) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        parse_recipe({**MINIMAL, **change}, "r.yaml")


@pytest.mark.parametrize(
    "change",
    [
        {"contract": {"dtype": "bfloat16"}, "training": {"precision": "bfloat16"}},
        {"contract": {"dtype": "float32", "goldens": []}},
        {"model": {"pooling": {"kind": "mean", "latents": 512, "heads": 8, "head_dim": None}}},
        {"model": {"pooling": {"kind": "self_attention", "heads": 4, "head_dim": 16}}},
        {"stages": [STAGE | {"query_max_tokens": 512}]},
        {"training": {"eval_steps": 5, "eval_queries": 50, "held_out": "dev.jsonl"}},
    ],
)
def test_a_setting_that_agrees_is_accepted_and_survives_json(change: dict) -> None:
    recipe = parse_recipe({**MINIMAL, **change}, "r.yaml")
    values = json.loads(recipe.model_dump_json())
    assert parse_recipe(values, "round trip").model_dump(mode="json") == values


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bfloat16_autocast"])
def test_a_printed_recipe_can_be_read_back_with_another_precision(precision: str) -> None:
    """Quickstart writes its plan down after it has changed the precision for the machine."""
    recipe = load_recipe("tiny")
    changed = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"precision": precision})}
    )
    again = parse_recipe(changed.model_dump(mode="json"), "plan")
    assert again.training.precision == precision
    assert not {"dtype", "goldens"} & set(changed.model_dump(mode="json")["contract"])


# --- overrides --------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["name=[a", "name=a: b: c", "name=\t@", 'about="x', "name=*anchor"])
def test_an_override_that_is_no_yaml_is_an_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(EmbedforgeError, match=r"--set .*the value is not valid YAML .*quotes"):
        load_recipe(write(tmp_path, MINIMAL), [override])


def test_an_override_finds_a_source_by_the_name_of_its_file() -> None:
    key = "stages.retrieval.mix.sources.msmarco.cap"
    first, second = load_recipe("nv-embed-v2", [f"{key}=10"]).stages
    assert first.mix.sources[0].cap == 10
    assert second.mix.sources[0].cap == 500_000  # one YAML anchor, two places
    with pytest.raises(EmbedforgeError) as caught:
        load_recipe("nv-embed-v2", [key.replace("msmarco", "msmacro") + "=10"])
    assert "from 0 to 16, the names are: msmarco, paq" in str(caught.value)
    assert "Did you mean 'msmarco'?" in str(caught.value)
    assert "None" not in str(caught.value)


def test_an_override_does_not_guess_between_sources_of_one_name(tmp_path: Path) -> None:
    sources = [{"path": "a/train.jsonl"}, {"path": "b/train.jsonl"}]
    path = write(tmp_path, {"name": "r", "stages": [STAGE | {"mix": {"sources": sources}}]})
    with pytest.raises(EmbedforgeError, match="2 items are named 'train'; use a number"):
        load_recipe(path, ["stages.one.mix.sources.train.cap=3"])
    assert load_recipe(path, ["stages.one.mix.sources.1.cap=3"]).stages[0].mix.sources[1].cap == 3


@pytest.mark.parametrize("name", ["nv-embed-v1", "nv-embed-v2"])
def test_every_mark_of_a_shipped_recipe_is_explained_in_its_header(name: str) -> None:
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    header = " ".join(line.removeprefix("# ") for line in text.split("name:")[0].splitlines())
    explained = header.split("Marks: ")[1].split("Change what")[0]
    for mark in set(re.findall(r"\[(paper|paper v1|memory|ours)[],]", text)):
        assert f"[{mark}] " in explained, mark
