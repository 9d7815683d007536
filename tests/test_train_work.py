"""How much a step computes: padding, forward passes, calls of the tokenizer. Work, not time."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embedforge.data.example import Example
from embedforge.data.mixture import Mixture
from embedforge.files import read_json
from embedforge.model.adapter import add_lora
from embedforge.recipe import Stage
from embedforge.train.contrastive import ContrastiveWork
from embedforge.train.held import FILE, HeldTokens, graph_bytes
from embedforge.train.stages import prepare_model
from embedforge.train.work import StageContext
from training_for_tests import tiny_recipe
from work_for_tests import compiled, copied_bytes, operations

QUERIES, NEGATIVES, BUDGET = 8, 7, 256


def examples(count: int = 16) -> list[Example]:
    """Texts of 1 to 30 words."""
    chance = random.Random(0)

    def text() -> str:
        return " ".join(chance.choices(["river", "stone", "cloud", "engine"], k=chance.randint(1, 30)))

    return [
        Example(f"{number} {text()[:20]}", (text(),), tuple(text() for _ in range(NEGATIVES)), "")
        for number in range(count)
    ]


class Counted:
    """A stage's work, whose forward passes and calls of the tokenizer are counted."""

    def __init__(self, base: Path, **changes: object) -> None:
        self.recipe = tiny_recipe(base, Path("unread.jsonl"))
        self.model = prepare_model(self.recipe, "cpu")
        stage = self.recipe.stages[0].model_dump() | {
            "batch_queries": QUERIES,
            "negatives": NEGATIVES,
            "tokens_per_micro_batch": BUDGET,
            **changes,
        }
        mixture = Mixture(
            {"x": examples()}, seed=0, batch_queries=QUERIES, negatives=NEGATIVES, batches="blended"
        )
        self.work = ContrastiveWork(self.model, Stage.model_validate(stage), mixture, 0)
        accumulate = torch.Tensor.backward
        context = StageContext(
            torch.device("cpu"), 0, 1, False, accumulate, lambda _: contextlib.nullcontext()
        )
        self.work.begin(context)
        self.passes = self.tokenized = 0
        self.model.decoder.register_forward_pre_hook(self._count_pass)
        tokenize = self.model.renderer._tokenize

        def counted(strings: list[str], **options: bool) -> object:
            self.tokenized += len(strings)
            return tokenize(strings, **options)

        self.model.renderer._tokenize = counted

    def _count_pass(self, *_: object) -> None:
        self.passes += 1

    def gradients(self) -> dict[str, torch.Tensor]:
        return {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}


@pytest.fixture
def counted(tiny_base: Path) -> Callable[..., Counted]:
    return lambda **changes: Counted(tiny_base, **changes)


def test_a_step_that_fits_is_embedded_once_and_hardly_padded(counted) -> None:
    one = counted()
    figures = one.work.step(one.model, 0)
    least = -(-figures.padded_tokens // BUDGET)
    measuring = 1
    assert one.passes <= least + 1 + measuring
    assert 1 - figures.tokens / figures.padded_tokens <= 0.03
    one.passes = 0
    figures = one.work.step(one.model, 1)
    assert one.passes <= -(-figures.padded_tokens // BUDGET) + 1


def test_what_is_held_and_what_is_embedded_twice_have_the_same_gradient(counted) -> None:
    held, cached = counted(), counted(tokens_held=BUDGET)
    for one in (held, cached):
        one.work.step(one.model, 0)
    assert cached.passes >= 2 * (held.passes - 1)
    expected = cached.gradients()
    for name, gradient in held.gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_packed_and_padded_steps_have_the_same_gradient(counted) -> None:
    packed, padded = counted(), counted()
    assert packed.work.packed
    padded.work.packed = False
    losses = [one.work.step(one.model, 0).loss for one in (packed, padded)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    expected = padded.gradients()
    for name, gradient in packed.gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_text_is_tokenised_once_however_often_it_comes(counted) -> None:
    one = counted()
    for number in range(2):  # an epoch
        one.work.step(one.model, number)
    different = {t for e in examples() for t in (e.query, *e.positives, *e.negatives)}
    assert one.tokenized <= len(different) + len({e.query for e in examples()})
    one.tokenized = 0
    for number in range(2, 6):
        one.work.step(one.model, number)
    assert one.tokenized == 0


def test_operations_of_a_step_are_three_passes_of_its_tokens_and_of_a_cached_one_four(counted) -> None:
    """A forward pass, and two products for each of its own backward; GradCache has one more forward."""
    held, cached = counted(), counted(tokens_held=BUDGET)
    tokens, _ = (one.work.step(one.model, 0).tokens for one in (held, cached))
    once, twice = (operations(lambda one=one: one.work.step(one.model, 0)) for one in (held, cached))
    products = sum(part.numel() for part in held.model.decoder.layers.parameters() if part.dim() == 2)
    assert 6 * products <= once / tokens <= 9.6 * products  # the latent block is a third of the work here
    assert twice / once == pytest.approx(4 / 3, rel=0.02)


def test_nothing_is_computed_for_weights_that_are_frozen(counted) -> None:
    full, lora = counted(), counted()
    lora.model.decoder = add_lora(lora.model.decoder, rank=1, alpha=1, dropout=0.0)
    lora.work.begin(lora.work.context)
    assert lora.work.packed
    tokens, _ = (one.work.step(one.model, 0).tokens for one in (full, lora))
    all_weights, few = (operations(lambda one=one: one.work.step(one.model, 0)) for one in (full, lora))
    products = sum(part.numel() for part in full.model.decoder.layers.parameters() if part.dim() == 2)
    added = sum(part.numel() for part in lora.model.decoder.parameters() if part.requires_grad)
    saved = 2 * products - 6 * added
    assert (all_weights - few) / tokens >= 0.98 * saved


def test_copies_of_a_step_are_held_and_nothing_is_compiled(counted) -> None:
    """Bytes that copies write, in float32 states of a token and layer; and in steps embedded twice."""
    for most, changes in ((16.5, {}), (24, {"tokens_held": BUDGET})):
        one = counted(**changes)
        tokens = one.work.step(one.model, 0).tokens
        config = one.model.decoder.config
        state = tokens * config.hidden_size * config.num_hidden_layers * 4
        copied = copied_bytes(lambda one=one: one.work.step(one.model, 0))
        assert copied.total <= most * state, copied.by_operation
        assert compiled(lambda one=one: one.work.step(one.model, 0)) == (0, 0)


def test_what_is_held_is_written_down_and_stays(tmp_path: Path) -> None:
    layer = torch.nn.Linear(8, 8)
    batch = torch.ones(4, 8)
    tokens = HeldTokens(tmp_path).tokens(lambda: layer(batch).tanh(), 4, layer)
    assert tokens > 1024
    assert read_json(tmp_path / FILE)["tokens"] == tokens

    def again() -> torch.Tensor:
        raise AssertionError("measured a second time")

    assert HeldTokens(tmp_path).tokens(again, 4, layer) == tokens


def test_what_a_pass_keeps_is_counted_without_the_weights_and_the_random_state_stays() -> None:
    layer, batch = torch.nn.Linear(8, 16), torch.ones(4, 8)
    state = torch.get_rng_state()
    kept = graph_bytes(lambda: torch.dropout(layer(batch), 0.5, True).tanh(), layer.parameters())
    mask = 4 * 16 * 4
    assert kept == batch.nbytes + mask + 4 * 16 * 4
    assert torch.equal(torch.get_rng_state(), state)
