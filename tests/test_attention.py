"""The attention switch on real (tiny, random) models of many families, and the probe that checks it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from embedforge.errors import EmbedforgeError
from embedforge.model.attention import (
    ensure_attention,
    make_bidirectional,
    make_causal,
    needs_module_flags,
    position_ids,
    probe,
    require_transformers,
    takes_position_ids,
)

_spec = importlib.util.spec_from_file_location(
    "probe_families", Path(__file__).parent.parent / "scripts" / "probe_families.py"
)
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)


def build(name, *args, **values):
    """Build a family's tiny decoder; skip where this transformers does not have the family yet."""
    if name.split(" ")[0] not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return families.build(name, *args, **values)


BOTH = [
    "apertus",
    "arcee",
    "biogpt",
    "cohere",
    "cohere2",
    "deepseek_v3",
    "exaone4",
    "falcon",
    "gemma",
    "gemma3_text",
    "gemma3n_text",
    "gemma4_text",
    "glm4",
    "granite",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
]
EAGER_ONLY = ["bloom", "gemma2", "gpt_oss", "gptj"]
CASES = [(name, kind) for name in BOTH for kind in ("sdpa", "eager")] + [
    (name, "eager") for name in EAGER_ONLY
]

TEXT = torch.arange(5, 17)[None]
ONES = torch.ones_like(TEXT)


@torch.no_grad()
def outputs(model, ids, mask=None, **more):
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **more)[0]


def moves_first(model, mask=None, at=-1):
    """Whether another token at `at` changes the first token's output: the probe's claim, by other means."""
    other = TEXT.clone()
    other[0, at] = 40
    return (outputs(model, TEXT, mask) - outputs(model, other, mask))[0, 0].abs().max().item() > 1e-5


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_every_family_is_causal_before_and_bidirectional_after(name, implementation):
    model = build(name, implementation)
    before = ensure_attention(model, "causal")
    assert before.is_causal
    assert before.causal_share == 1
    assert not moves_first(model)

    after = ensure_attention(model, "bidirectional")
    assert not after.causal_layers
    assert {see for layer in after.layers for see in layer.sight} == {"all"}
    assert after.implementation == implementation
    assert moves_first(model)
    assert moves_first(model, ONES)
    for side in ("right", "left"):
        assert families.padding_difference(model, side) < 1e-5


def test_layers_that_share_keys_of_an_earlier_layer_are_seen_as_bidirectional():
    model = build("gemma3n_text")
    assert model.layers[3].self_attn.is_kv_shared_layer
    assert ensure_attention(model, "bidirectional").layers[3].sight == ("all",) * 4


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["mistral (window)", "phi3 (window)", "qwen2 (window)", "gemma3_text", "cohere2"]
)
def test_window_off_reaches_every_token_and_keep_does_not(name, implementation, tmp_path):
    kept = build(name, implementation)
    make_bidirectional(kept, sliding_window="keep")
    report = probe(kept)
    assert not report.causal_layers
    assert any(layer.sight == ("window",) * 4 for layer in report.layers)
    assert ensure_attention(kept, "bidirectional", sliding_window="keep") == report

    lifted = build(name, implementation)
    report = ensure_attention(lifted, "bidirectional")
    assert all(layer.sight == ("all",) * 4 for layer in report.layers)
    lifted.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation)
    assert probe(again) == report
    assert torch.equal(outputs(again, TEXT), outputs(lifted, TEXT))


def test_a_window_of_w_reaches_w_ahead():
    model = build("mistral (window)", num_hidden_layers=1)
    make_bidirectional(model, sliding_window="keep")
    assert [moves_first(model, at=at) for at in (1, 2, 3, 4, 5)] == [True, True, True, False, False]


@pytest.mark.parametrize("name", ["cohere2", "exaone4", "gemma3_text", "gemma4_text", "olmo3"])
def test_lifting_a_window_wider_than_the_text_changes_nothing(name):
    """These families choose a layer's rotary embedding by its window: lifting it must leave that alone."""
    kept, lifted = build(name, sliding_window=30), build(name, sliding_window=30)
    make_bidirectional(kept, sliding_window="keep")
    make_bidirectional(lifted)
    assert torch.equal(outputs(kept, TEXT), outputs(lifted, TEXT))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lfm2", "conv"),
        ("qwen3_next", "linear_attention"),
        ("qwen3_5_text", "linear_attention"),
        ("jamba", "mamba|linear_attention"),
    ],
)
def test_hybrids_are_refused_with_their_share_unless_allowed(name, kind):
    with pytest.raises(EmbedforgeError, match=rf"1 of 2 layers \(50%\) stay causal.*({kind}) \(layers 0\)"):
        ensure_attention(build(name), "bidirectional")
    report = ensure_attention(build(name), "bidirectional", allow_causal_layers=True)
    assert report.causal_share == 0.5
    assert [layer.index for layer in report.causal_layers] == [0]


@pytest.mark.parametrize("name", ["mamba", "gpt_neo"])
def test_a_model_without_a_single_bidirectional_layer_is_refused_even_if_allowed(name):
    with pytest.raises(EmbedforgeError, match=r"2 of 2 layers \(100%\)"):
        ensure_attention(build(name, "eager"), "bidirectional", allow_causal_layers=True)


def test_attention_that_depends_on_padding_is_refused_even_if_allowed():
    with pytest.raises(EmbedforgeError, match="depending on the padding"):
        ensure_attention(build("llama4_text"), "bidirectional", allow_causal_layers=True)


