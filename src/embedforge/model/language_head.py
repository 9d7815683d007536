"""The language-model head of a decoder that was loaded without one, for masked next-token prediction.

What a family does between its last hidden states and its logits is a projection, and sometimes a bias, a
scale or a soft cap. All of it is upstream's own code here: the family's causal language model is built with
an empty decoder, which hands on the states that it is given.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.model.decoder import quiet, torch_dtype
from embedforge.model.folder import find_folder
from embedforge.model.shards import list_tensors

_WAY_OUT = (
    "Name as base the model as it was published, with its language-model head, or train with an objective "
    "that needs none (simcse, contrastive)"
)
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest difference that the proof in `load_head` allows, as a share of the largest logit; else 1e-2."""


class LanguageModelHead(nn.Module):
    """All that a family does after its decoder; from `load_head`.

    Args:
        causal_lm: the family's causal language model, its decoder emptied.
    """

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits of last hidden states: [n, hidden] to [n, vocabulary], in the head's dtype."""
        states = states.to(self.causal_lm.get_output_embeddings().weight.dtype)
        return self.causal_lm(inputs_embeds=states[None], use_cache=False).logits[0]


def load_head(
    base: str, decoder: PreTrainedModel | PeftModel, *, dtype: str | torch.dtype | None = None
) -> LanguageModelHead:
    """Load the head that `base` was pre-trained with, for the last hidden states of `decoder`.

    Where the family ties its head to the token embeddings, the head holds the decoder's own live Parameter:
    what trains one trains the other, and a row added to one is there in both. All else of the head is read
    from the safetensors of `base`, and frozen; the rest of the decoder's weights stays on the disk. That
    the head gives the logits of the whole causal language model is proven on a few tokens before it is
    returned.

    Args:
        base: `embedforge:base`, a folder or a hub id.
        decoder: read from `base` without its head; it may have been trained, resized, turned bidirectional
            or wrapped by PEFT since.
        dtype: of the head's own weights; the decoder's when None.

    Raises:
        EmbedforgeError: `base` holds no head (as no folder does that embedforge or NV-Embed wrote, unless the
            head is tied), the family has no causal language model in transformers, or it makes its logits in
            a way that cannot be taken apart.
    """
    plain: PreTrainedModel = decoder.get_base_model() if isinstance(decoder, PeftModel) else decoder
    causal_lm = _read(base, plain, torch_dtype(dtype) if dtype is not None else plain.dtype)
    causal_lm.requires_grad_(False)
    _tie(causal_lm, plain.get_input_embeddings().weight)
    head = LanguageModelHead(causal_lm.to(plain.device)).train(plain.training)
    _prove(head, plain)
    return head


def _read(base: str, plain: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Build the family's causal language model without its decoder, and read what is left of it."""
    family = _headed_class(plain)
    folder = find_folder(base)
    list_tensors(folder)  # Refuses missing and cut off files by name.
    model_type = read_object(folder / "config.json").get("model_type")
    if model_type != plain.config.model_type:
        raise EmbedforgeError(
            f"{folder}: the language-model head of a {plain.config.model_type} decoder is asked for, and "
            f"this is a model of type '{model_type}'. {_WAY_OUT}"
        )

    class Headed(family):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            # Whether a head is tied depends on what the checkpoint holds as well: upstream decides, and for
            # that has to see the embeddings.
            kept = self.get_input_embeddings() if config.get_text_config().tie_word_embeddings else None
            _take_decoder_out(self, kept)

    # Upstream goes by these when it renames a checkpoint's tensors and looks for custom code.
    Headed.__name__, Headed.__module__ = family.__name__, family.__module__
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            causal_lm, report = Headed.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                attn_implementation="eager",
            )
    except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise EmbedforgeError(
            f"{folder}: the language-model head cannot be loaded: {error}. {_WAY_OUT}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise EmbedforgeError(
            f"{folder}: this folder holds no language-model head (there is no tensor '{missing[0]}'), which "
            f"masked next-token prediction needs. {_WAY_OUT}"
        )
    return causal_lm


