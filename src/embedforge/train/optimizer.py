"""AdamW, also for bfloat16 weights, with a stage's parameter groups and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from embedforge.errors import EmbedforgeError

CHUNK = 2**27
"""Elements updated at once: bounds the memory for gradients in float32 (half a gigabyte)."""


def parameter_groups(
    model: nn.Module, *, learning_rate: float, pooling_learning_rate: float | None = None, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the trainable parameters of `model` as up to four groups for an optimizer.

    What stands behind the decoder (pooling block, linear maps) has its own learning rate. Vectors and
    scalars, that is biases and the weights of norms, are not decayed; every matrix is, the latent array of
    latent attention included, which is what transformers' Trainer does by default.

    Raises:
        EmbedforgeError: no parameter is trainable.
    """
    rates = {"decoder": learning_rate, "pooler": learning_rate}
    if pooling_learning_rate is not None:
        rates["pooler"] = pooling_learning_rate
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for part, rate in rates.items():
        for decays in (True, False):
            name = part if decays else f"{part}, no decay"
            decay = weight_decay if decays else 0.0
            groups[part, decays] = {"name": name, "params": [], "lr": rate, "weight_decay": decay}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "pooler" if name.startswith(("pooler.", "projection.", "head.")) else "decoder"
            groups[part, parameter.ndim >= 2]["params"].append(parameter)
    used = [group for group in groups.values() if group["params"]]
    if not used:
        raise EmbedforgeError("no parameter of the model is trainable: give it an adapter or unfreeze it")
    return used


def build_optimizer(
    parameter_groups: list[dict[str, Any]],
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    fp32_master: bool = False,
) -> torch.optim.Optimizer:
    """Return AdamW over groups that each name their learning rate `lr`.

    Args:
        parameter_groups: as `parameter_groups` makes them.
        weight_decay: of groups that name none.
        betas: decay of the running means of the gradient and of its square.
        fp32_master: keep float32 copies of the bfloat16 or float16 parameters (`MasterAdamW`).
    """
    for group in parameter_groups:
        if "lr" not in group:
            raise EmbedforgeError("a parameter group without learning rate: set its 'lr'")
    kind = MasterAdamW if fp32_master else torch.optim.AdamW
    return kind(parameter_groups, betas=betas, weight_decay=weight_decay)


class MasterAdamW(torch.optim.AdamW):
    """AdamW that updates float32 copies of low-precision parameters and rounds these into the parameters.

    A bfloat16 number has 8 significant bits, so an update below 1/512 of a weight is lost, and at the
    learning rates of fine-tuning nearly all are. Here the copy ("master") adds them up (Micikevicius et
    al. 2018, "Mixed Precision Training", section 3.1). Copies and moments are float32, in the state of
    each parameter; parameters in float32 or float64 are updated as they are, without a copy. `state_dict`
    restores to the bit, unlike that of torch.optim.AdamW over bfloat16 parameters.

    A parameter that is changed from outside is set back by the next step: the copy decides.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameters in _chunks(with_gradient):
                self._update(group, parameters)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self._state(parameter) for parameter in parameters]
        masters = [
            state.get("master", parameter) for state, parameter in zip(states, parameters, strict=True)
        ]
        adamw(
            masters,
            [_full(parameter.grad) for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for parameter, master in zip(parameters, masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            master = _full(parameter.detach())
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(master)
            state["exp_avg_sq"] = torch.zeros_like(master)
            if parameter.dtype != master.dtype:
                state["master"] = master
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, to the bit, on the devices of the parameters.

        torch's own would round every tensor of the state to the dtype of its parameter.
        """
        super().load_state_dict({**state_dict, "state": {}})
        saved = (index for group in state_dict["param_groups"] for index in group["params"])
        own = (parameter for group in self.param_groups for parameter in group["params"])
        for index, parameter in zip(saved, own, strict=True):
            if index in state_dict["state"]:
                self.state[parameter] = {
                    # AdamW reads the count of steps on the CPU, where it need not wait for the device.
                    name: value.to("cpu" if name == "step" else parameter.device, copy=True)
                    for name, value in state_dict["state"][index].items()
                }


def warmup_schedule(
    kind: Literal["linear", "cosine", "constant"], warmup_steps: int, steps: int
) -> Callable[[int], float]:
    """Return the factor of the learning rate by step, counted from 0, for `LambdaLR`.

    It rises linearly from 0 over `warmup_steps`, then falls to 0 at `steps`, linearly or along half a
    cosine, or stays at 1. The same factors as transformers' schedules of these names.

    >>> [warmup_schedule("linear", 2, 6)(step) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    >>> [round(warmup_schedule("cosine", 2, 6)(step), 2) for step in range(7)]
    [0.0, 0.5, 1.0, 0.85, 0.5, 0.15, 0.0]
    >>> [warmup_schedule("constant", 2, 6)(step) for step in range(7)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if kind == "constant":
            return 1.0
        done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    if kind not in ("linear", "cosine", "constant"):
        raise EmbedforgeError(f"schedule '{kind}': it is 'linear', 'cosine' or 'constant'")
    return factor


def _full(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32; itself where it already is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunks(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Cut a list of parameters where it would pass CHUNK elements."""
    chunk: list[Tensor] = []
    elements = 0
    for parameter in parameters:
        if chunk and elements + parameter.numel() > CHUNK:
            yield chunk
            chunk, elements = [], 0
        chunk.append(parameter)
        elements += parameter.numel()
    if chunk:
        yield chunk
