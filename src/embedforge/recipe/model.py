"""What a recipe says of the model: the decoder, the pooling on it, and its adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedforge.recipe.objectives import PositiveInt, Section


class Lora(Section):
    """Low-rank adapter of the decoder's linear layers; the pooling block is always trained in full."""

    rank: PositiveInt = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers (q_proj, v_proj, ...), or every linear layer of the decoder."""


_POOLINGS_THAT_USE = {
    "latents": ("latent",),
    "heads": ("latent", "self_attention"),
    "head_dim": ("latent", "self_attention"),
    "feed_forward_multiple": ("latent",),
}


class Pooling(Section):
    """How token states become one vector."""

    kind: Literal["last", "mean", "weighted_mean", "cls", "latent", "self_attention"] = "mean"
    latents: PositiveInt = 512
    """Latent attention: rows of the trainable latent array (NV-Embed, section 3.2)."""
    heads: PositiveInt = 8
    """Latent and self attention: number of heads."""
    head_dim: PositiveInt | None = None
    """Latent and self attention: width of one head; the decoder's hidden size when absent, as in NV-Embed."""
    feed_forward_multiple: PositiveInt = 4
    """Latent attention: width of the GEGLU after its gate, in hidden sizes."""

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Pooling:
        for key, kinds in _POOLINGS_THAT_USE.items():
            value = getattr(self, key)
            if self.kind not in kinds and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} ({value}) has no effect on kind '{self.kind}', it is for {' and '.join(kinds)}: "
                    f"leave it out (of a recipe that has it: --set 'model.pooling={{kind: {self.kind}}}')"
                )
        return self


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
    pooling: Pooling = Pooling()
    adapter: Lora | None = None
