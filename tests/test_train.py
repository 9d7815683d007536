"""Training: it learns, resumes exactly after a real kill, gives one result on any ranks, stops cleanly."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import embedforge
from embedforge.data.convert import read_source
from embedforge.data.example import Example
from embedforge.data.step import Draw, build_step
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import build, to_sentence_transformer
from embedforge.recipe import Recipe, load_recipe, parse_recipe, shipped_recipes
from embedforge.text.contract import Contract
from embedforge.train import checkpoints as checkpoints_module
from embedforge.train import trainer as trainer_module
from embedforge.train.batches import render_step
from embedforge.train.checkpoints import last_complete_checkpoint
from embedforge.train.mixtures import read_mixture
from embedforge.train.run import prepare_model, train

WORDS = ["river", "stone", "cloud", "engine", "letter", "garden"]
WORDS += ["window", "silver", "market", "forest", "copper", "signal"]


def write_pairs(path: Path, rows: int = 48, seed: int = 0) -> None:
    """Queries and documents about two words each: a task that a tiny model can learn in seconds."""
    chance = random.Random(seed)
    lines = []
    for number in range(rows):
        one, two = chance.sample(WORDS, 2)
        record = {
            "query": f"find {one} {two} {number}",
            "positives": [f"{two} and {one} number {number}", f"{one} with {two} number {number}"],
            "negatives": [f"{chance.choice(WORDS)} alone {number}", f"{chance.choice(WORDS)} again {number}"],
        }
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")


def tiny_recipe(base: Path, data: Path, **changes: Any) -> Recipe:
    """Two stages over one file: in-batch negatives, then none."""
    source = {"path": str(data), "instruction": "Find the document"}
    common = {"batch_queries": 8, "negatives": 1, "learning_rate": 3e-3, "warmup_steps": 1}
    values = {
        "name": "test",
        "model": {
            "base": str(base),
            "pooling": {
                "kind": "latent",
                "latents": 8,
                "heads": 2,
                "head_dim": 16,
                "feed_forward_multiple": 1,
            },
        },
        "contract": {"max_tokens": 48},
        "stages": [
            {"name": "one", "steps": 6, "mix": {"sources": [source]}, **common},
            {
                "name": "two",
                "steps": 4,
                "mix": {"sources": [source]},
                "objective": {"in_batch": "none"},
                **common,
            },
        ],
        "training": {"precision": "float32", "save_steps": 2, "log_steps": 1},
    }
    return parse_recipe({**values, **changes}, "test")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    write_pairs(path)
    return path


def weights(model: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(model.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_weights(one: Path, other: Path) -> None:
    first = {key.split("/", 1)[1]: value for key, value in weights(one).items()}
    second = {key.split("/", 1)[1]: value for key, value in weights(other).items()}
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"{len(different)} of {len(first)} tensors differ, for example {different[:3]}"


def logged(run: Path, key: str) -> list[float]:
    return [
        entry[key] for entry in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if key in entry
    ]


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
    assert set(saved["versions"]) >= {"torch", "transformers"}


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

    resumed = train(load_recipe(str(file)), tmp_path / "cut", resume=True, quiet=True)
    assert_same_weights(whole, resumed)
    steps = [
        (entry["stage"], entry["step"]) for entry in map(json.loads, (tmp_path / "cut" / "log.jsonl").open())
    ]
    assert len(set(steps)) >= 10


def test_resume_ignores_a_checkpoint_that_was_not_finished(tmp_path: Path) -> None:
    for number, complete in ((2, True), (4, False)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        if complete:
            (folder / "complete").touch()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


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
    values = recipe.model_dump(mode="json")
    values["model"]["base"] = str(tiny_base)
    values["model"]["pooling"] |= {"latents": 8, "heads": 2, "head_dim": 16}
    values["contract"]["max_tokens"] = 48
    flags = ("in_batch_negatives", "symmetric")
    for stage in values["stages"]:
        kinds = {source["in_batch_negatives"]: source for source in stage["mix"]["sources"]}
        stage["mix"]["sources"] = [
            {"path": str(pairs), "name": f"s{place}", **{key: source[key] for key in ("instruction", *flags)}}
            for place, source in enumerate(kinds.values())
        ]
        stage |= {
            "steps": 2,
            "batch_queries": 8,
            "negatives": 2,
            "query_max_tokens": None,
            "document_max_tokens": None,
        }
    model = train(parse_recipe(values, name), tmp_path / "run", quiet=True)
    assert (model / "contract.json").exists()


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    tiny_base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    honest, calls = trainer_module.info_nce, []

    def poisoned(*args: Any) -> torch.Tensor:
        calls.append(1)
        losses = honest(*args)
        return losses if len(calls) < 4 else losses * float("nan")

    monkeypatch.setattr(trainer_module, "info_nce", poisoned)
    with pytest.raises(
        EmbedforgeError, match=r"(?s)stage 'one', step 3: the loss is not finite.*find .*checkpoint-2"
    ):
        train(recipe, tmp_path / "run", quiet=True)
    monkeypatch.setattr(trainer_module, "info_nce", honest)
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
    (tmp_path / "run" / "model").rename(tmp_path / "elsewhere")
    other = parse_recipe({**recipe.model_dump(mode="json"), "seed": 1}, "t")
    with pytest.raises(EmbedforgeError, match="seed was 0, is 1"):
        train(other, tmp_path / "run", resume=True, quiet=True)
    write_pairs(pairs, seed=5)
    with pytest.raises(EmbedforgeError, match="the data differs"):
        train(recipe, tmp_path / "run", resume=True, quiet=True)


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


def test_two_sources_with_one_name_are_refused(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_base, pairs)
    stage = recipe.stages[0]
    twice = stage.model_copy(update={"mix": stage.mix.model_copy(update={"sources": stage.mix.sources * 2})})
    with pytest.raises(EmbedforgeError, match="same name"):
        read_mixture(twice, 0)


def test_ctrl_c_saves_and_the_run_goes_on(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    recipe = tiny_recipe(
        tiny_base, pairs, training={"precision": "float32", "save_steps": 1000, "log_steps": 1}
    )
    values = recipe.model_dump(mode="json")
    values["stages"][0]["steps"] = 400
    file.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "embedforge", "train", str(file), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
    while not log.exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, message
    assert "--resume" in message
    assert last_complete_checkpoint(tmp_path / "run" / "stages" / "1-one") is not None
