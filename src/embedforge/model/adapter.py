"""LoRA on the decoder, and a merge that proves it changed nothing (Hu et al. 2021; peft does the work).

Two failures of adapters are silent. An adapter whose B matrices are all zero, as they are before the first
training step, adds nothing: weights that were not loaded look just like it. And a merge into 16-bit weights
rounds: updates smaller than the spacing of the weights' numbers are lost. Both are measured here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.model.memory import require_memory

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest change a merge may make, as a share of the outputs' norm, by dtype of the weights."""


def add_lora(
    decoder: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.1,
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear",
) -> PeftModel:
    """Freeze `decoder` and add low-rank updates (alpha / rank) B A to its linear layers.

    Args:
        decoder: changed in place; it lives on inside the returned model.
        rank: rows of A and columns of B.
        alpha: scale of the update, times 1 / rank.
        dropout: on the input of A, in training only.
        targets: ends of the names of linear layers (q_proj, self_attn.q_proj), or all linear layers, the
            language-model head apart. Experts stored as one 3-D tensor are no linear layers.

    Raises:
        EmbedforgeError: a target names no linear layer of the decoder.
    """
    _check_targets(decoder, targets)
    _check_size(decoder, rank, targets)
    with warnings.catch_warnings():
        # peft asks for a property by the name that newer versions of transformers deprecate.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        config = _config(decoder, rank, alpha, dropout, targets)
        return _lean(get_peft_model(decoder, config, autocast_adapter_dtype=False))


def stack_lora(
    decoder: PeftModel,
    *,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.1,
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear",
) -> None:
    """Freeze the adapters that a decoder wears, and put a new one beside them; their updates add up.

    The arguments are those of `add_lora`. The new adapter's B is zero, so the outputs stay as they are, and
    `merge_lora` later merges all of them.
    """
    plain = decoder.get_base_model()
    _check_targets(plain, targets)
    _check_size(plain, rank, targets)
    earlier = list(decoder.base_model.active_adapters)
    name = f"adapter{len(decoder.peft_config) + 1}"
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
    config = _config(plain, rank, alpha, dropout, targets)
    decoder.add_adapter(name, config, autocast_adapter_dtype=False)
    _lean(decoder)
    decoder.base_model.set_adapter([*earlier, name])
    for path, parameter in decoder.named_parameters():
        parameter.requires_grad_(f".{name}." in path)


class _LeanLinear(lora.Linear):
    """peft's layer, whose update is added by the product that makes it.

    peft scales the update and adds it, each a pass over as many numbers as the layer's output, forward and
    backward; beside products as thin as an adapter's they take most of its time.
    """

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map [..., in] to [..., out]; what is no plain adapter goes peft's way."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        plain = not any(name in self.lora_variant or self.lora_B[name].bias is not None for name in names)
        if args or kwargs or self.disable_adapters or self.merged or not plain:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        rows = x.flatten(0, -2)
        made: Tensor = self.base_layer(rows)
        for name in names:
            update = self.lora_A[name](self.lora_dropout[name](rows)) * self.scaling[name]
            made = made.addmm_(update.to(made.dtype), self.lora_B[name].weight.T.to(made.dtype))
        return made.unflatten(0, x.shape[:-1])


def _lean(decoder: PeftModel) -> PeftModel:
    """Let an adapter compute in the precision of its decoder, or of autocast, in few passes.

    peft would keep a 16-bit decoder's adapter in float32 and cast every input of it, twice under autocast: on
    a CPU more than the adapter's own products. What must not be rounded is in the optimizer (`MasterAdamW`).
    """
    for module in decoder.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
        if type(module) is lora.Linear and type(module.base_layer) is nn.Linear:
            module.__class__ = _LeanLinear
    return decoder


def _check_targets(decoder: Any, targets: tuple[str, ...] | Literal["all-linear"]) -> None:
    available = linear_names(decoder)
    for target in () if targets == "all-linear" else targets:
        if not any(name == target or name.endswith(f".{target}") for name in available):
            short = sorted({name.rpartition(".")[2] for name in available})
            raise EmbedforgeError(
                f"adapter.targets: '{target}' names no linear layer of this "
                f"{decoder.config.model_type} decoder."
                f"{did_you_mean(target, short)} It has: {', '.join(short)}"
            )


