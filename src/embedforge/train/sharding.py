"""FSDP: a model, its gradients and its optimizer in shards over the ranks; through accelerate's FSDP2.

Every layer of the decoder is gathered for its own forward and backward pass only; pooler, embeddings and
final norm form one more unit. A shard is a DTensor; what is saved are whole tensors, so that files do not
depend on the number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.recipe import Recipe
from embedforge.runtime import pick_device, world_size

RESHARDS = {"full_shard": True, "shard_grad_op": False}
"""Whether a layer's weights are given back between its forward and its backward pass."""


def check_fsdp(options: str, device: str | None) -> None:
    """Refuse what `training.fsdp` cannot be here.

    Raises:
        EmbedforgeError: an unknown option, a single rank, or the CPU beside a GPU.
    """
    if not options:
        return
    reshards_after_forward(options)
    if world_size() < 2:
        raise EmbedforgeError(
            f"training.fsdp='{options}' shards a model over ranks, and this process is the only one: start "
            "two or more with 'torchrun --standalone --nproc-per-node N -m embedforge train ...', or leave "
            "training.fsdp empty"
        )
    if pick_device(device).type == "cpu" and torch.accelerator.is_available():
        raise EmbedforgeError(
            f"training.fsdp='{options}' with --device {device}: torch shards on the GPU where it sees one; "
            "leave --device out, or hide the GPUs with CUDA_VISIBLE_DEVICES=''"
        )


def check_sharded_stages(recipe: Recipe) -> None:
    """Refuse to measure retrieval in a stage that has only the decoder at hand, in shards.

    Raises:
        EmbedforgeError: names the stage and the ways out.
    """
    settings = recipe.training
    if not settings.fsdp or settings.eval_steps is None:
        return
    for stage in recipe.stages:
        if not stage.objective.trains_pooling:
            raise EmbedforgeError(
                f"training.eval_steps measures retrieval with the whole model, and stage '{stage.name}' "
                f"({stage.objective.kind}) under training.fsdp='{settings.fsdp}' holds its decoder alone, in "
                "shards: leave one of the two settings out, or train that stage by a recipe of its own"
            )


def reshards_after_forward(options: str) -> bool:
    """Read the options, as transformers' Trainer spells them: one of `RESHARDS`, and `auto_wrap` or not.

    `auto_wrap`, which makes every layer a unit, changes nothing: without it nothing would be saved.
    """
    words = options.split()
    for word in words:
        if word not in RESHARDS and word != "auto_wrap":
            known = [*RESHARDS, "auto_wrap"]
            raise EmbedforgeError(
                f"training.fsdp='{options}': '{word}' is not supported, only {', '.join(known)}."
                f"{did_you_mean(word, known)}"
            )
    kinds = [word for word in words if word in RESHARDS]
    if len(kinds) != 1:
        raise EmbedforgeError(
            f"training.fsdp='{options}': name one of full_shard (least memory) and shard_grad_op (less "
            "communication)"
        )
    return RESHARDS[kinds[0]]


def set_up_fsdp(accelerator: Accelerator, decoder: nn.Module, options: str) -> None:
    """Make `accelerator.prepare(model, optimizer)` shard both; on the CPU too, where accelerate would not.

    The ranks must have been started, and all have the same weights.
    """
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=reshards_after_forward(options),
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=layer_classes(decoder),
        cpu_offload=False,
        activation_checkpointing=False,
        cpu_ram_efficient_loading=False,
    )
    accelerator.state.distributed_type = DistributedType.FSDP


def layer_classes(decoder: nn.Module) -> list[str]:
    """Return the names of the classes of a decoder's layers, PEFT-wrapped or not.

    Raises:
        EmbedforgeError: the decoder does not say.
    """
    present = {type(module).__name__ for module in decoder.modules()}
    names: set[str] = set()
    for module in decoder.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    if layers := sorted(names & present):
        return layers
    raise EmbedforgeError(
        f"training.fsdp: {type(decoder).__name__} does not say which of its modules are its layers, so that "
        "it cannot be sharded layer by layer; leave training.fsdp empty"
    )


def whole(tensor: Tensor) -> Tensor:
    """Join a sharded tensor, on its device; any other is returned as it is. All ranks must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_shard(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut a whole tensor, the same on every rank, as `like` is cut; no communication.

    Where `like` is no shard, or the two differ in shape (a count of steps), it is returned as it is.
    """
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def whole_optimizer_state(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """Return the `state_dict` an unsharded optimizer would have, on the CPU; all ranks must call this.

    Without `keep` the tensors are only handed to the other ranks, and the state stays empty.
    """
    sharded = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for index in sorted(sharded["state"]):
        for name, value in sharded["state"][index].items():
            joined = whole(value)
            if keep:
                state.setdefault(index, {})[name] = joined.cpu()
    return {**sharded, "state": state}


def load_whole_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore what `whole_optimizer_state` returned, whatever the number of ranks was then."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {name: as_shard(value, parameters[index]) for name, value in values.items()}
        for index, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})
