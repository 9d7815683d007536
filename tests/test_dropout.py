"""Dropout that makes SimCSE's two views: set, restored, named, proven; and why there has to be some."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from embedforge.errors import EmbedforgeError
from embedforge.model.adapter import add_lora
from embedforge.model.attention import make_bidirectional
from embedforge.model.dropout import (
    attention_dropout,
    dropout_sources,
    passes_differ,
    require_attention_dropout,
)
from embedforge.model.encoder import EmbeddingModel
from embedforge.objectives.contrastive import candidate_mask, info_nce

_spec = importlib.util.spec_from_file_location(
    "probe_families", Path(__file__).parent.parent / "scripts" / "probe_families.py"
)
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)

GOLDEN = Path(__file__).parent / "golden" / "llm2vec_tiny"
IDS = (torch.arange(24) % 60 + 3).view(2, 12)
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}

BOTH = ["cohere", "gemma", "gemma3_text", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2"]
BOTH += ["phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2", "falcon (alibi)"]
EAGER = ["bloom", "codegen", "gemma2", "gptj", "gpt_oss"]
WITH_OTHER_DROPOUT = ["biogpt", "gpt2", "gpt_bigcode", "opt", "xglm"]
NONE_OFF = {
    "biogpt": {"hidden_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "gpt_bigcode": {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "opt": {"dropout": 0.0},
    "xglm": {"dropout": 0.0},
}
CASES = [
    *((name, implementation) for name in BOTH for implementation in ("sdpa", "eager")),
    *((name, "eager") for name in EAGER),
    *((name, "eager" if name == "xglm" else "sdpa") for name in WITH_OTHER_DROPOUT),
]


def build(name: str, implementation: str = "sdpa", **values) -> PreTrainedModel:
    if name.split(" ")[0] not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"this transformers has no {name}")
    model = families.build(name, implementation, **NONE_OFF.get(name, {}) | values)
    make_bidirectional(model)
    return model


def states(model: nn.Module):
    return lambda batch: model(**batch, use_cache=False).last_hidden_state


def settings(model: nn.Module) -> list[tuple[str, str, object]]:
    """Every attribute that has to do with dropout, in modules and in configs."""
    found = []
    for path, module in model.named_modules():
        found += [(path, name, value) for name, value in vars(module).items() if "drop" in name]
        found += [(path, "p", module.p)] if isinstance(module, nn.Dropout) else []
    return [*found, ("", "config", model.config.to_dict())]


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_it_makes_train_passes_differ_and_is_restored(name: str, implementation: str) -> None:
    model = build(name, implementation)
    before = settings(model)
    require_attention_dropout(model)
    assert settings(model) == before
    with attention_dropout(model, 0.3):
        assert dropout_sources(model) == ["attention 0.3"]
        assert not passes_differ(states(model.eval()), BATCH)
        assert passes_differ(states(model.train()), BATCH)
        with attention_dropout(model, 0.0):
            assert dropout_sources(model) == []
            assert not passes_differ(states(model), BATCH)
        assert dropout_sources(model) == ["attention 0.3"]
    assert settings(model) == before


def test_attention_probabilities_are_what_is_dropped() -> None:
    """With values all equal, every weight kept counts 1 / (1 - p): the sum of dropout's own definition."""
    model = build("llama", "eager").train()
    attention = model.layers[0].self_attn
    attention.v_proj = nn.Linear(32, 16, bias=True)
    nn.init.zeros_(attention.v_proj.weight)
    nn.init.ones_(attention.v_proj.bias)
    attention.o_proj = nn.Identity()
    seen = []
    attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    with attention_dropout(model, 0.5), torch.no_grad():
        model(input_ids=IDS.repeat(400, 1), use_cache=False)
    heads = seen[0].unflatten(-1, (4, 8))
    assert abs(heads.mean() - 1) < 0.01  # dropout keeps the expected value
    assert (heads.amax(-1) - heads.amin(-1)).max() == 0  # one weight for all of a head's values
    assert heads.min() < 0.5
    assert heads.max() <= 2 + 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_is_restored_after_an_error_and_sits_under_lora(name: str) -> None:
    decoder = add_lora(build(name, attn_pdrop=0.1), rank=2, dropout=0.05)
    kept = ["attention 0.1"] if name == "gpt2" else []
    assert dropout_sources(decoder) == ["LoRA 0.05", *kept]
    with attention_dropout(decoder, 0.25):
        require_attention_dropout(decoder)
        assert dropout_sources(decoder) == ["LoRA 0.05", "attention 0.25"]
    with pytest.raises(IndexError), attention_dropout(decoder, 0.25):
        decoder(input_ids=IDS + 1000)
    assert dropout_sources(decoder) == ["LoRA 0.05", *kept]


def test_lora_dropout_alone_makes_passes_differ_once_it_is_trained() -> None:
    decoder = add_lora(build("llama"), rank=2, dropout=0.3).train()
    assert not passes_differ(states(decoder), BATCH)  # B is still zero: there is nothing to drop
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert passes_differ(states(decoder), BATCH)
    assert not passes_differ(states(decoder.eval()), BATCH)