def test_padding_that_leaks_is_refused_on_that_side_only():
    """A recurrent state has seen what stands before the text, padding included."""
    assert ensure_attention(build("rwkv", "eager"), "causal").leaks("left padded")
    with pytest.raises(EmbedforgeError, match="padded on the left change real tokens"):
        ensure_attention(build("rwkv", "eager"), "causal", padding_side="left")


def test_a_family_whose_code_fails_is_refused_with_what_it_raised():
    with pytest.raises(EmbedforgeError, match=r"mpt fails.*no mask: AttributeError"):
        ensure_attention(build("mpt", "eager"), "bidirectional")


def test_module_flags_alone_are_caught():
    model = build("mistral", "sdpa")
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    report = probe(model)
    assert moves_first(model)  # looks right ...
    assert report.layers[0].sight == ("all", "all", "none", "none")  # ... until a batch is padded
    assert report.causal_layers
    assert not report.layers[0].is_consistent
    with pytest.raises(EmbedforgeError, match="some layers see later tokens"):
        ensure_attention(model, "causal")


def test_the_config_alone_is_caught_where_modules_decide():
    model = build("stablelm", "sdpa")
    model.config.is_causal = False
    assert probe(model).layers[0].sight == ("none", "none", "all", "all")


@pytest.mark.parametrize(("name", "needed"), [("mistral", False), ("stablelm", True), ("nemotron", True)])
def test_the_config_survives_a_reload_and_the_saver_knows_where_it_is_not_enough(name, needed, tmp_path):
    if name == "nemotron" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip(
            "transformers 5.2 leaves nemotron causal under sdpa whatever the flags: the probe refuses it"
        )
    model = build(name)
    make_bidirectional(model)
    assert needs_module_flags(model) is needed
    assert not probe(model).causal_layers  # asking changed nothing
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert bool(probe(again).causal_layers) is needed
    assert not ensure_attention(again, "bidirectional").causal_layers


def test_make_causal_undoes_the_switch():
    model = build("mistral")
    reference = outputs(model, TEXT)
    make_bidirectional(model)
    assert not torch.allclose(outputs(model, TEXT), reference, atol=1e-3)
    make_causal(model)
    assert ensure_attention(model, "causal").is_causal
    assert torch.equal(outputs(model, TEXT), reference)


def test_kind_causal_keeps_a_trained_window():
    model = build("mistral (window)")
    ensure_attention(model, "causal")
    assert model.config.sliding_window == 3


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gradient_checkpointing_in_training_gives_the_same_output(implementation):
    model = build("qwen3", implementation)
    make_bidirectional(model)
    reference = outputs(model, TEXT, ONES)
    model.gradient_checkpointing_enable()
    model.train()
    trained = model(input_ids=TEXT, attention_mask=ONES).last_hidden_state
    torch.testing.assert_close(trained, reference)
    trained.sum().backward()
    assert model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_a_huge_residual_hides_nothing(dtype):
    """In a residual stream of thousands, 16-bit rounding swallows what attention adds; a gradient remains."""
    model = build("llama", dtype=dtype)
    assert probe(model).is_causal
    make_bidirectional(model)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(2000 / model.embed_tokens.weight.abs().max())
    assert not probe(model).causal_layers


def test_layers_that_have_no_effect_yet_are_seen_through():
    """Such are those that come in later: their last products are zero, and so is every gradient."""
    model = build("llama")
    silent = [layer.self_attn.o_proj.weight for layer in model.layers]
    with torch.no_grad():
        for weight in silent:
            weight.zero_()
    assert probe(model).is_causal
    make_bidirectional(model)
    assert not probe(model).causal_layers
    assert not any(weight.any() for weight in silent)


def test_the_probe_leaves_no_trace():
    model = build("mistral").train()
    model.layers[0].eval()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        probe(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert not model.layers[0].self_attn.training
    assert model.layers[1].self_attn.training
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)


def test_a_language_model_head_and_a_peft_wrapper_keep_it():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(build("mistral").config)
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert probe(wrapped).is_causal
    assert takes_position_ids(wrapped)
    assert not ensure_attention(wrapped, "bidirectional").causal_layers
    assert not probe(wrapped.merge_and_unload()).causal_layers


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "t5"])
def test_encoders_are_refused(kind):
    small = {"bert": families.COMMON, "t5": {"d_model": 32, "num_layers": 1, "d_ff": 32, "vocab_size": 64}}
    small |= {"distilbert": {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 4, "vocab_size": 64}}
    config = AutoConfig.for_model(kind, **small.get(kind, families.COMMON))
    with pytest.raises(EmbedforgeError, match="is not a decoder"):
        ensure_attention(AutoModel.from_config(config), "bidirectional")


def test_an_old_transformers_is_refused_by_name():
    require_transformers("5.2.0")
    for old in ("4.57.6", "5.1.0"):
        with pytest.raises(EmbedforgeError, match=rf"{old} ignores.*>= 5\.2"):
            require_transformers(old)


def test_position_ids_count_real_tokens():
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 1, 2, 2], [0, 0, 0, 1]]
    assert takes_position_ids(build("gpt2"))
    assert not takes_position_ids(build("bloom", "eager"))


def test_the_report_is_readable():
    model = build("jamba")
    make_bidirectional(model)
    title, header, first, second = str(probe(model)).splitlines()
    assert title.startswith("jamba (sdpa)")
    assert header.split("  ")[0] == "layers"
    assert first.split()[2:] == ["none"] * 4
    assert second.split()[2:] == ["all"] * 4
