"""What a recipe says of the model: the decoder, the pooling on it, and its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from embedforge.recipe.base import Kinds, Section
from embedforge.recipe.prune import Prune


class Lora(Section):
    """Low-rank adapter of the decoder's linear layers; the pooling block is always trained in full."""

    rank: Annotated[int, Field(ge=1, le=2**16)] = 16
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers (q_proj, v_proj, ...), or every linear layer of the decoder."""


class Pooling(Kinds):
    """How token states become one vector. The settings of a kind are the arguments of its `Pooler`."""

    default_kind: ClassVar[str] = "mean"

    @model_validator(mode="before")
    @classmethod
    def _leave_out_settings_of_other_kinds(cls, values: Any) -> Any:
        """Refuse what only other kinds know, but for its default: earlier versions wrote all keys down."""
        if not isinstance(values, Mapping):
            return values
        own = {}
        for key, value in values.items():
            others = {} if key in cls.model_fields else _kinds_with(key)
            if not others:
                own[key] = value
            elif all(value != section.model_fields[key].default for section in others.values()):
                kind = cls.model_fields["kind"].default
                raise ValueError(
                    f"{key} ({value}) has no effect on kind '{kind}', it is for {' and '.join(others)}: "
                    f"leave it out (of a recipe that has it: --set 'model.pooling={{kind: {kind}}}')"
                )
        return own


def _kinds_with(key: str) -> dict[str, type[Pooling]]:
    return {kind: section for kind, section in Pooling.kinds().items() if key in section.model_fields}


class Last(Pooling):
    """The state of the last token (E5-Mistral: EOS)."""

    kind: Literal["last"] = "last"


class Mean(Pooling):
    """The mean over the pooled tokens."""

    kind: Literal["mean"] = "mean"


class WeightedMean(Pooling):
    """The mean with weights 1..n: a causal decoder's later tokens have seen more of the text (SGPT)."""

    kind: Literal["weighted_mean"] = "weighted_mean"


class Cls(Pooling):
    """The state of the first pooled token."""

    kind: Literal["cls"] = "cls"


class Latent(Pooling):
    """Tokens attend to a trainable array of latents, then their mean (NV-Embed, section 3.2)."""

    kind: Literal["latent"] = "latent"
    latents: Annotated[int, Field(ge=1, le=2**20)] = 512
    """Rows of the latent array."""
    heads: Annotated[int, Field(ge=1, le=2**10)] = 8
    """Attention heads."""
    head_dim: Annotated[int, Field(ge=1, le=2**16)] | None = None
    """Width of one head; the decoder's hidden size when absent, as in NV-Embed."""
    feed_forward_multiple: Annotated[int, Field(ge=1, le=2**8)] = 4
    """Width of the GEGLU after its gate, in hidden sizes."""


class SelfAttention(Pooling):
    """Tokens attend to each other, then their mean: the ablation of NV-Embed."""

    kind: Literal["self_attention"] = "self_attention"
    heads: Annotated[int, Field(ge=1, le=2**10)] = 8
    """Attention heads."""
    head_dim: Annotated[int, Field(ge=1, le=2**16)] | None = None
    """Width of one head; the decoder's hidden size when absent."""


class Model(Section):
    """The decoder and what is done to it."""

    base: str = "embedforge:base"
    """A folder, a hub id, or `embedforge:base`, the small decoder in the package."""
    sliding_window: Literal["off", "keep"] = "off"
    """A window of w tokens becomes +-w when the causal mask is gone; NV-Embed and LLM2Vec ignore it."""
    allow_causal_layers: bool = False
    """Accept a decoder some of whose layers stay causal (convolution, linear attention)."""
    attention_implementation: Literal["sdpa", "eager", "flash_attention_2", "auto"] = "auto"
    trust_remote_code: bool = False
    prune: Prune | None = None
    """Layers and tokens to cut off the base before anything is trained."""
    pooling: Pooling = Mean()
    adapter: Lora | None = None
