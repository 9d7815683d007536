from __future__ import annotations

import copy
import io

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from embedforge.errors import EmbedforgeError
from embedforge.train import optimizer as module
from embedforge.train.optimizer import build_optimizer, parameter_groups, warmup_schedule


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.LayerNorm(8))
        self.pooler = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))

    def forward(self, ids):
        return self.pooler(self.decoder(ids))


def make(dtype=torch.float32, *, master=True, rate=1e-2, copies=None):
    model = (copy.deepcopy(copies) if copies is not None else Model()).to(dtype)
    groups = parameter_groups(model, learning_rate=rate, pooling_learning_rate=rate * 3, weight_decay=0.1)
    return model, build_optimizer(groups, weight_decay=0.1, betas=(0.9, 0.98), fp32_master=master)


def train(model, optimizer, steps, scheduler=None):
    """Steps with made-up gradients that depend on the step alone, so that trajectories can be compared."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (noise + 0.3).to(parameter.dtype)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()


def weights(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# Groups


def test_groups_by_part_and_decay():
    groups = parameter_groups(Model(), learning_rate=1e-5, pooling_learning_rate=1e-4, weight_decay=0.03)
    found = {group["name"]: (len(group["params"]), group["lr"], group["weight_decay"]) for group in groups}
    assert found == {
        "decoder": (2, 1e-5, 0.03),
        "decoder, no decay": (3, 1e-5, 0.0),
        "pooler": (1, 1e-4, 0.03),
        "pooler, no decay": (3, 1e-4, 0.0),
    }


def test_pooler_takes_the_learning_rate_of_the_stage_unless_it_has_its_own():
    groups = parameter_groups(Model(), learning_rate=1e-5, weight_decay=0)
    assert {group["lr"] for group in groups} == {1e-5}


def test_frozen_parameters_are_left_out():
    model = Model()
    model.decoder.requires_grad_(False)
    groups = parameter_groups(model, learning_rate=1e-5, weight_decay=0.03)
    assert [group["name"] for group in groups] == ["pooler", "pooler, no decay"]
    model.requires_grad_(False)
    with pytest.raises(EmbedforgeError, match="trainable"):
        parameter_groups(model, learning_rate=1e-5, weight_decay=0.03)


def test_a_group_without_learning_rate_is_refused():
    with pytest.raises(EmbedforgeError, match="lr"):
        build_optimizer([{"params": [nn.Parameter(torch.zeros(2))]}])


# Steps


def test_in_float32_it_is_torch_adamw():
    (model, optimizer), (other, reference) = make(), make(master=False)
    assert type(reference) is torch.optim.AdamW
    train(model, optimizer, range(10))
    train(other, reference, range(10))
    assert_same(weights(model), weights(other))
    assert not any("master" in state for state in optimizer.state.values())


def test_masters_take_the_float32_path_to_the_bit():
    """The copies are what float32 AdamW makes of the same gradients; the weights are the copies, rounded."""
    start = Model().bfloat16()
    model, optimizer = make(torch.bfloat16, copies=start)
    exact, reference = make(torch.float32, master=False, copies=start)
    train(model, optimizer, range(20))
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for parameter in exact.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (noise + 0.3).bfloat16().float()
        reference.step()
    for parameter, twin in zip(model.parameters(), exact.parameters(), strict=True):
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(optimizer.state[parameter]["master"], twin)
        assert torch.equal(parameter, twin.bfloat16())


def test_small_updates_add_up():
    """At a learning rate of fine-tuning, pure bfloat16 hardly moves; with copies it moves as float32 does."""
    moved = {}
    ways = {
        "exact": (torch.float32, False),
        "copies": (torch.bfloat16, True),
        "pure": (torch.bfloat16, False),
    }
    for name, (dtype, master) in ways.items():
        model, optimizer = make(dtype, master=master, rate=1e-4, copies=Model().bfloat16())
        before = copy.deepcopy(weights(model))
        train(model, optimizer, range(300))
        after = weights(model)
        moved[name] = torch.cat([(after[key].float() - before[key].float()).flatten() for key in before])
    error = {name: (move - moved["exact"]).norm() / moved["exact"].norm() for name, move in moved.items()}
    assert error["copies"] < 0.1
    assert error["pure"] > 0.8


def test_parameters_without_gradient_are_left_alone():
    model, optimizer = make(torch.bfloat16)
    before = copy.deepcopy(weights(model))
    model.pooler[0].weight.grad = torch.ones(8, 8, dtype=torch.bfloat16)
    optimizer.step()
    changed = [name for name, value in weights(model).items() if not torch.equal(value, before[name])]
    assert changed == ["pooler.0.weight"]
    assert len(optimizer.state) == 1


def test_chunks_do_not_change_the_result(monkeypatch):
    model, optimizer = make(torch.bfloat16)
    train(model, optimizer, range(3))
    monkeypatch.setattr(module, "CHUNK", 70)
    other, chunked = make(torch.bfloat16)
    train(other, chunked, range(3))
    assert_same(weights(other), weights(model))


def test_closure():
    model, optimizer = make(torch.bfloat16)

    def closure():
        loss = model(torch.arange(4)).float().square().sum()
        loss.backward()
        return loss

    before = copy.deepcopy(weights(model))
    assert optimizer.step(closure).requires_grad
    assert not torch.equal(weights(model)["decoder.1.weight"], before["decoder.1.weight"])


# Resume


def scheduled(optimizer):
    return LambdaLR(optimizer, warmup_schedule("cosine", 3, 12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_resume_is_the_same_to_the_bit(dtype):
    model, optimizer = make(dtype)
    scheduler = scheduled(optimizer)
    train(model, optimizer, range(5), scheduler)
    file = io.BytesIO()
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    train(model, optimizer, range(5, 12), scheduler)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, resumed = make(dtype)
    again = scheduled(resumed)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["scheduler"])
    for index, state in saved["optimizer"]["state"].items():
        assert_same(resumed.state_dict()["state"][index], state)
    train(other, resumed, range(5, 12), again)

    assert_same(weights(other), weights(model))
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        assert_same(resumed.state[twin], optimizer.state[parameter])


def test_loaded_state_is_a_copy():
    model, optimizer = make(torch.bfloat16)
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other, resumed = make(torch.bfloat16, copies=model)
    resumed.load_state_dict(saved)
    train(other, resumed, range(2))
    for index, state in before["state"].items():
        assert_same(saved["state"][index], state)


def test_a_state_with_other_groups_is_refused():
    _, optimizer = make(torch.bfloat16)
    lonely = build_optimizer([{"params": [nn.Parameter(torch.zeros(2))], "lr": 1.0}], fp32_master=True)
    with pytest.raises(ValueError, match="parameter group"):
        lonely.load_state_dict(optimizer.state_dict())


def test_in_accelerates_wrapper():
    plain_model, plain_optimizer = make(torch.bfloat16)
    train(plain_model, plain_optimizer, range(6), scheduled(plain_optimizer))

    model, optimizer = make(torch.bfloat16)
    scheduler = scheduled(optimizer)
    accelerator = Accelerator(cpu=True)
    wrapped_model, wrapped, wrapped_scheduler = accelerator.prepare(model, optimizer, scheduler)
    train(wrapped_model, wrapped, range(4), wrapped_scheduler)
    state = copy.deepcopy(wrapped.state_dict())
    wrapped.load_state_dict(state)
    train(wrapped_model, wrapped, range(4, 6), wrapped_scheduler)
    assert_same(weights(model), weights(plain_model))


# Schedules


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 5), (3, 10), (5, 5), (7, 5)])
def test_schedule_is_that_of_transformers(kind, warmup, steps):
    name = "constant_with_warmup" if kind == "constant" else kind
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_scheduler(name, reference, warmup, steps)
    factor = warmup_schedule(kind, warmup, steps)
    for step in range(steps):
        assert factor(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        reference.step()
        scheduler.step()


def test_unknown_schedule():
    with pytest.raises(EmbedforgeError, match="polynomial"):
        warmup_schedule("polynomial", 1, 2)
