"""Stages hand over to one another: adapters merged, stacked or trained on, by vectors before and after."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import embedforge
from embedforge.errors import EmbedforgeError
from embedforge.model.adapter import is_no_op
from embedforge.model.encoder import EmbeddingModel, embedding_model
from embedforge.recipe import Recipe, parse_recipe
from embedforge.train.run import stage_folder, train
from embedforge.train.stages import begin_stage, model_after, prepare_model
from stages_for_tests import LORA, crash_in, mntp, recipe_of, simcse, supervised, write_texts
from training_for_tests import assert_same_weights, logged, write_pairs

TEXTS = ["how deep is the river?", "bread and music", "a stone", "find river stone 3"]
OTHER = {"rank": 2, "alpha": 8, "dropout": 0.3, "targets": ["q_proj", "down_proj"]}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.txt")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "pairs.jsonl")
    return tmp_path / "pairs.jsonl"


def three_stages(base: Path, texts: Path, pairs: Path, how: str, precision: str, **changes: Any) -> Recipe:
    """LLM2Vec's: MNTP, SimCSE, then supervised with one hard negative in batches of one source."""
    later = {"earlier_adapter": how, **({} if how == "continue" else {"adapter": OTHER})}
    return recipe_of(
        base,
        mntp(texts),
        simcse(texts, **later),
        supervised(pairs, **later),
        adapter=LORA,
        model={"pooling": {"kind": "latent", "latents": 8, "heads": 2, "head_dim": 16}},
        training={"precision": precision},
        **changes,
    )


@torch.no_grad()
def vectors(model: EmbeddingModel) -> Tensor:
    return model.eval()(**model.renderer.batch(TEXTS))


def finished(run: Path, recipe: Recipe, stages: int) -> EmbeddingModel:
    """The model of a run as its first stages left it, on the CPU."""
    done = [stage_folder(run, recipe, number) / "done.safetensors" for number in range(stages)]
    return model_after(recipe, done, "cpu")


def adapter_names(model: EmbeddingModel, trainable: bool) -> set[str]:
    """The names of a decoder's adapters, all of them or those with trainable weights."""
    parameters = [item for item in model.decoder.named_parameters() if ".lora_" in item[0]]
    return {
        name.split(".lora_")[1].split(".")[1]
        for name, weight in parameters
        if weight.requires_grad or not trainable
    }


def check_handover(run: Path, recipe: Recipe, number: int) -> None:
    """What a stage begins with gives the vectors that the one before ended with, and is as declared."""
    how, names = recipe.stages[number].earlier_adapter, ["default", "adapter2", "adapter3"]
    model = finished(run, recipe, number)
    before, base = vectors(model), vectors(prepare_model(recipe, "cpu"))
    assert float((before - base).abs().max()) > 1e-3  # the stages before have an effect
    begin_stage(model, recipe, recipe.stages[number])
    after = vectors(model)
    if how == "merge":
        loose = recipe.training.precision == "bfloat16"
        torch.testing.assert_close(after, before, rtol=0, atol=5e-2 if loose else 2e-5)
        assert is_no_op(model.decoder)
        assert adapter_names(model, trainable=False) == {"default"}
    else:
        assert torch.equal(after, before)
    if how == "stack":
        assert adapter_names(model, trainable=False) == set(names[: number + 1])
        assert adapter_names(model, trainable=True) == {names[number]}
    settings = list(model.decoder.peft_config.values())[-1]
    expected = LORA if how == "continue" else OTHER
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (
        expected["rank"],
        expected["alpha"],
        expected["dropout"],
    )
    assert all(weight.requires_grad for weight in model.pooler.parameters())
    plain = [name for name, weight in model.decoder.named_parameters() if weight.requires_grad]
    assert plain
    assert all(".lora_" in name for name in plain)


