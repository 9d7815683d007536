"""A stage of masked next token prediction: what it hides, what it learns, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import embedforge
from conftest import write_base
from embedforge.model.encoder import EmbeddingModel, build, embedding_model, save
from embedforge.recipe import Recipe
from embedforge.train import mntp as mntp_module
from embedforge.train.mntp import MntpWork, held_out_losses, micro_batches_of_rank
from embedforge.train.run import train
from stages_for_tests import LORA, begin, crash_in, gradients, mntp, recipe_of, write_texts
from training_for_tests import assert_same_weights, logged, weights

TEXTS = ["how deep is the river?", "bread and music", "a stone"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.txt")


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """As `tiny_base`, but its head is its embeddings."""
    return write_base(tmp_path_factory.mktemp("tied_base"), tiny_tokenizer, tied=True)


def vectors(model: EmbeddingModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(**model.renderer.batch(TEXTS))


def fed(work: MntpWork, number: int) -> tuple[Tensor, Tensor]:
    """What the decoder sees in a step, and what was there before."""
    seen: list[Tensor] = []
    hook = work.module.register_forward_pre_hook(
        lambda module, _, inputs: seen.append(inputs["input_ids"]), with_kwargs=True
    )
    work.step(work.module, number)
    hook.remove()
    (ids,) = seen
    return ids, _original(work, number, ids)


def _original(work: MntpWork, number: int, ids: Tensor) -> Tensor:
    picked = mntp_module.visits(work.plan, number)
    rows = [torch.from_numpy(work.chunks[visit.source].ids[visit.row]).long() for visit in picked]
    return torch.stack(rows)[:, : ids.shape[1]]


# --- the gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, {**LORA, "dropout": 0.0}])
@pytest.mark.parametrize("base", ["tiny_base", "tied_base"])
def test_the_gradient_is_the_same_for_every_size_of_micro_batch(
    base: str, adapter: dict[str, Any] | None, texts: Path, request: pytest.FixtureRequest
) -> None:
    found = []
    for budget in (16_384, 40, 1):
        stage = mntp(texts, batch_queries=7, tokens_per_micro_batch=budget)
        recipe = recipe_of(request.getfixturevalue(base), stage, adapter=adapter)
        found.append(gradients(begin(recipe, dtype=torch.float64)[1]))
    assert found[0]
    assert sum(float(gradient.abs().sum()) for gradient in found[0].values()) > 0.1
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_every_prediction_of_a_step_counts_the_same(tiny_base: Path, texts: Path) -> None:
    """The loss is the mean over all predictions, not over the chunks' means; each chunk's own is logged."""
    _, work = begin(recipe_of(tiny_base, mntp(texts, objective={"probability": 0.4})), dtype=torch.float64)
    inputs: list[dict[str, Tensor]] = []
    work.module.register_forward_pre_hook(lambda module, _, given: inputs.append(given), with_kwargs=True)
    figures = work.step(work.module, 0)
    losses = work.module(**inputs[0])
    torch.testing.assert_close(figures.loss, losses.mean().detach().double())
    rows = inputs[0]["positions"] // inputs[0]["input_ids"].shape[1]
    counts = torch.bincount(rows)
    assert len(set(counts.tolist())) > 1
    expected = torch.stack([losses[rows == row].mean() for row in range(6)])
    torch.testing.assert_close(torch.tensor(figures.losses), expected.detach().double(), check_dtype=False)


def test_all_ranks_get_equally_many_micro_batches_and_every_row_once() -> None:
    for rows in range(1, 12):
        for world in (1, 2, 3, 5):
            for size in (1, 2, 4):
                parts = [micro_batches_of_rank(rows, size, rank, world) for rank in range(world)]
                assert len({len(part) for part in parts}) == 1
                own = [row for part in parts for batch, share in part if share for row in batch]
                assert sorted(own) == list(range(rows))


# --- what is hidden --------------------------------------------------------------------------------


def framed_recipe(base: Path, texts: Path, **objective: Any) -> Recipe:
    """A contract with everything that is no text: template, instruction, BOS and EOS."""
    stage = mntp(texts, objective={"probability": 1.0, "style": "all_mask", **objective})
    stage["mix"]["sources"][0]["instruction"] = "Find it"
    contract = {
        "chat_template": "[INST] {text} [/INST]",
        "query_template": "{instruction}: {text}",
        "pool_instruction": True,
        "pool_bos": "always",
    }
    return recipe_of(base, stage, contract=contract)


def test_only_tokens_of_the_text_are_ever_hidden(tiny_base: Path, texts: Path) -> None:
    model, work = begin(framed_recipe(tiny_base, texts))
    (chunks,) = work.chunks
    tokenizer = model.tokenizer
    kept = [id for row in range(len(chunks)) for id in chunks.ids[row][: chunks.lengths[row]]]
    flags = [flag for row in range(len(chunks)) for flag in chunks.maskable[row][: chunks.lengths[row]]]
    lines = texts.read_text().splitlines()
    frame = tokenizer("Find it: ", add_special_tokens=False)["input_ids"]
    expected, hideable = [], []
    for line in lines:
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        expected += [tokenizer.bos_token_id, *frame, *ids, tokenizer.eos_token_id]
        hideable += [False] * (1 + len(frame)) + [True] * len(ids) + [False]
    assert kept == expected
    assert flags == hideable
    assert "INST" not in tokenizer.decode(kept)

    mask = tokenizer.convert_tokens_to_ids("_")
    for number in range(4):
        seen, original = fed(work, number)
        flags = _flags(work, number, seen)
        flags[:, 0] = False  # nothing stands before it to predict it from
        assert bool((seen[flags] == mask).all())
        assert torch.equal(seen[~flags], original[~flags])


def _flags(work: MntpWork, number: int, ids: Tensor) -> Tensor:
    picked = mntp_module.visits(work.plan, number)
    rows = [torch.from_numpy(work.chunks[visit.source].maskable[visit.row].copy()) for visit in picked]
    return torch.stack(rows)[:, : ids.shape[1]]


def test_long_texts_are_cut_into_chunks_and_not_shortened(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("\n".join("river stone " * 100 for _ in range(3)) + "\n")
    whole = begin(recipe_of(tiny_base, mntp(file)))[1]
    short = begin(recipe_of(tiny_base, mntp(file), contract={"text_max_tokens": 8}))[1]
    assert len(whole.chunks[0]) > 30
    assert len(short.chunks[0]) == len(whole.chunks[0])


def test_a_step_hides_the_same_tokens_whenever_it_is_run(tiny_base: Path, texts: Path) -> None:
    recipe = recipe_of(tiny_base, mntp(texts))
    first, again = begin(recipe)[1], begin(recipe)[1]
    for number in (0, 1):
        fed(first, number)
    seen, original = fed(first, 2)
    assert torch.equal(fed(again, 2)[0], seen)  # without the steps before it, as after a resume
    assert not torch.equal(seen, original)
    assert not torch.equal(fed(again, 3)[0], seen)
    other = begin(recipe.model_copy(update={"seed": 1}))[1]
    assert not torch.equal(fed(other, 2)[0], seen)
    epoch = first.plan.steps_per_epoch
    later = {tuple(row) for row in fed(again, 2 + epoch)[0].tolist()}
    assert not later & {tuple(row) for row in seen.tolist()}  # a chunk seen again has other gaps


def test_weights_and_batches_of_several_sources(tiny_base: Path, tmp_path: Path) -> None:
    files = [write_texts(tmp_path / f"{name}.txt", 60, seed) for seed, name in enumerate("ab")]
    stage = mntp(*files, batch_queries=4)
    stage["mix"]["sources"][0]["weight"] = 3.0
    stage["mix"]["batches"] = "homogeneous"
    _, work = begin(recipe_of(tiny_base, stage))
    steps = [
        [work.plan.names[visit.source] for visit in mntp_module.visits(work.plan, number)]
        for number in range(work.plan.steps_per_epoch)
    ]
    assert all(len(set(names)) == 1 for names in steps)
    share = sum(names[0] == "a" for names in steps) / len(steps)
    sizes = [3 * len(work.chunks[0]), len(work.chunks[1])]
    assert abs(share - sizes[0] / sum(sizes)) < 0.05
    assert work.step(work.module, 0).sources == steps[0]
    stage["mix"]["batches"] = "blended"
    _, blended = begin(recipe_of(tiny_base, stage))
    assert len(set(blended.step(blended.module, 0).sources)) == 2


# --- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "adapter"), [("tiny_base", None), ("tied_base", None), ("tiny_base", LORA)])
def test_the_loss_falls(
    base: str, adapter: dict[str, Any] | None, texts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    stage = mntp(texts, steps=30, learning_rate=2e-2, batch_queries=8, objective={"probability": 0.3})
    recipe = recipe_of(request.getfixturevalue(base), stage, adapter=adapter)
    folder = train(recipe, tmp_path / "run", quiet=True)
    losses = logged(tmp_path / "run", "loss")
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assert all(0 <= share < 1 for share in logged(tmp_path / "run", "padding_share"))
    assert not any("lora" in name or "head" in name for name in weights(folder))


def test_the_loss_of_held_out_texts_compares_models(tiny_base: Path, texts: Path, tmp_path: Path) -> None:
    stage = mntp(texts, steps=20, learning_rate=1e-2, batch_queries=8)
    recipe = recipe_of(tiny_base, stage)
    before, work = begin(recipe_of(tiny_base, mntp(write_texts(tmp_path / "held_out.txt", seed=1))))
    head, objective, (chunks,) = work.module.head, recipe.stages[0].objective, work.chunks
    sums, counts = held_out_losses(before, head, objective, chunks)
    assert sums.shape == counts.shape == (len(chunks),)
    assert before.training
    again = held_out_losses(before, head, objective, chunks, tokens_per_batch=4096)
    np.testing.assert_array_equal(again, (sums, counts))
    trained = embedding_model(embedforge.load(str(train(recipe, tmp_path / "run", quiet=True)), "cpu"))
    lower, same = held_out_losses(trained, head, objective, chunks)
    np.testing.assert_array_equal(same, counts)  # the same tokens are hidden from both
    assert lower.sum() < 0.9 * sums.sum()


@pytest.mark.parametrize("adapter", [None, LORA])
@pytest.mark.parametrize("token", ["_", "eos", "<mask>"])
def test_nothing_of_the_stage_stays_but_what_was_learned(
    token: str, adapter: dict[str, Any] | None, tiny_base: Path, texts: Path, tmp_path: Path
) -> None:
    """After steps too small to change a weight the model is the base."""
    objective = {"mask_token": token, "add_mask_token": token == "<mask>"}
    recipe = recipe_of(
        tiny_base, mntp(texts, steps=2, learning_rate=1e-30, objective=objective), adapter=adapter
    )
    folder = train(recipe, tmp_path / "run", quiet=True)
    base = build(base=str(tiny_base), contract=recipe.contract)
    save(base, tmp_path / "base")
    found = embedding_model(embedforge.load(str(folder), "cpu"))
    torch.testing.assert_close(vectors(found), vectors(base), rtol=0, atol=1e-7)
    assert weights(folder).keys() == {key.replace("base/", "model/") for key in weights(tmp_path / "base")}
    config, plain = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "base"))
    rows = found.decoder.get_input_embeddings().num_embeddings
    assert rows == len(found.tokenizer) == config.pop("vocab_size")
    assert rows == plain.pop("vocab_size") + (token == "<mask>")
    assert config == plain
    assert AutoTokenizer.from_pretrained(folder).mask_token == ("<mask>" if token == "<mask>" else None)


def test_an_interrupted_stage_goes_on_to_the_same_bits(
    tiny_base: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_base, mntp(texts, steps=5), adapter=LORA)
    whole = train(recipe, tmp_path / "whole", quiet=True)
    with crash_in(monkeypatch, "mntp", 3):
        train(recipe, tmp_path / "cut", quiet=True)
    resumed = train(recipe, tmp_path / "cut", resume=True, quiet=True)
    assert_same_weights(whole, resumed)


def test_out_of_memory_halves_the_budget_and_the_model_stays_the_same(
    tiny_base: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = recipe_of(tiny_base, mntp(texts, learning_rate=1e-3, tokens_per_micro_batch=80))
    whole = weights(train(recipe, tmp_path / "whole", quiet=True))
    honest = mntp_module.MntpModule.forward
    sizes: list[int] = []

    def small(self: Any, input_ids: Tensor, *rest: Tensor, **more: Tensor) -> Tensor:
        sizes.append(input_ids.numel())
        if input_ids.numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, input_ids, *rest, **more)

    monkeypatch.setattr(mntp_module.MntpModule, "forward", small)
    shrunk = weights(train(recipe, tmp_path / "shrunk", quiet=True))
    assert caplog.text.count("out of memory with 80 tokens") == 1
    assert sizes[0] == 80
    assert max(sizes[1:]) == 32
    for name, tensor in whole.items():
        torch.testing.assert_close(
            shrunk[name.replace("whole", "shrunk")], tensor, rtol=0, atol=2e-5, msg=name
        )
