"""Masked next-token prediction: the statistics of masking, and losses of the official LLM2Vec code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from embedforge.model.attention import make_bidirectional, make_causal
from embedforge.model.decoder import find_folder, read_decoder, token_states
from embedforge.model.language_head import load_head
from embedforge.objectives.mntp import mask_tokens, mntp_loss, predictions_of

GOLDEN = Path(__file__).parent / "golden" / "llm2vec_tiny"
MASK, VOCABULARY = 9, 50


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mask(ids: Tensor, maskable: Tensor, *, seed: int = 0, **settings) -> tuple[Tensor, Tensor]:
    given = {"mask_id": MASK, "vocabulary": VOCABULARY, "probability": 0.2, "style": "all_mask"} | settings
    return mask_tokens(ids, maskable, generator=generator(seed), **given)


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    """200 rows of 400 tokens from 10 to 49, of which ids under 15 play the special ones."""
    ids = torch.randint(10, VOCABULARY, (200, 400), generator=generator(1))
    return ids, ids >= 15


def within(count: int, trials: int, probability: float) -> bool:
    """Whether a binomial count lies within five standard deviations."""
    return abs(count - trials * probability) <= 5 * np.sqrt(trials * probability * (1 - probability))


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.8])
@pytest.mark.parametrize("style", ["all_mask", "bert"])
def test_each_maskable_token_is_chosen_with_the_probability(rows, probability: float, style: str) -> None:
    ids, maskable = rows
    _, labels = mask(ids, maskable, probability=probability, style=style)
    chosen = labels != -100
    assert not chosen[~maskable].any()
    assert not chosen[:, 0].any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert within(int(chosen.sum()), int(maskable[:, 1:].sum()), probability)
    for half in (chosen[:, 1:201], chosen[:, 201:]):  # the same at the start and at the end of a row
        assert abs(half.float().mean() / chosen[:, 1:].float().mean() - 1) < 0.1


def test_all_mask_hides_every_chosen_token_and_no_other(rows) -> None:
    ids, maskable = rows
    before = ids.clone(), maskable.clone()
    seen, labels = mask(ids, maskable, probability=0.8)
    chosen = labels != -100
    assert (seen[chosen] == MASK).all()
    assert torch.equal(seen[~chosen], ids[~chosen])
    assert torch.equal(ids, before[0])
    assert torch.equal(maskable, before[1])
    assert seen.dtype == labels.dtype == torch.int64


def test_bert_hides_80_replaces_10_and_leaves_10_percent(rows) -> None:
    ids, maskable = rows
    seen, labels = mask(ids, maskable, probability=0.5, style="bert")
    chosen = labels != -100
    count = int(chosen.sum())
    assert torch.equal(seen[~chosen], ids[~chosen])
    assert within(int((seen[chosen] == MASK).sum()), count, 0.8 + 0.1 / VOCABULARY)
    assert within(int((seen[chosen] == ids[chosen]).sum()), count, 0.1 + 0.1 / VOCABULARY)
    replaced = seen[chosen & (seen != MASK) & (seen != ids)]
    assert replaced.min() == 0
    assert replaced.max() == VOCABULARY - 1
    assert np.bincount(replaced.numpy(), minlength=VOCABULARY).std() < 3 * np.sqrt(len(replaced) / VOCABULARY)


def test_masking_is_decided_by_the_generator(rows) -> None:
    for style in ("all_mask", "bert"):
        one, same, other = (mask(*rows, style=style, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(one[0], same[0])
        assert torch.equal(one[1], same[1])
        assert not torch.equal(one[1], other[1])
    state = torch.random.get_rng_state()
    mask(*rows)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_row_in_which_chance_chose_nothing_gets_one_token_each_equally_often() -> None:
    ids = torch.full((8000, 6), 20)
    maskable = torch.tensor([[1, 1, 0, 1, 1, 0]]).expand(8000, 6)
    _, labels = mask(ids, maskable, probability=1e-6)
    chosen = labels != -100
    assert (chosen.sum(1) == 1).all()
    assert chosen[:, [0, 2, 5]].sum() == 0
    assert all(within(int(count), 8000, 1 / 3) for count in chosen[:, [1, 3, 4]].sum(0))


@pytest.mark.parametrize("maskable", [[0, 0, 0], [1, 0, 0]])
def test_a_row_with_nothing_to_predict_keeps_no_label(maskable: list[int]) -> None:
    ids = torch.tensor([[20, 21, 22]])
    seen, labels = mask(ids, torch.tensor([maskable]), probability=1.0)
    assert torch.equal(seen, ids)
    assert (labels == -100).all()
    places, targets = predictions_of(labels)
    assert len(places) == len(targets) == 0
    assert mntp_loss(torch.zeros(0, VOCABULARY), targets).sum() == 0


def test_rows_of_one_token_have_nothing_to_predict() -> None:
    seen, labels = mask(torch.tensor([[20], [21]]), torch.ones(2, 1))
    assert seen.tolist() == [[20], [21]]
    assert len(predictions_of(labels)[0]) == 0


def test_a_token_is_predicted_by_the_state_before_it() -> None:
    labels = torch.tensor([[7, -100, 8, -100], [-100, 9, -100, 10]])
    places, targets = predictions_of(labels)  # the 7 stands first, and nothing before it
    assert places.tolist() == [1, 4, 6]
    assert targets.tolist() == [8, 9, 10]


def test_the_loss_is_the_cross_entropy_in_full_precision_also_under_autocast() -> None:
    logits = torch.randn(5, VOCABULARY, generator=generator(), dtype=torch.float64) * 30
    targets = torch.arange(5)
    expected = -torch.log_softmax(logits, -1)[targets, targets]
    assert torch.allclose(mntp_loss(logits, targets), expected, rtol=0, atol=1e-12)
    halves = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mntp_loss(halves, targets)
    assert found.dtype == torch.float32
    exact = functional.cross_entropy(halves.double(), targets, reduction="none")
    assert torch.allclose(found.double(), exact, rtol=0, atol=1e-5)


class Official:
    """One stored case of the official code, and what this code makes of its inputs."""

    def __init__(self, family: str, style: str) -> None:
        folder = GOLDEN / family
        stored = load_file(folder / "golden.safetensors")
        prefix = f"mntp.{style}."
        self.stored = {key.removeprefix(prefix): value for key, value in stored.items() if prefix in key}
        self.decoder = read_decoder(find_folder(str(folder)))
        make_bidirectional(self.decoder)
        self.head = load_head(str(folder), self.decoder)

    def logits(self, shift: int = 0) -> tuple[Tensor, Tensor]:
        places, targets = predictions_of(self.stored["labels"].long())
        ids, attention = (self.stored[name].long() for name in ("input_ids", "attention_mask"))
        return self.head(token_states(self.decoder, ids, attention).flatten(0, 1)[places + shift]), targets


@pytest.fixture(scope="module", params=["llama", "mistral"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("style", ["all_mask", "default"])
def test_loss_logits_and_gradient_are_those_of_the_official_code(family: str, style: str) -> None:
    case = Official(family, style)
    logits, targets = case.logits()
    loss = mntp_loss(logits, targets).mean()
    weight = case.decoder.layers[0].self_attn.q_proj.weight
    loss.backward()
    assert abs(float(loss.detach()) - float(case.stored["loss"])) < 5e-6
    assert (logits - case.stored["logits_at_targets"]).abs().max() < 3e-5
    assert (weight.grad - case.stored["grad.layers.0.self_attn.q_proj.weight"]).abs().max() < 1e-6


def test_the_golden_tells_the_shift_and_the_attention(family: str) -> None:
    case = Official(family, "all_mask")
    expected, stored = case.stored["logits_at_targets"], float(case.stored["loss"])
    unshifted, targets = case.logits(shift=1)
    loss = float(mntp_loss(unshifted, targets).mean().detach())
    official = json.loads((GOLDEN / "losses.json").read_text())["MNTP"][family]["all_mask"]
    assert abs(loss - official["loss_if_not_shifted"]) < 5e-6
    assert abs(loss - stored) > 0.05
    assert (unshifted - expected).abs().max() > 0.1
    make_causal(case.decoder)
    causal, _ = case.logits()
    assert (causal - expected).abs().max() > 0.1
    assert abs(float(mntp_loss(causal, targets).mean().detach()) - stored) > 0.002


def test_official_inputs_hide_what_this_masking_would(family: str) -> None:
    """The official masks: never a special or padding token, "_" being unknown to this vocabulary."""
    stored = Official(family, "all_mask").stored
    chosen = stored["labels"] != -100
    assert (stored["attention_mask"][chosen] == 1).all()
    assert len(stored["input_ids"][chosen].unique()) == 1
    assert not torch.isin(stored["labels"][chosen], torch.tensor([0, 1, 2])).any()
