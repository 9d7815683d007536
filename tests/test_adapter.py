"""LoRA: what is trained, what a merge changes, and adapters that do nothing."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import PeftModel
from peft.tuners import lora
from transformers import GPT2Config, GPT2Model, MistralConfig, MistralModel, PreTrainedModel

from embedforge.errors import EmbedforgeError
from embedforge.model.adapter import add_lora, is_no_op, merge_lora, stack_lora
from embedforge.model.attention import ensure_attention, probe
from work_for_tests import CopiedBytes

MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
BATCH = {"input_ids": torch.arange(3, 21).view(2, 9), "attention_mask": MASK, "pooling_mask": MASK}


def decoder(dtype: torch.dtype = torch.float32) -> MistralModel:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return MistralModel(config).to(dtype)


def trained(size: float, dtype: torch.dtype = torch.float32) -> PeftModel:
    """An adapter whose B matrices are random numbers of this size."""
    model = add_lora(decoder(dtype), rank=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=size)
    return model


def states(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=BATCH["input_ids"], attention_mask=MASK).last_hidden_state


def test_only_the_adapter_is_trainable_and_it_covers_every_linear_layer():
    model = add_lora(decoder(), rank=4)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(names) == 2 * 7 * 2  # layers, linear layers each, A and B
    assert all("lora_" in name for name in names)


def test_targets_choose_layers():
    model = add_lora(decoder(), rank=4, targets=("q_proj", "mlp.up_proj"))
    names = {
        name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name
    }
    assert names == {"q_proj", "up_proj"}


def test_rank_alpha_and_dropout_are_honoured():
    model = add_lora(decoder(), rank=3, alpha=12, dropout=0.25, targets=("q_proj",))
    layer = model.get_base_model().layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (3, 32)
    assert layer.scaling["default"] == 4
    assert layer.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize(("target", "hint"), [("q_porj", "'q_proj'"), ("norm", "It has: down_proj")])
def test_a_target_that_matches_nothing_is_an_error(target, hint):
    with pytest.raises(EmbedforgeError, match=rf"'{target}' names no linear layer of this mistral.*{hint}"):
        add_lora(decoder(), targets=("v_proj", target))


def test_gpt2_layers_count_as_linear():
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2)
    model = GPT2Model(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert is_no_op(add_lora(model, rank=2, targets=("c_attn",)))


def test_the_wrapper_and_the_merge_keep_bidirectional_attention():
    base = decoder()
    ensure_attention(base, "bidirectional")
    model = add_lora(base)
    assert not probe(model).causal_layers
    with pytest.warns(UserWarning, match="no-op"):
        assert not probe(merge_lora(model, BATCH)).causal_layers


def test_a_fresh_adapter_is_a_no_op_and_a_merge_says_so():
    model = add_lora(decoder())
    assert is_no_op(model)
    assert not is_no_op(trained(0.1))
    reference = states(model)
    with pytest.warns(UserWarning, match="no-op: every B matrix is zero"):
        merged = merge_lora(model, BATCH)
    assert torch.equal(states(merged.eval()), reference)


def test_a_merge_gives_the_same_plain_decoder():
    model = trained(0.1).eval()
    reference, base = states(model), states(decoder().eval())
    assert (reference - base).abs().max() > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = merge_lora(model, BATCH)
    assert type(merged) is MistralModel
    assert isinstance(merged, PreTrainedModel)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert not merged.training
    torch.testing.assert_close(states(merged), reference, atol=1e-5, rtol=1e-5)


def test_a_merge_in_bfloat16_stays_within_its_tolerance():
    model = trained(0.1, torch.bfloat16).eval()
    reference = states(model)
    merged = merge_lora(model, BATCH)
    assert {weight.dtype for weight in merged.parameters()} == {torch.bfloat16}
    assert (states(merged) - reference).norm() < 0.05 * reference.norm()


def test_a_merge_in_bfloat16_that_rounds_the_adapter_away_says_so():
    with pytest.warns(UserWarning, match="rounded the LoRA adapter away"):
        merge_lora(trained(1e-5, torch.bfloat16), BATCH)


def test_a_merge_that_changes_the_outputs_is_an_error():
    with pytest.raises(EmbedforgeError, match=r"more than the tolerance of 1\.0e-09, in torch\.float32"):
        merge_lora(trained(0.1), BATCH, tolerance=1e-9)
    broken = trained(0.1)
    with torch.no_grad():
        broken.get_base_model().embed_tokens.weight.fill_(torch.nan)
    with pytest.raises(EmbedforgeError, match="by nan of their norm"):
        merge_lora(broken, BATCH)


@pytest.mark.parametrize("stacked", [False, True])
def test_an_adapter_computes_in_the_precision_of_its_decoder(stacked):
    model = add_lora(decoder(torch.bfloat16), rank=4)
    if stacked:
        stack_lora(model, rank=2)
    assert {weight.dtype for name, weight in model.named_parameters() if ".lora_" in name} == {torch.bfloat16}
    assert not any(getattr(module, "cast_input_dtype_enabled", False) for module in model.modules())
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    ids = torch.arange(12).view(2, 6)
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float().sum().backward()
    assert all(weight.grad is None for weight in frozen)  # nothing is computed for what is not trained


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("stacked", [False, True])
def test_updates_added_by_their_products_are_those_of_peft(stacked, dropout):
    """Vectors and gradients; and no pass of its own over the output, which is what peft adds."""
    ours = add_lora(decoder(torch.float64), rank=4, dropout=dropout).train()
    if stacked:
        stack_lora(ours, rank=2, dropout=dropout)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        if isinstance(module, lora.Linear):
            module.__class__ = lora.Linear
    made, gradients, work = [], [], []
    for model in (ours, theirs):
        torch.manual_seed(2)  # of dropout
        with CopiedBytes() as counted:
            states = model(input_ids=BATCH["input_ids"], attention_mask=MASK).last_hidden_state
            (states * torch.linspace(-1, 1, states.shape[-1])).sum().backward()
        made.append(states.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        work.append(counted.calls["add"] + counted.calls["mul"])
    torch.testing.assert_close(*made)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-6)
    assert work[0] < work[1]
