"""Attention over short texts gives the numbers of sdpa: states, gradients, padding, causal or not."""

from __future__ import annotations

import pytest
import torch

from embedforge.model.attention import make_bidirectional, probe
from embedforge.model.decoder import read_decoder, token_states
from embedforge.model.short_attention import NAME, use_short_attention


@pytest.fixture
def decoder(tiny_base):
    return read_decoder(tiny_base).train()


def batch(side: str, lengths: tuple[int, ...] = (9, 5, 7)) -> dict[str, torch.Tensor]:
    width = max(lengths)
    ids = torch.arange(len(lengths) * width).view(len(lengths), width) % 50 + 3
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, slice(length) if side == "right" else slice(width - length, width)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def states_and_gradients(decoder, tokens):
    decoder.zero_grad()
    states = token_states(decoder, **tokens)[tokens["attention_mask"].bool()]
    (states * torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype)).sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("lengths", [(9, 5, 7), (6, 6)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_states_and_gradients_are_those_of_sdpa(decoder, side, lengths, bidirectional):
    if bidirectional:
        make_bidirectional(decoder)
    tokens = batch(side, lengths)
    expected, gradients = states_and_gradients(decoder, tokens)
    assert use_short_attention(decoder)
    assert decoder.config._attn_implementation == NAME
    found, own = states_and_gradients(decoder, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert own.keys() == gradients.keys()
    for name in own:
        torch.testing.assert_close(own[name], gradients[name], rtol=1e-4, atol=1e-5)


def test_what_was_chosen_by_name_stays(decoder):
    decoder.set_attn_implementation("eager")
    assert not use_short_attention(decoder)
    assert decoder.config._attn_implementation == "eager"


def test_every_layer_sees_both_ways(decoder):
    make_bidirectional(decoder)
    use_short_attention(decoder)
    assert not probe(decoder).causal_layers


def test_a_saved_decoder_does_not_ask_for_it(decoder, tmp_path):
    use_short_attention(decoder)
    decoder.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
