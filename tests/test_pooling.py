"""Poolers: what each kind means, and that only pooled tokens decide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedforge.errors import EmbedforgeError
from embedforge.model.pooling import build_pooler, pooler_class

KINDS = ["last", "mean", "weighted_mean", "cls", "latent", "self_attention"]
SHAPE = {"latents": 5, "heads": 2, "head_dim": 3, "feed_forward_multiple": 2}


def make(kind: str, hidden: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {name: SHAPE[name] for name in pooler_class(kind).settings()}
    return build_pooler(kind, hidden, **shape).double().eval()


STATES = torch.arange(8, dtype=torch.float64).reshape(1, 4, 2)
MASK = torch.tensor([[0, 1, 1, 0]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("last", [4.0, 5.0]),
        ("mean", [3.0, 4.0]),
        ("weighted_mean", [(2 + 2 * 4) / 3, (3 + 2 * 5) / 3]),
        ("cls", [2.0, 3.0]),
    ],
)
def test_values(kind: str, expected: list[float]) -> None:
    assert build_pooler(kind, 2)(STATES, MASK)[0].tolist() == pytest.approx(expected)


def test_holes_in_the_mask_are_left_out() -> None:
    mask = torch.tensor([[1, 0, 0, 1]])
    assert build_pooler("mean", 2)(STATES, mask)[0].tolist() == [3.0, 4.0]
    assert build_pooler("weighted_mean", 2)(STATES, mask)[0].tolist() == [4.0, 5.0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_padding_and_neighbours_do_not_matter(kind: str, data: st.DataObject) -> None:
    """Any number of padding tokens on either side, holding NaN, and any other rows: the same vectors."""
    pooler = make(kind)
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3), label="lengths")
    left = data.draw(st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)), label="left")
    width = max(n + k for n, k in zip(lengths, left, strict=True)) + data.draw(
        st.integers(0, 3), label="right"
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="seed"))
    states = torch.full((len(lengths), width, 8), torch.nan, dtype=torch.float64)
    mask = torch.zeros(len(lengths), width, dtype=torch.int64)
    alone = []
    for row, (length, start) in enumerate(zip(lengths, left, strict=True)):
        tokens = torch.randn(length, 8, generator=generator, dtype=torch.float64)
        states[row, start : start + length], mask[row, start : start + length] = tokens, 1
        alone.append(pooler(tokens[None], torch.ones(1, length, dtype=torch.int64)))
    torch.testing.assert_close(pooler(states, mask), torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_through_padding(kind: str) -> None:
    states = torch.randn(2, 4, 8, dtype=torch.float64)
    states[1, 2:] = torch.nan
    states.requires_grad_()
    make(kind)(states, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])).square().sum().backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert not states.grad[1, 2:].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_result_is_at_least_float32(kind: str, dtype: torch.dtype) -> None:
    vectors = make(kind).to(dtype)(torch.randn(2, 3, 8, dtype=dtype), torch.ones(2, 3, dtype=torch.int64))
    assert vectors.shape == (2, 8)
    assert vectors.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_sums_of_bfloat16_states_are_taken_in_float32() -> None:
    states = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    states[0, 0] = 256.0  # in bfloat16, 256 + 1 is 256
    vector = build_pooler("mean", 2)(states, torch.ones(1, 1000))
    assert vector[0, 0].item() == pytest.approx((256 + 999) / 1000, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", [[[1, 1], [0, 0], [0, 1]], [[0, 0]]])
def test_a_text_without_pooled_tokens_is_nan_and_harms_no_other(kind: str, masks: list[list[int]]) -> None:
    mask = torch.tensor(masks)
    vectors = make(kind)(torch.randn(*mask.shape, 8, dtype=torch.float64), mask)
    empty = ~mask.any(dim=1)
    assert vectors[empty].isnan().all()
    assert vectors[~empty].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    pooler = make(kind, hidden=4)
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    states = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda states: pooler(states, mask), states)


def test_self_attention_attends_to_pooled_tokens_of_its_own_text_only() -> None:
    pooler = make("self_attention")
    states = torch.randn(2, 4, 8, dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    before = pooler(states, mask)
    changed = states.clone()
    changed[0, 0] += 1  # not pooled
    changed[1] += torch.randn(4, 8, dtype=torch.float64)  # another text
    torch.testing.assert_close(pooler(changed, mask)[0], before[0])
    changed[0, 1] += torch.randn(8, dtype=torch.float64)
    assert not torch.allclose(pooler(changed, mask)[0], before[0], atol=1e-3)


def test_self_attention_is_more_than_a_mean_over_tokens() -> None:
    """A text's vector is not the mean of what its tokens would give alone: tokens do interact."""
    pooler, states = make("self_attention"), 3 * torch.randn(1, 3, 8, dtype=torch.float64)
    together = pooler(states, torch.ones(1, 3))
    alone = pooler(states.transpose(0, 1), torch.ones(3, 1)).mean(dim=0)
    assert not torch.allclose(together[0], alone, atol=1e-4)


def test_heads_are_as_wide_as_the_decoder_unless_told() -> None:
    assert build_pooler("self_attention", 16, heads=2).to_out.weight.shape == (16, 32)
    assert build_pooler("latent", 16, heads=2).attention.fn.to_out.weight.shape == (16, 32)


def test_unknown_kind() -> None:
    with pytest.raises(EmbedforgeError, match="Did you mean 'latent'"):
        build_pooler("latents", 8)


def test_a_setting_that_the_kind_does_not_have() -> None:
    with pytest.raises(EmbedforgeError, match="'mean' has no setting 'heads', only none"):
        build_pooler("mean", 8, heads=2)