@pytest.mark.filterwarnings("ignore:merging in torch.bfloat16 rounded")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["merge", "stack", "continue"])
def test_three_stages_hand_over_and_an_interrupted_run_goes_on_to_the_same_bits(
    how: str,
    precision: str,
    tiny_base: Path,
    texts: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = three_stages(tiny_base, texts, pairs, how, precision)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*no-op")  # what is merged was trained and loaded
        whole = train(recipe, tmp_path / "whole", quiet=True)
        assert len(logged(tmp_path / "whole", "loss")) == 12

        with crash_in(monkeypatch, "simcse", 3):
            train(recipe, tmp_path / "cut", quiet=True)
        with crash_in(monkeypatch, "supervised", 3):
            train(recipe, tmp_path / "cut", resume=True, quiet=True)
        assert_same_weights(whole, train(recipe, tmp_path / "cut", resume=True, quiet=True))

    for number in (1, 2):
        check_handover(tmp_path / "whole", recipe, number)
    last = finished(tmp_path / "whole", recipe, 3)
    assert isinstance(last.decoder, PeftModel)
    merged = embedding_model(embedforge.load(str(whole), "cpu"))
    tolerance = 5e-2 if precision == "bfloat16" else 2e-5
    torch.testing.assert_close(vectors(merged), vectors(last), rtol=0, atol=tolerance)


def test_a_stacked_adapter_stays_as_it_was(tiny_base: Path, texts: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = three_stages(tiny_base, texts, pairs, "stack", "float32")
    train(recipe, tmp_path / "run", quiet=True)
    first, last = finished(tmp_path / "run", recipe, 1), finished(tmp_path / "run", recipe, 3)
    later = dict(last.decoder.named_parameters())
    kept = {name: weight for name, weight in first.decoder.named_parameters() if ".lora_" in name}
    assert kept
    assert all(torch.equal(later[name], weight) for name, weight in kept.items())
    for name in ("adapter2", "adapter3"):  # and the others act on their own layers
        changed = {
            key.split(".")[-4] for key, weight in later.items() if f"lora_B.{name}" in key and weight.any()
        }
        assert changed == {"q_proj", "down_proj"}


def test_a_merged_run_gives_what_a_new_run_from_the_merged_model_gives(
    tiny_base: Path, texts: Path, pairs: Path, tmp_path: Path
) -> None:
    """The second stage begins with the first one's model and nothing else of it."""
    recipe = recipe_of(tiny_base, simcse(texts), supervised(pairs, earlier_adapter="merge"), adapter=LORA)
    train(recipe, tmp_path / "run", quiet=True)
    first = recipe.model_copy(update={"stages": recipe.stages[:1]})
    alone = train(first, tmp_path / "first", quiet=True)
    model = finished(tmp_path / "run", recipe, 1)
    begin_stage(model, recipe, recipe.stages[1])
    torch.testing.assert_close(
        vectors(model), vectors(embedding_model(embedforge.load(str(alone), "cpu"))), rtol=0, atol=2e-5
    )


def test_each_new_adapter_begins_with_weights_of_its_own_and_always_the_same(
    tiny_base: Path, texts: Path, pairs: Path, tmp_path: Path
) -> None:
    def first_weights(seed: int) -> list[Tensor]:
        recipe = three_stages(tiny_base, texts, pairs, "stack", "float32", seed=seed)
        model = prepare_model(recipe, "cpu")
        for stage in recipe.stages:
            begin_stage(model, recipe, stage)
        found = dict(model.decoder.named_parameters())
        return [weight.detach() for name, weight in found.items() if "lora_A" in name and "q_proj" in name]

    one, again, other = first_weights(0), first_weights(0), first_weights(1)
    assert len(one) == 6
    assert all(torch.equal(*both) for both in zip(one, again, strict=True))
    assert not any(torch.equal(*both) for both in zip(one, other, strict=True))
    second, third = one[1], one[2]
    assert second.shape == third.shape == (2, 32)
    assert not torch.equal(second, third)


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "adapter", "message"),
    [
        (
            [simcse(Path("a.txt")), supervised(Path("a.jsonl"), earlier_adapter="merge")],
            None,
            r"stages\.supervised\.earlier_adapter is 'merge'.*model\.adapter is null.*leave it out",
        ),
        (
            [simcse(Path("a.txt"), earlier_adapter="stack")],
            LORA,
            r"stages\.simcse\.earlier_adapter is 'stack'.*it is the first stage",
        ),
        (
            [simcse(Path("a.txt")), supervised(Path("a.jsonl"), adapter=OTHER)],
            LORA,
            r"stages\.1: adapter has no effect while earlier_adapter is 'continue'.*to merge or stack",
        ),
        (
            [simcse(Path("a.txt")), supervised(Path("a.jsonl"), earlier_adapter="marge")],
            LORA,
            r"stages\.1\.earlier_adapter: .*'continue', 'merge' or 'stack'.*'marge'",
        ),
        (
            [simcse(Path("a.txt"), negatives=3)],
            LORA,
            r"stages\.0: negatives \(3\) has no effect on objective 'simcse': leave it out",
        ),
        (
            [mntp(Path("a.txt"), pooling_learning_rate=0.1)],
            LORA,
            r"pooling_learning_rate \(0\.1\) has no effect on objective 'mntp'",
        ),
        (
            [mntp(Path("a.txt"), objective={"chunk_tokens": 100})],
            LORA,
            r"stages\.mntp\.objective\.chunk_tokens \(100\) is above contract\.max_tokens \(48\)",
        ),
        (
            [{**simcse(Path("a.txt")), "mix": {"sources": [{"path": "a.jsonl"}]}}],
            LORA,
            r"objective 'simcse' learns from texts alone, and source 'a\.jsonl' has kind 'examples'",
        ),
        (
            [{**supervised(Path("a")), "mix": {"sources": [{"path": "a.txt", "kind": "texts"}]}}],
            LORA,
            r"source 'a\.txt' has kind 'texts', and texts alone have no positives: use objective mntp",
        ),
        (
            [mntp(Path("a.txt"), objective={"mask_token": "eos", "add_mask_token": True})],
            LORA,
            r"mask_token 'eos' is the EOS token, which is there",
        ),
        (
            [mntp(Path("a.txt"), objective={"probabilty": 0.1})],
            LORA,
            r"stages\.0\.objective\.probabilty: unknown key\. Did you mean 'probability'\?",
        ),
        (
            [simcse(Path("a.txt"), objective={"attention_dropout": 1.0})],
            LORA,
            r"stages\.0\.objective\.attention_dropout: .*less than 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    stages: list[dict[str, Any]], adapter: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(EmbedforgeError, match=f"(?s){message}"):
        recipe_of(Path("base"), *stages, adapter=adapter)


def test_a_target_that_is_none_names_the_layers_before_its_stage_begins(
    tiny_base: Path, texts: Path, pairs: Path, tmp_path: Path
) -> None:
    values = three_stages(tiny_base, texts, pairs, "stack", "float32").model_dump(mode="json")
    values["stages"][1]["adapter"]["targets"] = ["q_prj"]
    with pytest.raises(
        EmbedforgeError, match=r"adapter\.targets: 'q_prj' names no linear .*Did you mean 'q_proj'"
    ):
        train(parse_recipe(values, "r"), tmp_path / "run", quiet=True)