def _check_size(decoder: Any, rank: int, targets: tuple[str, ...] | Literal["all-linear"]) -> None:
    """Refuse an adapter that does not fit the memory."""
    ends = linear_names(decoder) if targets == "all-linear" else targets
    shapes = (
        module.weight.shape
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(f".{name}".endswith(f".{end}") for end in ends)
    )
    require_memory(sum(4 * rank * sum(shape) for shape in shapes), f"adapter.rank {rank:,}")


def _config(
    decoder: nn.Module, rank: int, alpha: float, dropout: float, targets: tuple[str, ...] | str
) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        # gpt2's weight layout
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in decoder.modules()),
        bias="none",
        task_type="FEATURE_EXTRACTION",
    )


def linear_names(decoder: nn.Module) -> list[str]:
    """Return the full names of the linear layers that LoRA can extend, whether it has already or not."""
    linear = (name for name, module in decoder.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return [name.removesuffix(".base_layer") for name in linear if ".lora_" not in name]


def is_no_op(model: PeftModel) -> bool:
    """Return whether the adapter adds nothing: every B matrix is zero, or there is none."""
    return not any(weight.any() for name, weight in model.named_parameters() if ".lora_B." in name)


def merge_lora(
    decoder: PeftModel, probe_batch: Mapping[str, Tensor], tolerance: float | None = None
) -> PreTrainedModel:
    """Write the adapter into the decoder's weights and prove that its outputs stayed the same.

    Compares the last hidden states of the real tokens of `probe_batch` before and after, in eval mode. A
    warning says when the adapter is a no-op, and when 16-bit rounding ate over half of its effect.

    Args:
        decoder: from `add_lora` or `PeftModel.from_pretrained`; used up by the merge, also a failing one.
        probe_batch: `input_ids` and `attention_mask`, int64 [texts, tokens], on the decoder's device; further
            keys are left alone.
        tolerance: largest norm of the change, as a share of the outputs' norm; by dtype when None (1e-4 for
            float32, 1e-2 for float16, 5e-2 for bfloat16).

    Returns:
        The plain decoder, in the train or eval mode it was in.

    Raises:
        EmbedforgeError: the outputs changed by more than the tolerance, or are not finite.
    """
    if is_no_op(decoder):
        warnings.warn(
            "the LoRA adapter is a no-op: every B matrix is zero, so the merged model equals its base. Was "
            "it trained, and were its weights loaded?",
            stacklevel=2,
        )
    dtype = next(weight.dtype for name, weight in decoder.named_parameters() if "lora_" not in name)
    tolerance = _TOLERANCE.get(dtype, 5e-2) if tolerance is None else tolerance
    training = decoder.training
    decoder.eval()
    adapted = _outputs(decoder, probe_batch)
    with decoder.disable_adapter():
        effect = _change(_outputs(decoder, probe_batch), adapted)
    merged: Any = decoder.merge_and_unload(safe_merge=True)
    change = _change(_outputs(merged, probe_batch), adapted)
    if not change <= tolerance:  # also when it is not a number
        raise EmbedforgeError(
            f"merging the LoRA adapter changed the decoder's outputs by {change:.1e} of their norm, more "
            f"than the tolerance of {tolerance:.1e}, in {dtype}. Load base and adapter in float32 to merge"
        )
    if change > effect / 2 and effect > 0:
        warnings.warn(
            f"merging in {dtype} rounded the LoRA adapter away: its effect on the outputs was {effect:.1e} "
            f"of their norm, and the merge changed them by {change:.1e}. Merge in float32 to keep it",
            stacklevel=2,
        )
    merged.train(training)
    return merged


@torch.no_grad()
def _outputs(decoder: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Last hidden states of the real tokens, [real tokens, hidden] float32."""
    mask = batch["attention_mask"]
    states = decoder(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
    return states[mask.bool()].float()


def _change(states: Tensor, reference: Tensor) -> float:
    return float((states - reference).norm() / reference.norm())
