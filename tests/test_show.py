"""What `show` and `probe` print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.tree import Tree

from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, load_recipe, parse_recipe, shipped_recipes
from embedforge.show import mixture_tree, read_mixtures, show, show_probe
from sources_for_tests import ROWS, file_of, is_mined, write_sources


def printed(tree: Tree) -> str:
    console = Console(width=400, color_system=None)
    with console.capture() as capture:
        console.print(tree)
    return capture.get()


def recipe_with(*sources: dict[str, object], **stage: object) -> Recipe:
    values = {
        "name": "mine",
        "stages": [{"name": "only", "steps": 1000, "mix": {"sources": list(sources)}, **stage}],
    }
    return parse_recipe(values, "mine.yaml")


UNITS = {
    "distill": "texts and pairs",
    "contrastive": "queries",
    "sum": "sum: ",
    "simcse": "texts",
    "mntp": "chunks",
}


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_a_tree_with_the_rows_of_every_source(name: str, tmp_path: Path) -> None:
    small = [f"stages.{stage.name}.batch_queries=4" for stage in load_recipe(name).stages]
    recipe = load_recipe(name, small)
    write_sources(recipe, tmp_path)
    text = printed(mixture_tree(recipe, read_mixtures(recipe, tmp_path)))
    for stage in recipe.stages:
        assert f"{stage.name}  {stage.steps:,} steps x 4 {UNITS[stage.objective.kind]}" in text
        elsewhere = [source for source in stage.mix.sources if not file_of(source)]
        assert not elsewhere or "not counted: " in text
        for source in () if elsewhere else stage.mix.sources:
            rows = 2 * ROWS if source.kind == "scored_pairs" and not is_mined(source) else ROWS
            rows = min(rows, source.cap or rows)
            stem = Path(file_of(source)).name.partition(".")[0]
            kind = "rows" if stage.objective.unit == "queries" else "texts"
            assert f"{source.name or stem}: {rows:,} {kind}" in text


def test_stages_of_texts_are_told_in_texts_and_chunks(tmp_path: Path) -> None:
    source = {"path": "a.txt", "kind": "texts", "weight": 0.5}
    objective: dict[str, object] = {"kind": "mntp", "probability": 0.8, "style": "all_mask"}
    recipe = recipe_with(source, objective=objective, batch_queries=8)
    write_sources(recipe, tmp_path)
    text = printed(mixture_tree(recipe, read_mixtures(recipe, tmp_path)))
    chunks = "1,000 steps x 8 chunks of 512 tokens, mntp: 80% to predict, all of them hidden by '_', blended"
    assert chunks in text
    assert "33 texts an epoch, which training joins and cuts into chunks" in text
    assert "a: 66 texts, 100.0% of the epoch" in text
    assert "weight 0.5: 33 texts an epoch" in text
    recipe = recipe_with(source, objective={"kind": "simcse"}, batch_queries=8)
    both = text + printed(mixture_tree(recipe, read_mixtures(recipe, tmp_path)))
    assert "1,000 steps x 8 texts, simcse: temperature 0.05, attention dropout 0.3, blended batches" in both
    assert "33 texts an epoch in 4 blended steps of 8 texts" in both
    for word in ("queries", "queries,", "negatives", "positives", "symmetric"):
        assert word not in both


def test_weights_and_shares_are_counted(tmp_path: Path) -> None:
    recipe = recipe_with(
        {"path": "a.jsonl", "weight": 0.5, "instruction": "Find it"},
        {"path": "b.jsonl", "name": "second", "cap": 33},
        batch_queries=8,
    )
    write_sources(recipe, tmp_path)
    text = printed(mixture_tree(recipe, read_mixtures(recipe, tmp_path)))
    assert "mine" in text
    assert "66 rows an epoch in 8 blended steps of 8 queries" in text
    assert "a: 66 rows, 50.0% of the epoch" in text
    assert "weight 0.5: 33 rows an epoch" in text
    assert "second: 33 rows" in text
    assert "instruction: Find it" in text


def test_a_source_that_is_not_there_is_said_and_the_sources_are_listed(tmp_path: Path) -> None:
    recipe = recipe_with({"path": "gone.jsonl"}, {"path": "b.csv", "name": "second", "cap": 9})
    text = printed(mixture_tree(recipe, read_mixtures(recipe, tmp_path)))
    assert f"not counted: {tmp_path / 'gone.jsonl'}: there is no such file" in text
    assert "gone.jsonl (examples, cap none)" in text
    assert "second (examples, cap 9)" in text


def test_square_brackets_are_text_and_not_markup(tmp_path: Path) -> None:
    recipe = recipe_with({"path": "[red]file.jsonl"}, {"path": "b.jsonl", "name": "[bold]two"})
    recipe = recipe.model_copy(update={"about": "[green]about[/green]"})
    text = printed(mixture_tree(recipe, read_mixtures(recipe, tmp_path)))
    for part in ("[red]file.jsonl: there is no such file", "[bold]two (examples", "[green]about[/green]"):
        assert part in text


def test_json_is_the_whole_recipe_and_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    show("tiny", ["seed=7"], None, as_json=True)
    values = json.loads(capsys.readouterr().out)
    assert values["seed"] == 7
    assert parse_recipe(values, "printed") == load_recipe("tiny", ["seed=7"])


def test_the_printed_yaml_has_every_default_but_the_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show("tiny", [], tmp_path)
    out = capsys.readouterr().out
    values = yaml.safe_load(out[: out.index("\ntiny:")])
    assert values["contract"]["query_template"] == "Instruct: {instruction}\nQuery: {text}"
    assert values["training"]["keep_checkpoints"] == 2
    assert "mix" not in values["stages"][0]


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show("tiny", [], None, schema=True)
    assert json.loads(capsys.readouterr().out)["title"] == "Recipe"


def test_an_unknown_recipe_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EmbedforgeError, match="Did you mean 'tiny'"):
        show("tinny", [], None)
    assert not capsys.readouterr().out


def test_probe_shows_every_layer_before_and_after(
    tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_probe(str(tiny_base), "sdpa", "cpu")
    before, after = capsys.readouterr().out.split("made bidirectional")
    for table, seen in ((before, "none"), (after, "all")):
        (layers,) = [line.split() for line in table.splitlines() if line.startswith("0-1")]
        assert layers[1:] == ["MistralDecoderLayer", *[seen] * 4]
    with pytest.raises(EmbedforgeError, match="--device tpu"):
        show_probe(str(tiny_base), "sdpa", "tpu")