def test_sources_are_told_apart() -> None:
    gpt2 = families.build("gpt2", resid_pdrop=0.2, embd_pdrop=0.1, attn_pdrop=0.4)
    assert dropout_sources(gpt2) == ["attention 0.4", "hidden 0.1", "hidden 0.2"]
    opt = families.build("opt", dropout=0.1, attention_dropout=0.2, layerdrop=0.3)
    assert dropout_sources(opt) == ["attention 0.2", "hidden 0.1", "layer 0.3"]
    assert dropout_sources(families.build("llama")) == []


def test_random_state_and_modes_are_left_alone() -> None:
    model = build("llama").train()
    model.layers[1].eval()
    before = torch.random.get_rng_state()
    require_attention_dropout(model)
    passes_differ(states(model), BATCH)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert model.layers[0].training
    assert not model.layers[1].training


def test_noise_of_kernels_is_no_difference() -> None:
    noise = iter(torch.randn(6, 4, dtype=torch.float64) * 1e-7)

    def embed(batch: dict[str, Tensor]) -> Tensor:
        return torch.ones(4, dtype=torch.float64) + next(noise)

    assert not passes_differ(embed, BATCH)
    dropout = nn.Dropout(0.5).train()
    assert passes_differ(lambda batch: dropout(torch.ones(100)) + next(noise)[0], BATCH)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_repeats_the_same_dropout(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(name).train()
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        with attention_dropout(model, 0.3):
            states(model)(BATCH).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    assert gradients[0]
    for plain, repeated in zip(*gradients, strict=True):
        assert torch.allclose(plain, repeated, rtol=1e-5, atol=1e-6 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_a_family_without_attention_dropout_is_refused(name: str) -> None:
    model = families.build(name, None)
    with pytest.raises(EmbedforgeError, match=rf"this {name} has no attention dropout.*LoRA adapter"):
        attention_dropout(model, 0.1).__enter__()
    with attention_dropout(model, 0.0):
        pass


@pytest.mark.parametrize("name", ["diffllama", "falcon"])
def test_a_family_that_does_not_look_at_the_setting_is_refused(name: str) -> None:
    with pytest.raises(EmbedforgeError, match=rf"this {name} does not apply .*LoRA adapter"):
        require_attention_dropout(build(name))


@pytest.mark.parametrize("probability", [-0.1, 1, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(probability: float) -> None:
    with pytest.raises(EmbedforgeError, match="from 0 to below 1"):
        attention_dropout(build("llama"), probability).__enter__()


def views(model: EmbeddingModel, texts: list[str]) -> tuple[Tensor, Tensor]:
    batch = model.renderer.batch(texts)
    return tuple(functional.normalize(model(**batch).double(), dim=-1) for _ in range(2))


def gradient(model: EmbeddingModel, value: Tensor) -> float:
    """Norm of the gradient with respect to all weights."""
    model.zero_grad()
    value.backward()
    parts = [weight.grad.double().norm() for weight in model.parameters() if weight.grad is not None]
    return float(torch.stack(parts).norm())


TEXTS = ["how deep is the river?", "bread and music", "a judo throw", "the bank was closed on monday"]


def test_equal_views_have_nothing_to_learn_alignment_from(tiny_model: EmbeddingModel) -> None:
    """For z' = z, cos(z, z') is 1 whatever the weights are: its gradient is zero, in every direction.

    What is left of the loss is log sum exp over other texts, which two views are not needed for: it pushes
    texts apart, with nothing that would tell which of them belong together.
    """
    everyone = torch.ones(4, 4, dtype=torch.bool)

    def alignment() -> Tensor:
        first, second = views(tiny_model, TEXTS)
        return (first * second).sum(-1).mean()

    tiny_model.eval()
    first, second = views(tiny_model, TEXTS)
    assert torch.equal(first, second)
    assert abs(float(alignment().detach()) - 1) < 1e-12
    whole = info_nce(first, second, torch.arange(4), everyone, 1.0).mean()
    pushing_only = (first @ second.T).logsumexp(-1).mean() - 1
    assert abs(float((whole - pushing_only).detach())) < 1e-12
    pushing, still = gradient(tiny_model, whole), gradient(tiny_model, alignment())
    assert pushing > 0.01
    assert still < 1e-6 * pushing

    tiny_model.train()
    with attention_dropout(tiny_model.decoder, 0.3):
        torch.manual_seed(0)
        assert float(alignment().detach()) < 0.999
        assert gradient(tiny_model, alignment()) > 0.1 * pushing


@pytest.mark.parametrize("case", ["simcse.scale20", "simcse.scale50"])
def test_the_loss_is_that_of_the_official_code(case: str) -> None:
    stored = load_file(GOLDEN / "losses.safetensors")
    official = json.loads((GOLDEN / "losses.json").read_text())["HardNegativeNLLLoss"][case]
    one, two = (stored[name].clone().requires_grad_() for name in official["inputs"])
    unit = [functional.normalize(view, dim=-1) for view in (one, two)]
    candidates = candidate_mask(list(range(8)), [True] * 8, [True] * 8, "positives")
    loss = info_nce(*unit, torch.arange(8), candidates, 1 / official["scale"]).mean()
    loss.backward()
    assert abs(float(loss.detach()) - official["loss"]) < 1e-12
    assert torch.allclose(one.grad, stored[f"{case}.grad_q"], rtol=0, atol=1e-12)
    assert torch.allclose(two.grad, stored[f"{case}.grad_pos"], rtol=0, atol=1e-12)
