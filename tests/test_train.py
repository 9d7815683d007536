"""Training by a recipe: it learns, the same whatever the machine, and leaves a model that loads."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainingArguments

import embedforge
from embedforge.data.convert import read_source
from embedforge.data.example import Example
from embedforge.data.step import Draw, build_step
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import build, to_sentence_transformer
from embedforge.recipe import load_recipe, parse_recipe, shipped_recipes
from embedforge.recipe.terms import distillation_of
from embedforge.text.contract import Contract
from embedforge.train import run as run_module
from embedforge.train.batches import render_step
from embedforge.train.mixtures import read_mixture
from embedforge.train.run import prepare_model, train
from stages_for_tests import write_texts
from training_for_tests import WORDS, logged, tiny_recipe, weights, write_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    write_pairs(path)
    return path


WORDS += ["window", "silver", "market", "forest", "copper", "signal"]


def test_training_lowers_the_loss_and_leaves_a_model_that_loads(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    recipe = parse_recipe(
        {
            **recipe.model_dump(mode="json"),
            "stages": [{**recipe.stages[0].model_dump(mode="json"), "steps": 30}],
        },
        "t",
    )
    held_out = read_source(recipe.stages[0].mix.sources[0], seed=0)[:16]
    model = train(recipe, tmp_path / "run", quiet=True, held_out=held_out)
    losses = logged(tmp_path / "run", "loss")
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert all(0 <= share < 1 for share in logged(tmp_path / "run", "padding_share"))
    st = embedforge.load(str(model))
    vectors = st.encode_query(["find river stone 3"])
    assert abs(float((vectors**2).sum()) - 1) < 1e-5
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert saved["recipe"]["stages"][0]["objective"]["temperature"] == 0.02
    assert set(saved["versions"]) >= {"embedforge", "torch", "transformers"}
    assert "CPUs" in saved["machine"]
    assert json.loads((tmp_path / "run" / "phases.json").read_text())["stage one"] > 0


def test_two_ranks_train_the_same_model_as_one(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe(tiny_base, pairs).model_dump(mode="json")))
    alone = train(load_recipe(str(file)), tmp_path / "alone", quiet=True)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"),
        *("-m", "embedforge", "train", str(file), "--out", str(tmp_path / "ranks"), "--device", "cpu"),
    ]
    subprocess.run(
        command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=240
    )
    one, two = weights(alone), weights(tmp_path / "ranks" / "model")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16_autocast"])
def test_the_other_precisions_train(tiny_base: Path, pairs: Path, tmp_path: Path, precision: str) -> None:
    recipe = tiny_recipe(tiny_base, pairs, training={"precision": precision, "gradient_checkpointing": True})
    train(recipe, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "model" / "contract.json").exists()


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_trains_two_steps_on_a_tiny_base(
    name: str, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    """Everything of the recipe stands but its size: base, sources, steps, widths."""
    recipe = load_recipe(name)
    if any(distillation_of(stage.objective) for stage in recipe.stages):
        pytest.skip("it needs its teacher; tests of distillation have a small one")
    values = recipe.model_dump(mode="json")
    values["model"]["base"] = str(tiny_base)
    if recipe.model.pooling.kind == "latent":
        values["model"]["pooling"] |= {"latents": 8, "heads": 2, "head_dim": 16}
    values["contract"] |= {"max_tokens": 128, "text_max_tokens": None}
    texts = write_texts(tmp_path / "texts.txt")
    flags = ("in_batch_negatives", "symmetric")
    for stage in values["stages"]:
        kinds = {source["in_batch_negatives"]: source for source in stage["mix"]["sources"]}
        stage |= {"steps": 2, "batch_queries": 8, "query_max_tokens": None, "document_max_tokens": None}
        if stage["objective"]["kind"] != "contrastive":
            stage["mix"]["sources"] = [{"path": str(texts), "kind": "texts"}]
            if stage["objective"]["kind"] == "mntp":
                stage["objective"] |= {"chunk_tokens": 16, "mask_token": "_", "add_mask_token": False}
            continue
        stage["negatives"] = 2
        stage["mix"]["sources"] = [
            {"path": str(pairs), "name": f"s{place}", **{key: source[key] for key in ("instruction", *flags)}}
            for place, source in enumerate(kinds.values())
        ]
    model = train(parse_recipe(values, name), tmp_path / "run", quiet=True)
    assert (model / "contract.json").exists()


def test_only_adapter_and_pooler_are_trained_with_lora(tiny_base: Path, pairs: Path) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    values = {
        **recipe.model_dump(mode="json"),
        "model": {**recipe.model.model_dump(mode="json"), "adapter": {"rank": 2}},
    }
    model = prepare_model(parse_recipe(values, "t"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in model.named_parameters() if name.startswith("pooler.")} <= trained
    assert all("lora_" in name for name in trained if name.startswith("decoder."))


def test_training_renders_texts_as_the_loaded_model_does(tiny_base: Path) -> None:
    """Templates that continue after the text, on queries, documents and documents of symmetric data."""
    contract = Contract(
        max_tokens=64, query_template="[Q] {instruction}: {text} [/Q]", document_template="[D] {text} [/D]"
    )
    model = build(base=str(tiny_base), contract=contract)
    examples = [
        Example("a river", ("deep water",), instruction="Find it"),
        Example("a stone", ("a rock",), instruction="Find it", symmetric=True),
        Example("a cloud", ("vapour",)),
    ]
    step = build_step(0, [Draw(example, 0, ()) for example in examples])
    source = {"path": "unused.jsonl"}
    stage = parse_recipe(
        {"name": "r", "stages": [{"name": "s", "steps": 1, "mix": {"sources": [source]}}]}, "t"
    )
    rendered = render_step(model, step, stage.stages[0])
    encoder = to_sentence_transformer(model)[0]
    asked = contract.query_prefix("Find it")
    expected = [
        *(encoder.preprocess([text], asked, task="query") for text in ("a river", "a stone")),
        encoder.preprocess(["a cloud"], "", task="query"),
        encoder.preprocess(["deep water"], contract.document_prefix(), task="document"),
        encoder.preprocess(["a rock"], asked),
        encoder.preprocess(["vapour"], contract.document_prefix(), task="document"),
    ]
    for row, batch in zip(rendered, expected, strict=True):
        assert row.input_ids == batch["input_ids"][0].tolist()
        assert row.pooling_mask == batch["pooling_mask"][0].tolist()


@pytest.mark.filterwarnings("error::FutureWarning")
def test_lora_with_gradient_checkpointing_uses_nothing_deprecated(tiny_base: Path, pairs: Path) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    values = recipe.model_dump(mode="json")
    values["model"]["adapter"] = {"rank": 2}
    values["training"]["gradient_checkpointing"] = True
    model = prepare_model(parse_recipe(values, "t"))
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_saved_weights_have_the_permissions_of_other_files(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    earlier = os.umask(0o027)
    try:
        model = train(tiny_recipe(tiny_base, pairs), tmp_path / "run", quiet=True)
    finally:
        os.umask(earlier)
    files = list((tmp_path / "run").rglob("*.safetensors"))
    assert len(files) == 4  # two stages, decoder, pooler
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}
    assert stat.S_IMODE(model.stat().st_mode) == 0o750


def test_a_process_trains_on_the_one_gpu_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several; what cannot be seen without them is that the Trainer would otherwise take them all."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments._n_gpu = 2
    arguments = run_module._on_one_device(arguments, torch.device("cuda:1"))
    assert (arguments.n_gpu, arguments.device) == (1, torch.device("cuda:1"))
    assert chosen == [torch.device("cuda:1")]


def test_two_sources_with_one_name_are_refused(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    stage = recipe.stages[0]
    twice = stage.model_copy(update={"mix": stage.mix.model_copy(update={"sources": stage.mix.sources * 2})})
    with pytest.raises(EmbedforgeError, match="same name"):
        read_mixture(twice, 0)
