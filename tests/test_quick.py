"""The quick way through a decoder: the states of the stock forward, without its padding, in few shapes."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel

from embedforge import runtime
from embedforge.encode import encode
from embedforge.model import quick, quick_batch
from embedforge.model.attention import make_bidirectional
from embedforge.model.decoder import token_states
from embedforge.model.encoder import EmbeddingModel
from embedforge.model.int8 import multiply_bytes, to_int8
from models_for_tests import needs_bytes
from work_for_tests import compiled, copied_bytes, operations

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
LENGTHS = (40, 1, 17, 16, 33, 3, 17)


def decoder_of(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **(TINY | settings))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as drawn, attention and norms hardly do anything
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15))
    return model


def batch_of(lengths: tuple[int, ...] = LENGTHS, side: str = "right") -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    mask = mask if side == "right" else mask.flip(1)
    return torch.randint(1, 97, mask.shape) * mask, mask


def stock(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]


def states_of(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor | None:
    return quick.quick_states(model, ids, mask, lambda *batch: stock(model, *batch))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["mistral", "llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_states_are_those_of_the_stock_forward(kind: str, causal: bool, side: str) -> None:
    model = decoder_of(kind, sliding_window=None)
    if not causal:
        make_bidirectional(model)
    ids, mask = batch_of(side=side)
    ours = states_of(model, ids, mask)
    assert ours is not None
    real = mask.bool()
    torch.testing.assert_close(ours[real], stock(model, ids, mask)[real], atol=2e-5, rtol=1e-4)
    assert not ours[~real].any()


@torch.no_grad()
def test_texts_without_a_token_have_states_of_zero() -> None:
    model = decoder_of("llama")
    ids, mask = batch_of((3, 2))
    states = states_of(model, ids, torch.zeros_like(mask))
    assert states is not None
    assert not states.any()


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_what_overflows_in_one_text_or_in_padding_is_not_seen_by_others(causal: bool) -> None:
    model = decoder_of("llama")
    if not causal:
        make_bidirectional(model)
    ids, mask = batch_of((40, 5, 38))
    ids[ids == 96] = 95
    before = states_of(model, ids, mask)
    assert before is not None
    model.embed_tokens.weight[0] = torch.inf  # the token of padding
    model.embed_tokens.weight[96] = torch.inf
    ids[2, 3] = 96
    states = states_of(model, ids, mask)
    assert states is not None
    assert torch.equal(states[:2], before[:2])
    assert not states[2, 3:38].isfinite().any()


@torch.no_grad()
def test_long_texts_go_by_torchs_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_batch, "LONGEST_BY_PRODUCTS", 16)
    model = decoder_of("llama")
    make_bidirectional(model)
    ids, mask = batch_of()
    ours = states_of(model, ids, mask)
    assert ours is not None
    torch.testing.assert_close(ours[mask.bool()], stock(model, ids, mask)[mask.bool()], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("by_bytes", [False, pytest.param(True, marks=needs_bytes)])
@torch.no_grad()
def test_int8_weights_go_the_quick_way_too(by_bytes: bool) -> None:
    model = decoder_of("llama")
    make_bidirectional(model)
    to_int8(model)
    multiply_bytes(model, by_bytes)
    ids, mask = batch_of()
    ours = states_of(model, ids, mask)
    assert ours is not None
    ours, theirs = ours[mask.bool()], stock(model, ids, mask)[mask.bool()]
    if by_bytes:  # a state in the middle between two bytes goes to either
        assert functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.99999
    else:
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_gates_and_residuals_are_those_of_separate_passes(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(2)
    linear = nn.Linear(64, 48, bias).to(dtype)
    states, other = torch.randn(33, 64).to(dtype), torch.randn(33, 48).to(dtype)
    exact = functional.linear(states.double(), linear.weight.double(), linear.bias.double() if bias else None)
    for operation, expected in (("add", exact + other.double()), ("mul", exact * other.double())):
        before = other.clone()
        made = quick._product(linear, states, operation, other)
        assert made.dtype == dtype
        allowed = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(made.double(), expected, atol=allowed, rtol=allowed)
        assert torch.equal(other, before)


@pytest.mark.skipif(not runtime.fast_bfloat16(torch.device("cpu")), reason="no bfloat16 instructions here")
@pytest.mark.parametrize("int8", [False, True])
@torch.no_grad()
def test_gates_and_residuals_cost_no_pass_in_bfloat16(int8: bool) -> None:
    model, batch = work_of_fixed_size()
    if int8:
        to_int8(model)
    model.bfloat16()
    states_of(model, *batch)  # the proof of this dtype
    calls = copied_bytes(lambda: states_of(model, *batch)).calls
    assert calls["_linear_pointwise"] == 3 * TINY["num_hidden_layers"]


@torch.no_grad()
def test_autocast_and_bfloat16_weights_stay_near_float32() -> None:
    exact = decoder_of("llama")
    make_bidirectional(exact)
    ids, mask = batch_of()
    expected = stock(exact, ids, mask)[mask.bool()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = states_of(exact, ids, mask)
    half = copy.deepcopy(exact).bfloat16()

    def error(found: Tensor | None) -> float:
        assert found is not None
        assert found.dtype == torch.bfloat16
        return float(1 - functional.cosine_similarity(found[mask.bool()].float(), expected, dim=-1).mean())

    theirs = error(stock(half, ids, mask))
    assert theirs < 2e-4
    assert error(cast) < 1.1 * theirs
    assert error(states_of(half, ids, mask)) < 1.1 * theirs


@pytest.mark.parametrize(
    "kind", ["gemma", "granite", "olmo2", "phi3", "cohere"]
)  # other modules, or the same ones that mean something else
@torch.no_grad()
def test_what_is_not_known_or_comes_out_otherwise_goes_the_stock_way(kind: str) -> None:
    more = {"residual_multiplier": 0.3, "embedding_multiplier": 5.0} if kind == "granite" else {}
    assert states_of(decoder_of(kind, **more), *batch_of()) is None


def test_threads_that_begin_together_all_go_the_quick_way() -> None:
    model, start = decoder_of("llama"), threading.Barrier(4, timeout=30)
    batch = batch_of()  # once: torch's generator is one for all threads

    def work(_: int) -> Tensor | None:
        start.wait()
        with torch.no_grad():
            return states_of(model, *batch)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    for states in found:
        assert states is not None, "the proof of one thread is no hook of the others"
        assert torch.equal(states, found[0])


@torch.no_grad()
def test_hooks_windows_training_and_gradients_go_the_stock_way() -> None:
    model = decoder_of("mistral", sliding_window=64)
    assert states_of(model, *batch_of((70, 8))) is None
    assert states_of(model, *batch_of((5, 8))) is not None
    handle = model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert states_of(model, *batch_of((5, 8))) is None
    handle.remove()
    assert states_of(model.train(), *batch_of((5, 8))) is None
    with torch.enable_grad():
        assert states_of(model.eval(), *batch_of((5, 8))) is None


@torch.no_grad()
def test_weights_are_read_anew_each_time() -> None:
    model = decoder_of("llama")
    ids, mask = batch_of()
    before = states_of(model, ids, mask)
    model.layers[1].self_attn.k_proj.weight.data.mul_(-1)
    after = states_of(model, ids, mask)
    assert before is not None
    assert after is not None
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after[mask.bool()], stock(model, ids, mask)[mask.bool()], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_work_is_that_of_the_real_tokens() -> None:
    """FLOPs of a fixed input: at most 1.15 of what its tokens need, where padding alone would double them."""
    model, (ids, mask) = work_of_fixed_size()
    needed = needed_operations(model, mask.sum(dim=1).tolist())
    assert needed <= operations(lambda: states_of(model, ids, mask)) <= 1.15 * needed
    assert operations(lambda: stock(model, ids, mask)) > 1.5 * needed


def needed_operations(model: PreTrainedModel, lengths: list[int]) -> int:
    """FLOPs of the products of so many tokens, and of attention within each text."""
    products = sum(weight.numel() for weight in model.layers.parameters() if weight.dim() == 2)
    width = model.config.num_attention_heads * model.config.head_dim * model.config.num_hidden_layers
    return 2 * products * sum(lengths) + 4 * width * sum(length**2 for length in lengths)


def work_of_fixed_size() -> tuple[PreTrainedModel, tuple[Tensor, Tensor]]:
    """A decoder that is proven, and texts of many lengths."""
    model = decoder_of("llama")
    make_bidirectional(model)
    ids, mask = batch_of((120, *range(40, 8, -1), *[12] * 20))
    states_of(model, ids, mask)  # the proof
    return model, (ids, mask)


@torch.no_grad()
def test_memory_of_one_layer_is_kept_for_the_next_and_given_back_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taken anew from the system for each product, it was 6 % of the time; kept for ever, it has holes."""
    done: list[str] = []
    monkeypatch.setattr(quick, "keep_freed_memory", lambda: done.append("keep"))
    monkeypatch.setattr(quick, "release_freed_memory", lambda: done.append("release"))
    monkeypatch.setattr(quick, "_since_release", [0])
    ids, mask = batch_of()
    monkeypatch.setattr(quick, "TOKENS_TO_RELEASE", 3 * ids.numel())
    model = decoder_of("llama")
    for _ in range(6):
        states_of(model, ids, mask)
    assert done == ["keep", "release", "release"]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 11.5), (torch.bfloat16, 17)])