def _headed_class(plain: PreTrainedModel) -> type[PreTrainedModel]:
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(plain.config), None)
    if family is None or not getattr(family, "base_model_prefix", ""):
        raise EmbedforgeError(
            f"transformers has no causal language model of type '{plain.config.model_type}', so its head is "
            "unknown. Choose another decoder (docs/families.md), or train with an objective that needs no "
            "head (simcse, contrastive)"
        )
    return family


def _take_decoder_out(causal_lm: PreTrainedModel, kept: nn.Module | None) -> None:
    _empty(getattr(causal_lm, causal_lm.base_model_prefix), kept)
    causal_lm.get_input_embeddings = lambda: kept  # opt asks its decoder within the decoder itself


def _empty(module: nn.Module, kept: nn.Module | None) -> None:
    """Take all weights but those of `kept` out of a decoder, and let it return the `inputs_embeds` it gets.

    Plain attributes stay, as falcon_h1's head reads a multiplier of them. So do nested models, emptied, as
    opt's head calls the decoder within its decoder.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, PreTrainedModel) or (kept is not None and kept in child.modules()):
            _empty(child, kept)
        else:
            delattr(module, name)
    if module is kept:
        return
    for name in [*module._parameters, *module._buffers]:
        delattr(module, name)
    if isinstance(module, PreTrainedModel):
        model: Any = module
        model.forward = _hand_on
        model.get_input_embeddings = lambda: kept
        model._init_weights = lambda _: None  # The family's own looks for what is gone.


class _Output:
    """A decoder's output of which only the states are there; all else a head may ask for is None."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _hand_on(*_: Any, inputs_embeds: Tensor, **__: Any) -> _Output:
    return _Output(inputs_embeds)


def _tie(causal_lm: PreTrainedModel, weight: Tensor) -> None:
    """Put the live embeddings in the place of a head that is tied to those just read, which go."""
    body = getattr(causal_lm, causal_lm.base_model_prefix)
    read, head = body.get_input_embeddings(), causal_lm.get_output_embeddings()
    if read is not None and head.weight is read.weight:
        head.weight = weight
        if (bias := getattr(head, "bias", None)) is not None:  # as upstream does where rows were added
            added = len(weight) - len(bias)
            head.bias = nn.Parameter(functional.pad(bias.detach(), (0, added)), requires_grad=False)
    _take_decoder_out(causal_lm, None)


@torch.no_grad()
def _prove(head: LanguageModelHead, plain: PreTrainedModel) -> None:
    """Raise unless the head gives what the causal language model gives with the live decoder inside."""
    causal_lm, name = head.causal_lm, head.causal_lm.base_model_prefix
    emptied = getattr(causal_lm, name)
    family = plain.config.model_type
    if type(plain) is not type(emptied):
        raise EmbedforgeError(
            f"{family}: {type(causal_lm).__name__} is built on a {type(emptied).__name__}, and the decoder "
            f"is a {type(plain).__name__}: the head does not belong to it. {_WAY_OUT}"
        )
    ids = torch.arange(6, device=plain.device)[None] % plain.get_input_embeddings().weight.shape[0]
    training = {module: module.training for module in (*plain.modules(), *head.modules())}
    plain.eval()
    try:
        logits = head(plain(input_ids=ids, use_cache=False).last_hidden_state[0])
        setattr(causal_lm, name, plain)
        expected = causal_lm.eval()(input_ids=ids, use_cache=False).logits[0]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise EmbedforgeError(
            f"{family}: the language-model head cannot be taken from {type(causal_lm).__name__}: {error}. Is "
            f"the base the one that the decoder was made of? {_WAY_OUT}"
        ) from error
    finally:
        setattr(causal_lm, name, emptied)
        for module, mode in training.items():
            module.training = mode
    tolerance = _TOLERANCE.get(logits.dtype, 1e-2) * expected.abs().max()
    if logits.shape != expected.shape or not (logits - expected).abs().max() <= tolerance:
        raise EmbedforgeError(
            f"{family}: {type(causal_lm).__name__} makes its logits of more than the last hidden states, so "
            "its head cannot be used alone. Choose another decoder (docs/families.md), or train with an "
            "objective that needs no head (simcse, contrastive)"
        )
