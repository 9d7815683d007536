"""Dropout of a decoder: switched on in attention where the family allows it, named, and proven to act.

Unsupervised SimCSE (Gao et al. 2021, sec. 3) makes the two views of a text from nothing but dropout, and
today's decoders ship with none: LLM2Vec (sec. 2.1) therefore sets the attention's to 0.3. Without it both
views are one vector. Their cosine is 1 whatever the weights are, so that its gradient is zero: nothing is
learned about which texts mean the same, and what remains of the loss only pushes all texts apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embedforge.errors import EmbedforgeError

_ATTENTION_NAMES = ("attention_dropout", "attn_dropout", "attn_pdrop", "attn_dropout_p")
"""What families call dropout on attention probabilities within their attention modules; opt, biogpt and
xglm call it `dropout` there, which elsewhere means another one."""

_PROBE_TOKENS = 16
_NOISE_MARGIN = 10


class _DropoutRate(NamedTuple):
    """A probability of dropout in a live module: a number, or the `p` of an nn.Dropout."""

    module: Any
    name: str
    kind: str
    """attention, LoRA, layer (a whole layer is skipped) or hidden."""

    @property
    def probability(self) -> float:
        return float(getattr(self.module, self.name))


@contextlib.contextmanager
def attention_dropout(decoder: nn.Module, probability: float) -> Iterator[None]:
    """Set the dropout on attention probabilities for the duration of a `with` block.

    It is set in the live attention modules and nowhere else, so that no config is saved with it, and acts
    in train mode under eager and sdpa attention alike. On leaving, each module gets back what it had. This
    costs nothing, and can be entered at each step; `require_attention_dropout` proves once that it acts.

    Gradient checkpointing and GradCache compute a forward pass again before its gradient: leave the block
    only after the backward pass.

    Args:
        decoder: plain or wrapped by PEFT, or a model around one.
        probability: from 0 to below 1. LLM2Vec's SimCSE: 0.3.

    Raises:
        EmbedforgeError: the probability is none, or the family has no such dropout (state-space layers).
    """
    if not 0 <= probability < 1:
        raise EmbedforgeError(f"attention dropout is a probability from 0 to below 1, not {probability}")
    rates = _attention_rates(decoder)
    if probability and not rates:
        raise _without_dropout(decoder, "has no attention dropout that could be set")
    with _all_at(rates, probability):
        yield


@torch.no_grad()
def require_attention_dropout(decoder: nn.Module) -> None:
    """Raise unless attention dropout, set by `attention_dropout`, changes what the decoder computes.

    Some families have the setting, and a forward pass that does not look at it: falcon with rotary positions
    and diffllama drop nothing, persimmon asks its config. A few tokens are run in train mode with all other
    dropout off; modes and random state stay as they are.

    Args:
        decoder: plain or wrapped by PEFT, not sharded.

    Raises:
        EmbedforgeError: it has no attention dropout, or does not apply it; names the family and the way out.
    """
    model: Any = decoder
    device = next(model.parameters()).device
    ids = torch.arange(_PROBE_TOKENS, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        # Half of the weights dropped, so that chance does not spare all of so few.
        with _all_at(_rates(model), 0.0), attention_dropout(model, 0.5):
            acts = passes_differ(
                lambda batch: model(**batch, use_cache=False).last_hidden_state,
                {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            )
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not acts:
        raise _without_dropout(model, "does not apply the attention dropout that is set")


def dropout_sources(model: nn.Module) -> list[str]:
    """Name every dropout that acts in train mode, such as ["LoRA 0.05", "attention 0.3"]; [] for none.

    Of each kind (attention, LoRA, hidden, layer) and probability one entry, however many modules have it.
    What a module says is believed here: `passes_differ` shows whether it is so.
    """
    return sorted({f"{rate.kind} {rate.probability:g}" for rate in _rates(model) if rate.probability > 0})


@torch.no_grad()
def passes_differ(embed: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor]) -> bool:
    """Return whether two passes over the same texts differ, in the mode that the model is in.

    Kernels that add in no fixed order make passes differ as well: what counts is a difference well above
    that of two passes with the same random numbers. The state of torch's generators stays as it is.

    Args:
        embed: of a batch's tensors; what it returns, of any shape, is compared.
        batch: its tensors, on the device of the model.
    """
    with _own_random_numbers(next(iter(batch.values())).device):
        first, again, other = (_seeded(embed, batch, seed) for seed in (0, 0, 1))
    return bool((first - other).norm() > _NOISE_MARGIN * (first - again).norm())


def _seeded(embed: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor], seed: int) -> Tensor:
    torch.manual_seed(seed)
    return embed(batch).double()


def _attention_rates(model: nn.Module) -> list[_DropoutRate]:
    return [rate for rate in _rates(model) if rate.kind == "attention"]


def _rates(model: nn.Module) -> list[_DropoutRate]:
    """Find every probability of dropout; those of lists and dicts of modules are their entries' own."""
    rates = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            owner, _, name = path.rpartition(".")
            rates.append(_DropoutRate(module, "p", _kind(model.get_submodule(owner), name, path)))
            continue
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
                rates.append(_DropoutRate(module, name, _kind(module, name, path)))
    return rates


def _kind(owner: nn.Module, name: str, path: str) -> str:
    if "lora_dropout" in path:
        return "LoRA"
    if "layerdrop" in name:
        return "layer"
    if "Attention" in type(owner).__name__:
        names = {key for key in (*vars(owner), *owner._modules) if key in _ATTENTION_NAMES}
        if name in (names or {"dropout"}):
            return "attention"
    return "hidden"


@contextlib.contextmanager
def _all_at(rates: list[_DropoutRate], probability: float) -> Iterator[None]:
    before = [getattr(rate.module, rate.name) for rate in rates]
    for rate in rates:
        setattr(rate.module, rate.name, probability)
    try:
        yield
    finally:
        for rate, value in zip(rates, before, strict=True):
            setattr(rate.module, rate.name, value)


@contextlib.contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _without_dropout(decoder: nn.Module, why: str) -> EmbedforgeError:
    configs: Iterator[Any] = (getattr(module, "config", None) for module in decoder.modules())
    family = next((config.model_type for config in configs if hasattr(config, "model_type")), "decoder")
    return EmbedforgeError(
        f"this {family} {why}. Set it to 0 and use the dropout of a LoRA adapter (adapter.dropout) instead, "
        "or choose another decoder"
    )