@torch.no_grad()
def test_copies_are_held(dtype: torch.dtype, most: float) -> None:
    """Bytes that copies write, in states of a token and layer: the stock way has 22, and 62 in bfloat16."""
    model, batch = work_of_fixed_size()
    model.to(dtype)
    states_of(model, *batch)  # the proof of this dtype
    state = TINY["hidden_size"] * dtype.itemsize * TINY["num_hidden_layers"] * int(batch[1].sum())
    copied = copied_bytes(lambda: states_of(model, *batch))
    assert copied.total <= most * state, copied.by_operation
    assert copied_bytes(lambda: stock(model, *batch)).total > 1.8 * copied.total


def test_shapes_are_few_whatever_the_lengths() -> None:
    rows = {quick_batch.rounded_rows(rows) for rows in range(1, 8193)}
    widths = {quick_batch.rounded_width(tokens) for tokens in range(1, 513)}
    assert len(rows) <= 90
    assert len(widths) <= 20
    together = [
        len(group.lengths) for texts in range(1, 200) for group in quick_batch.groups_of([12] * texts, 0)
    ]
    assert set(together) == {1, 2, 4, 8, 16, 32, 64}
    waste = [quick_batch.rounded_rows(rows) / rows - 1 for rows in range(256, 8193)]
    assert max(waste) <= 0.13
    assert sum(waste) / len(waste) <= 0.04


