"""An embedding model: a decoder, a pooler and the contract between text and vector.

text --Renderer--> token ids, masks --decoder--> token states --pooler--> vector (--linear map--> vector)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedforge.model.decoder import state_width, token_states
from embedforge.model.depth import Depth
from embedforge.model.packing import split, unpacked
from embedforge.model.pooling import Pooler
from embedforge.model.precision import ExactRotary
from embedforge.text.contract import Contract
from embedforge.text.render import Renderer


class EmbeddingModel(ExactRotary):
    """A decoder with a pooler on it, and the contract that both serve.

    Args:
        decoder: without language-model head; may be wrapped by PEFT while it is trained.
        pooler: from `build_pooler`.
        tokenizer: the decoder's, of which the model keeps the contract's copy; or a renderer, to be shared.
        contract: decides about tokens, pool and normalisation.
        pooling: the settings of its kind, needed to save the model.
        projection: a linear map of what is pooled, if there is one; in float32 or float64.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        pooler: Pooler,
        tokenizer: PreTrainedTokenizerBase | Renderer,
        contract: Contract,
        pooling: Mapping[str, Any] | None = None,
        projection: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.pooler = pooler
        self.projection = projection
        self.contract = contract
        is_ready = isinstance(tokenizer, Renderer)  # to make one takes as long as to embed a thousand texts
        self.renderer = tokenizer if is_ready else Renderer(tokenizer, contract)
        self.tokenizer = self.renderer.tokenizer
        self.pooling = dict(pooling or {})
        self.depth: Depth | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    @property
    def dim(self) -> int:
        """Numbers in a vector: as many as in a token's state, or what the map makes of it."""
        return self.hidden_size if self.projection is None else self.projection.out_features

    @property
    def hidden_size(self) -> int:
        """Numbers in a token's state, and in what the pooler makes of them."""
        return state_width(self.decoder)

    def token_states(
        self, input_ids: Tensor, attention_mask: Tensor, rectangles: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Return the decoder's last hidden states: [texts, tokens] int64 twice to [texts, tokens, hidden]."""
        return token_states(self.decoder, input_ids, attention_mask, rectangles)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pooling_mask: Tensor,
        rectangles: Tensor | None = None,
    ) -> Tensor:
        """Embed rendered texts: three [texts, tokens] int64 to [texts, dim] float32.

        The vectors are of unit length if the contract says so. With `rectangles` the three are [1, tokens] of
        a packed batch (`model.packing`), and the vectors in the order of its texts.
        """
        vectors = self.pooled(input_ids, attention_mask, pooling_mask, rectangles)
        if self.projection is not None:
            with torch.autocast(vectors.device.type, enabled=False):
                vectors = self.projection(vectors.to(self.projection.weight.dtype)).float()
        return functional.normalize(vectors, dim=-1) if self.contract.normalize else vectors

    def pooled(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pooling_mask: Tensor,
        rectangles: Tensor | None = None,
    ) -> Tensor:
        """Return what the pooler gives, [texts, hidden] float32: before the map, and not of unit length."""
        if rectangles is None:
            return self.pooler(self.token_states(input_ids, attention_mask), pooling_mask).float()
        where = rectangles.tolist()
        states = self.token_states(input_ids, attention_mask, where)
        if self.pooler.stock:  # Of few operations: many calls of it cost less than padding to the longest.
            parts = zip(split(states, where), split(pooling_mask, where), strict=True)
            return torch.cat([self.pooler(*part).float() for part in parts])
        return self.pooler(unpacked(states, where), unpacked(pooling_mask, where)).float()
