"""Attention over short texts gives the numbers of sdpa: states, gradients, padding, causal or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedforge.model.attention import make_bidirectional, probe
from embedforge.model.decoder import read_decoder, token_states
from embedforge.model.packing import PACKED, joined, micro_batches_of, packs, unpacked
from embedforge.model.short_attention import NAME, use_short_attention
from work_for_tests import copied_bytes


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_packed_texts_have_the_states_and_gradients_of_padded_ones(decoder, bidirectional, dtype):
    """float64 goes by torch's own attention, text by text."""
    decoder.to(dtype)
    if bidirectional:
        make_bidirectional(decoder)
    assert use_short_attention(decoder)
    parts = [batch("right", lengths) for lengths in ((9, 9), (5, 4, 5), (1,))]
    expected, gradients = [], {}
    decoder.zero_grad()
    for part in parts:
        states = token_states(decoder, part["input_ids"], part["attention_mask"])
        states = states[part["attention_mask"].bool()]
        expected.append(states.detach())
        weigh(states).backward()
    gradients = {name: weight.grad.clone() for name, weight in decoder.named_parameters()}
    decoder.zero_grad()
    whole = joined(parts)
    states = token_states(decoder, whole["input_ids"], whole["attention_mask"], whole[PACKED].tolist())
    states = states[whole["attention_mask"].bool()]
    weigh(states).backward()
    torch.testing.assert_close(states.detach(), torch.cat(expected), rtol=1e-5, atol=1e-5)
    for name, weight in decoder.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-5)


def weigh(states):
    return (states * torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype)).sum()


def test_what_was_packed_is_laid_out_text_by_text():
    parts = [batch("right", lengths) for lengths in ((4, 4), (2,))]
    whole = joined(parts)
    texts = unpacked(whole["input_ids"], whole[PACKED].tolist())
    assert torch.equal(texts[:2], parts[0]["input_ids"])
    assert texts[2].tolist() == [*parts[1]["input_ids"][0].tolist(), 0, 0]


def test_packed_texts_are_pooled_without_padding_them_to_the_longest(tiny_model):
    model = tiny_model
    assert use_short_attention(model.decoder)
    short, long = batch("right", (4,) * 60), batch("right", (200,))
    apart = [joined([part]) for part in (short, long)]
    together = joined([short, long])
    arguments = [
        (one["input_ids"], one["attention_mask"], one["attention_mask"], one[PACKED])
        for one in (*apart, together)
    ]
    with torch.no_grad():
        vectors = [model.pooled(*one) for one in arguments]
        copied = [copied_bytes(lambda one=one: model.pooled(*one)).total for one in arguments]
    torch.testing.assert_close(vectors[2], torch.cat(vectors[:2]), rtol=1e-4, atol=1e-5)
    assert copied[2] < 1.1 * (copied[0] + copied[1])


def test_it_is_measured_whether_a_model_packs(tiny_model):
    assert not packs(tiny_model)  # sdpa has no rectangles
    use_short_attention(tiny_model.decoder)
    assert packs(tiny_model)
    tiny_model.decoder.layers[0].mlp = MixesNeighbours(tiny_model.decoder.layers[0].mlp)
    assert not packs(tiny_model)


def test_a_window_that_is_shorter_than_the_texts_is_not_packed(tiny_model):
    use_short_attention(tiny_model.decoder)
    tiny_model.decoder.config.sliding_window = tiny_model.contract.max_tokens
    assert packs(tiny_model)
    tiny_model.decoder.config.sliding_window -= 1
    assert not packs(tiny_model)


class MixesNeighbours(torch.nn.Module):
    """A layer that sees the token before, as convolutions do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return self.inner(states + states.roll(1, dims=1))


@pytest.mark.parametrize("longest", [96, 512])
def test_three_in_a_hundred_tokens_at_most_are_padding(longest):
    chance = np.random.default_rng(0)
    lengths = chance.lognormal(np.log(110), 0.7, 1152).clip(8, longest).astype(int).tolist()
    lengths += chance.lognormal(np.log(18), 0.4, 128).clip(5, 60).astype(int).tolist()
    for count in (144, len(lengths)):
        some = lengths[-count:]
        batches = micro_batches_of(some, 16_384)
        rectangles = [texts for batch in batches for texts in batch]
        assert sorted(text for texts in rectangles for text in texts) == list(range(count))
        computed = sum(len(texts) * max(some[text] for text in texts) for texts in rectangles)
        assert computed - sum(some) <= 0.03 * computed
        assert len(batches) <= computed // 16_384 + 2