def test_encoding_goes_the_quick_way_one_pass_a_batch(
    tiny_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    whole = quick._states

    def counted(decoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        seen.append((len(ids), int(mask.sum())))
        return whole(decoder, ids, mask)

    with torch.no_grad():
        token_states(tiny_model.decoder, torch.ones(1, 4).long(), torch.ones(1, 4).long())  # the proof
    monkeypatch.setattr(quick, "_states", counted)
    encode(tiny_model, ["one text", "another", "a third one"], bfloat16=False)
    assert [texts for texts, _ in seen] == [3]


def test_encoding_compiles_no_graph_and_its_operations_are_those_of_its_tokens(
    tiny_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From texts to vectors, over several batches."""
    monkeypatch.setattr(runtime, "MOST_SIDE_BY_SIDE", 1)  # what is counted is one thread's
    texts = ["river stone " * (1 + number % 9) for number in range(64)]
    encode(tiny_model, texts[:1], bfloat16=False)  # the proof
    lengths = [len(text.input_ids) for text in tiny_model.renderer.render(texts)]
    needed = needed_operations(tiny_model.decoder, lengths)

    def work() -> None:
        encode(tiny_model, texts, tokens_per_batch=512, bfloat16=False)

    assert needed <= operations(work) <= 1.2 * needed
    assert compiled(work) == (0, 0)
