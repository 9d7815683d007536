"""A stage of unsupervised SimCSE: two views by dropout alone, and nothing to learn from without it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import embedforge
from conftest import GOLDEN
from embedforge.data.example import Example
from embedforge.data.step import Draw, build_step
from embedforge.errors import EmbedforgeError
from embedforge.model.dropout import attention_dropout, dropout_sources
from embedforge.model.encoder import EmbeddingModel, build, embedding_model, save
from embedforge.objectives.contrastive import info_nce
from embedforge.train.batches import render_views
from embedforge.train.contrastive import SimcseWork, step_candidates
from embedforge.train.run import train
from stages_for_tests import LORA, begin, crash_in, gradients, recipe_of, simcse, write_texts
from training_for_tests import WORDS, assert_same_weights, logged


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.txt")


def step_views(model: EmbeddingModel, work: SimcseWork, number: int) -> tuple[Tensor, Tensor]:
    """The two views of a step's texts, in the mode that the model is in."""
    step = work.mixture.step(number)
    rows = model.renderer.pad(work.render(step))
    vectors = model(**rows)
    return vectors.chunk(2)  # type: ignore[return-value]


# --- dropout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, {**LORA, "dropout": 0.0}])
def test_zero_dropout_is_refused_before_the_first_step(
    adapter: dict[str, Any] | None, tiny_base: Path, texts: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_base, simcse(texts, objective={"attention_dropout": 0}), adapter=adapter)
    with pytest.raises(
        EmbedforgeError, match=r"stage 'simcse'.*there is none: set objective\.attention_dropout"
    ):
        train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_dropout_of_a_new_adapter_is_enough(tiny_base: Path, texts: Path, tmp_path: Path) -> None:
    """Its B is zero, so that views are equal in the first step and in no other."""
    recipe = recipe_of(
        tiny_base, simcse(texts, objective={"attention_dropout": 0}, warmup_steps=0), adapter=LORA
    )
    model, work = begin(recipe)
    first, second = step_views(model, work, 0)
    assert torch.equal(first, second)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    work.step(model, 0)
    optimizer.step()
    first, second = step_views(model, work, 1)
    assert float((first - second).detach().abs().max()) > 1e-4
    train(recipe, tmp_path / "run", quiet=True)


def test_equal_views_pull_nothing_together_and_dropout_does(tiny_base: Path, texts: Path) -> None:
    model, work = begin(recipe_of(tiny_base, simcse(texts)), dtype=torch.float64)

    def pull() -> tuple[float, float]:
        first, second = step_views(model, work, 0)
        similarity = (first.double() * second.double()).sum(-1)
        model.zero_grad()
        similarity.mean().backward()
        norms = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
        return float(similarity.detach().min()), float(torch.stack(norms).norm())

    model.eval()
    similarity, gradient = pull()
    assert similarity > 1 - 1e-6
    assert gradient < 1e-6
    model.train()
    with attention_dropout(model.decoder, 0.3):
        similarity, gradient = pull()
    assert similarity < 0.999
    assert gradient > 1e-2


def test_dropout_acts_in_each_step_and_is_another_each_time(tiny_base: Path, texts: Path) -> None:
    losses = []
    for probability in (0.01, 0.1, 0.4):
        _, work = begin(recipe_of(tiny_base, simcse(texts, objective={"attention_dropout": probability})))
        losses.append([float(work.step(work.module, number).loss) for number in (0, 0, 1)])
        assert dropout_sources(work.module) == []  # only within a step
    first, again, _ = np.array(losses).T
    np.testing.assert_array_equal(first, again)
    assert len(set(first)) == 3


def test_the_saved_model_knows_nothing_of_the_dropout(tiny_base: Path, texts: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, simcse(texts, steps=1, learning_rate=1e-30), adapter=LORA)
    folder = train(recipe, tmp_path / "run", quiet=True)
    base = build(base=str(tiny_base), contract=recipe.contract)
    save(base, tmp_path / "base")
    config, plain = ((path / "config.json").read_text() for path in (folder, tmp_path / "base"))
    assert config == plain
    assert json.loads(config)["attention_dropout"] == 0
    found = embedding_model(embedforge.load(str(folder), "cpu")).train()
    assert dropout_sources(found) == []
    batch = base.renderer.batch(["a river", "a stone and a cloud"])
    with torch.no_grad():
        torch.testing.assert_close(found(**batch), base(**batch), rtol=0, atol=1e-7)


