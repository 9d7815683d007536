"""Latent attention: agreement with the official implementation, and of the folded form with the plain one."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from embedforge.model.latent import LatentAttention, folded_is_cheaper

GOLDEN = Path(__file__).parent / "golden" / "nvembed_tiny"
OFFICIAL_PREFIX = "latent_attention_model."


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / "model.safetensors")
    return {
        key.removeprefix(OFFICIAL_PREFIX): value
        for key, value in tensors.items()
        if key.startswith(OFFICIAL_PREFIX)
    }


def official(weights: dict[str, Tensor], heads: int = 8, head_dim: int = 64) -> LatentAttention:
    pooler = LatentAttention(64, latents=16, heads=heads, head_dim=head_dim)
    pooler.load_state_dict(weights)
    return pooler.eval()


def small(seed: int = 0, **shape: int) -> LatentAttention:
    """A block with uneven norms and strong weights: at the default init attention is near uniform."""
    torch.manual_seed(seed)
    pooler = LatentAttention(
        **{"hidden_size": 6, "latents": 5, "heads": 3, "head_dim": 7, "feed_forward_multiple": 2} | shape
    )
    with torch.no_grad():
        for parameter in pooler.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return pooler.double()


def test_state_dict_has_the_official_names() -> None:
    names = json.loads((GOLDEN / "golden.json").read_text())["param_names"]
    expected = {name.removeprefix(OFFICIAL_PREFIX) for name in names if name.startswith(OFFICIAL_PREFIX)}
    assert set(LatentAttention(8).state_dict()) == expected


def test_official_number_of_parameters() -> None:
    with torch.device("meta"):
        pooler = LatentAttention(4096)
    assert sum(parameter.numel() for parameter in pooler.parameters()) == 740_356_096


@pytest.mark.parametrize("grad", [True, False], ids=["as in training", "precomputed"])
@pytest.mark.parametrize("case", ["plain", "instr"])
def test_golden(golden: dict[str, Tensor], weights: dict[str, Tensor], case: str, grad: bool) -> None:
    pooler, states = official(weights), golden[f"{case}.last_hidden_state"]
    real = golden[f"{case}.attention_mask"].bool()
    with torch.set_grad_enabled(grad):
        tokens = pooler.token_outputs(states)
        embeddings = pooler(states, golden[f"{case}.pool_mask"].long())
    torch.testing.assert_close(tokens[real], golden[f"{case}.latent_tokens"][real], rtol=0, atol=5e-5)
    torch.testing.assert_close(embeddings, golden[f"{case}.embeddings_raw"], rtol=0, atol=2e-5)
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    torch.testing.assert_close(unit, golden[f"{case}.embeddings"], rtol=0, atol=2e-6)


def test_golden_steps_of_the_projected_form(golden: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    pooler = official(weights)
    states = golden["plain.last_hidden_state"][0, : golden["debug.cross_attn_out"].shape[1]]
    attended = pooler.attention.projected(states, pooler.latents)
    torch.testing.assert_close(attended, golden["debug.cross_attn_out"][0], rtol=0, atol=5e-5)
    fed = pooler.cross_attend_blocks[1](attended + states)
    torch.testing.assert_close(fed, golden["debug.ff_out"][0], rtol=0, atol=5e-5)


@pytest.mark.parametrize("grad", [True, False])
def test_golden_with_another_split_into_heads(
    golden: dict[str, Tensor], weights: dict[str, Tensor], grad: bool
) -> None:
    """Same weights, 4 heads of 128 instead of 8 of 64: heads are contiguous slices."""
    pooler = official(weights, heads=4, head_dim=128)
    with torch.set_grad_enabled(grad):
        raw = pooler(golden["instr.last_hidden_state"], golden["instr.pool_mask"].long())
    torch.testing.assert_close(raw, golden["instr_heads4x128.embeddings_raw"], rtol=0, atol=2e-5)


def test_folded_equals_projected_with_its_gradients() -> None:
    pooler = small()
    attention = pooler.attention
    states = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(9, 6, dtype=torch.float64)
    used = [
        states,
        *(p for name, p in pooler.named_parameters() if not name.startswith("cross_attend_blocks.1")),
    ]
    plain = attention.projected(states, pooler.latents)
    folded = attention.folded(states, *attention.fold(pooler.latents))
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)
    pairs = zip(
        torch.autograd.grad((plain * direction).sum(), used),
        torch.autograd.grad((folded * direction).sum(), used),
        strict=True,
    )
    for of_plain, of_folded in pairs:
        assert of_plain.abs().max() > 1e-3
        torch.testing.assert_close(of_folded, of_plain, rtol=0, atol=1e-12)


def test_gradcheck_of_the_folded_form() -> None:
    pooler = small(hidden_size=3, latents=2, heads=2, head_dim=2)
    states = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    projections = pooler.attention.fn

    def run(states: Tensor, latents: Tensor, *_: Tensor) -> Tensor:
        return pooler.attention.folded(states, *pooler.attention.fold(latents))

    weights = [projections.to_q.weight, projections.to_kv.weight, projections.to_out.weight]
    assert torch.autograd.gradcheck(run, (states, pooler.latents, *weights))


def test_bfloat16_error_of_folding_is_not_worse() -> None:
    exact = small(hidden_size=32, latents=24, heads=4, head_dim=32)
    states = torch.randn(500, 32, dtype=torch.float64).bfloat16()
    rounded = copy.deepcopy(exact).bfloat16()
    truth = copy.deepcopy(rounded).double()  # the same rounded weights, computed exactly
    expected = truth.attention.projected(states.double(), truth.latents)

    def error(result: Tensor) -> float:
        return ((result.double() - expected).norm() / expected.norm()).item()

    attention = rounded.attention
    plain = error(attention.projected(states, rounded.latents))
    folded = error(attention.folded(states, *attention.fold(rounded.latents)))
    assert 0 < folded <= 1.1 * plain
    assert folded < 0.02


@pytest.mark.parametrize(("tokens", "expected"), [(511, False), (512, False), (513, True)])
def test_folding_pays_from_as_many_tokens_as_latents_when_heads_are_as_wide_as_the_decoder(
    tokens: int, expected: bool
) -> None:
    assert folded_is_cheaper(tokens, hidden_size=4096, latents=512, head_dim=4096) is expected


def test_folding_always_pays_at_inference_save_for_narrow_heads() -> None:
    assert folded_is_cheaper(1, hidden_size=4096, latents=512, head_dim=4096, precomputed=True)
    assert folded_is_cheaper(1, hidden_size=64, latents=512, head_dim=64, precomputed=True)
    assert not folded_is_cheaper(10**9, hidden_size=4096, latents=512, head_dim=64, precomputed=True)


@pytest.mark.parametrize(("tokens", "head_dim"), [(3, 7), (50, 7), (50, 1)])
@pytest.mark.parametrize("grad", [True, False])
def test_the_cheaper_form_is_taken_and_changes_nothing(tokens: int, head_dim: int, grad: bool) -> None:
    pooler = small(head_dim=head_dim).eval()
    states = torch.randn(tokens, 6, dtype=torch.float64)
    projections: list[int] = []
    pooler.attention.fn.to_q.register_forward_hook(lambda *_: projections.append(1))
    with torch.set_grad_enabled(grad):
        outputs = pooler.token_outputs(states)
    assert (not projections) is folded_is_cheaper(
        tokens, hidden_size=6, latents=5, head_dim=head_dim, precomputed=not grad
    )
    attended = pooler.attention.projected(states, pooler.latents) + states
    torch.testing.assert_close(
        outputs, pooler.cross_attend_blocks[1](attended) + attended, rtol=0, atol=1e-12
    )


def _optimizer_step(pooler: LatentAttention) -> None:
    optimizer = torch.optim.AdamW(pooler.parameters(), lr=0.1)
    pooler(torch.randn(1, 2, 6, dtype=torch.float64), torch.ones(1, 2)).sum().backward()
    optimizer.step()


def _set_data(pooler: LatentAttention) -> None:
    pooler.train()
    pooler.attention.fn.to_out.weight.data.mul_(2)  # leaves no trace in the version counter
    pooler.eval()


def _in_place(pooler: LatentAttention) -> None:
    with torch.no_grad():
        pooler.attention.norm_context.bias.add_(1)


def _replace(pooler: LatentAttention) -> None:
    pooler.latents = torch.nn.Parameter(pooler.latents.detach().roll(1, dims=1))


CHANGES: dict[str, Callable[[LatentAttention], object]] = {
    "optimizer step": _optimizer_step,
    "write in place": _in_place,
    "write through .data while training": _set_data,
    "new parameter": _replace,
    "load_state_dict": lambda pooler: pooler.load_state_dict(small(seed=1).state_dict()),
    "load_state_dict, assigned": lambda pooler: pooler.load_state_dict(
        small(seed=1).state_dict(), assign=True
    ),
    "load_state_dict of a parent": lambda pooler: torch.nn.Sequential(pooler).load_state_dict(
        torch.nn.Sequential(small(seed=1)).state_dict()
    ),
    "rounding to bfloat16 and back": lambda pooler: pooler.bfloat16().double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_precomputed_matrices_are_never_stale(change: Callable[[LatentAttention], object]) -> None:
    pooler = small().eval()
    states, mask = torch.randn(1, 4, 6, dtype=torch.float64), torch.ones(1, 4)
    with torch.no_grad():
        before = pooler(states, mask)
    change(pooler)
    with torch.no_grad():
        after = pooler(states, mask)
    fresh = pooler(states, mask).detach()  # with gradients on: nothing precomputed is used
    assert not torch.allclose(after, before, rtol=0, atol=1e-5)
    torch.testing.assert_close(after, fresh, rtol=0, atol=1e-12)


def test_matrices_are_computed_once_and_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    pooler, states, mask = small().eval(), torch.randn(1, 4, 6, dtype=torch.float64), torch.ones(1, 4)
    names, folds, fold = set(pooler.state_dict()), [], pooler.attention.fold
    monkeypatch.setattr(pooler.attention, "fold", lambda latents: folds.append(1) or fold(latents))
    with torch.inference_mode():
        pooler(states, mask)
        pooler(states, mask)
    with torch.no_grad():
        pooler(states, mask)
    assert len(folds) == 1
    assert set(pooler.state_dict()) == names
    with torch.no_grad():
        pooler.train()(states, mask)  # in training nothing is kept, whatever the gradient mode
    assert pooler._cache is None


def test_copies_and_pickles_agree_and_go_their_own_way() -> None:
    pooler, states, mask = small().eval(), torch.randn(1, 4, 6, dtype=torch.float64), torch.ones(1, 4)
    with torch.no_grad():
        before = pooler(states, mask)
        for other in (copy.deepcopy(pooler), pickle.loads(pickle.dumps(pooler))):
            torch.testing.assert_close(other(states, mask), before, rtol=0, atol=1e-12)
            other.attention.norm_context.bias.add_(1)
            assert not torch.allclose(other(states, mask), before)
        torch.testing.assert_close(pooler(states, mask), before)


def test_parameters_made_in_inference_mode_work() -> None:
    with torch.inference_mode():
        pooler = small().eval()
        vectors = pooler(torch.randn(1, 4, 6, dtype=torch.float64), torch.ones(1, 4))
    assert vectors.isfinite().all()


@pytest.mark.parametrize("grad", [True, False])
def test_autocast(grad: bool) -> None:
    """Under bfloat16 autocast weights stay float32, the fold is exact and the result float32."""
    pooler = small(hidden_size=16, head_dim=16).float().eval()
    states, mask = torch.randn(2, 40, 16), torch.ones(2, 40)
    expected = pooler(states, mask).detach()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = pooler(states.bfloat16(), mask)
    assert vectors.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.999
    with torch.no_grad():  # what was precomputed under autocast serves full precision too
        torch.testing.assert_close(pooler(states, mask), expected, rtol=1e-4, atol=1e-5)


def test_latents_start_from_a_standard_normal() -> None:
    torch.manual_seed(0)
    latents = LatentAttention(64).latents
    assert latents.shape == (512, 64)
    assert latents.mean().abs().item() < 0.02
    assert latents.std().item() == pytest.approx(1, abs=0.02)