def test_a_base_without_attention_dropout_is_refused_with_the_way_out(texts: Path, tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(GOLDEN / "tokenizer")
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    recipe = recipe_of(tmp_path / "mamba", simcse(texts), contract={"attention": "causal"})
    with pytest.raises(
        EmbedforgeError, match=r"this mamba .*Set it to 0 and use the dropout of a LoRA adapter"
    ):
        train(recipe, tmp_path / "run", quiet=True)


# --- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [20, 50])
def test_given_views_make_the_loss_of_the_official_code(scale: int, tiny_base: Path, texts: Path) -> None:
    golden = GOLDEN / "llm2vec_tiny"
    official = json.loads((golden / "losses.json").read_text())["HardNegativeNLLLoss"][f"simcse.scale{scale}"]
    stored = load_file(golden / "losses.safetensors")
    first, second = (functional.normalize(stored[name], dim=-1) for name in official["inputs"])
    recipe = recipe_of(tiny_base, simcse(texts, objective={"temperature": 1 / scale}))
    step = build_step(0, [Draw(Example(f"text {row}", (f"text {row}",)), 0, ()) for row in range(8)])
    candidates = step_candidates(step, recipe.stages[0], 1)
    positive = torch.as_tensor(step.positive)
    loss = info_nce(first, second, positive, candidates, recipe.stages[0].objective.temperature).mean()
    assert abs(float(loss) - official["loss"]) < 1e-12


@pytest.mark.parametrize("masked", [True, False])
def test_a_text_that_stands_twice_is_not_its_own_negative(masked: bool, tiny_base: Path, texts: Path) -> None:
    recipe = recipe_of(tiny_base, simcse(texts, objective={"mask_false_negatives": masked}))
    words = ["a river", "a stone", "A  river", "a cloud"]  # compared without case and double spaces
    step = build_step(0, [Draw(Example(word, (word,)), 0, ()) for word in words])
    candidates = step_candidates(step, recipe.stages[0], 1)
    expected = torch.ones(4, 4, dtype=torch.bool)
    if masked:
        expected[0, 2] = expected[2, 0] = False
    assert torch.equal(candidates, expected)


@pytest.mark.parametrize("adapter", [None, LORA])
def test_gradcache_replays_the_dropout_of_its_first_pass(
    adapter: dict[str, Any] | None, tiny_base: Path, texts: Path
) -> None:
    """Micro-batches of the same texts, once with all their graphs and once embedded twice."""
    found = []
    for held in (100_000, 40):
        stage = simcse(texts, tokens_per_micro_batch=40, tokens_held=held)
        _, work = begin(recipe_of(tiny_base, stage, adapter=adapter), dtype=torch.float64)
        found.append(gradients(work))
    assert found[0].keys() == found[1].keys()
    assert sum(float(gradient.abs().sum()) for gradient in found[0].values()) > 0.01
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_documents_limit_and_frame_hold_for_both_views(tiny_base: Path, texts: Path) -> None:
    stage = simcse(texts, document_max_tokens=16)
    stage["mix"]["sources"][0]["instruction"] = "Find"
    recipe = recipe_of(
        tiny_base, stage, contract={"chat_template": "[ {text} ]", "query_template": "{instruction}: {text}"}
    )
    model, work = begin(recipe)
    step = work.mixture.step(0)
    views = render_views(model, step, recipe.stages[0])
    assert len(views) == 2 * len(step.positive)
    assert views[: len(views) // 2] == views[len(views) // 2 :]
    assert max(len(view.input_ids) for view in views) == 16
    for text, view in zip(step.texts, views, strict=False):
        shown = model.tokenizer.decode(view.input_ids, skip_special_tokens=True)
        assert shown.startswith("[ Find: ")
        assert shown.endswith(" ]")
        inside = shown.removeprefix("[ Find: ").removesuffix(" ]")
        assert inside
        assert text.text.startswith(inside)


def _likeness(model: EmbeddingModel) -> float:
    """Mean cosine of pairs of different texts."""
    with torch.no_grad():
        vectors = model.eval()(**model.renderer.batch([f"{one} {two}" for one, two in pairwise(WORDS)]))
    return float((vectors @ vectors.T)[~torch.eye(len(vectors), dtype=torch.bool)].mean())


# --- runs ------------------------------------------------------------------------------------------


def test_in_batch_negatives_false_leaves_no_loss_and_is_refused(
    tiny_base: Path, texts: Path, tmp_path: Path
) -> None:
    stage = simcse(texts)
    stage["mix"]["sources"][0]["in_batch_negatives"] = False
    message = r"stage 'simcse', source 'texts': the loss would always be 0.*in_batch_negatives: false"
    with pytest.raises(EmbedforgeError, match=message):
        train(recipe_of(tiny_base, stage), tmp_path / "run", quiet=True)


def test_texts_of_a_single_token_train(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "letters.txt"
    file.write_text("\n".join("abcdefghijkl") + "\n")
    contract = {"add_bos": False, "add_eos": False}
    train(recipe_of(tiny_base, simcse(file, steps=2), contract=contract), tmp_path / "run", quiet=True)
    assert np.isfinite(logged(tmp_path / "run", "loss")).all()


def test_texts_move_apart_and_an_interrupted_stage_goes_on_to_the_same_bits(
    tiny_base: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_base, simcse(texts, steps=16, tokens_per_micro_batch=64), adapter=LORA)
    whole = train(recipe, tmp_path / "whole", quiet=True)
    found = embedding_model(embedforge.load(str(whole), "cpu"))
    before, after = (
        _likeness(model) for model in (build(base=str(tiny_base), contract=recipe.contract), found)
    )
    assert after < before - 0.05
    with crash_in(monkeypatch, "simcse", 3):
        train(recipe, tmp_path / "cut", quiet=True)
    assert_same_weights(whole, train(recipe, tmp_path / "cut", resume=True, quiet=True))
