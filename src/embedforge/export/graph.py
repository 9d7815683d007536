"""The model as one graph of tensors: token ids and masks in, vectors out, with the pooling inside."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from embedforge.errors import EmbedforgeError
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.pooler import Pooler
from embedforge.model.pooling import LatentAttention, average

LARGEST_FILE = 1_800_000_000
"""Bytes of weights that go into one ONNX file; the format ends at two gigabytes, and more lies beside it."""

OUTPUT = "sentence_embedding"
INPUTS = ("input_ids", "attention_mask", "pooling_mask")


class FoldedLatent(Pooler):
    """Latent attention with its folded matrices as weights, for every token of a batch, padding included.

    What latent.py computes for pooled tokens alone depends on how many there are, which no graph can hold.
    """

    def __init__(self, pooler: LatentAttention) -> None:
        super().__init__(pooler.latents.shape[1])
        self.heads = pooler.attention.heads
        self.norm = pooler.attention.norm
        self.feed_forward = pooler.cross_attend_blocks[1]
        with torch.no_grad():
            scores, values = pooler.attention.fold(pooler.latents)
        self.register_buffer("scores", scores)
        self.register_buffer("values", values)

    @override
    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        mask = pooling_mask.bool()
        states = token_states.masked_fill(~mask[..., None], 0.0)
        scores = (self.norm(states) @ self.scores).unflatten(-1, (self.heads, -1))
        attended = scores.softmax(dim=-1).flatten(-2) @ self.values + states
        return average(self.feed_forward(attended) + attended, mask, mask)


class EmbeddingGraph(nn.Module):
    """An `EmbeddingModel` in float32, of what can be written as a graph; its weights are shared."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model
        pooler = model.pooler
        self.pooler = FoldedLatent(pooler) if isinstance(pooler, LatentAttention) else pooler

    @override
    def forward(self, input_ids: Tensor, attention_mask: Tensor, pooling_mask: Tensor) -> Tensor:
        """Embed: three [texts, tokens] int64 to [texts, dim] float32."""
        vectors = self.pooler(self.model.token_states(input_ids, attention_mask), pooling_mask)
        if self.model.projection is not None:
            vectors = self.model.projection(vectors)
        return functional.normalize(vectors, dim=-1) if self.model.contract.normalize else vectors


def write_onnx(model: EmbeddingModel, file: Path) -> None:
    """Write a model in float32 as ONNX with torch's own exporter, any number of texts and tokens.

    Raises:
        EmbedforgeError: torch's exporter cannot follow the decoder or the pooling.
    """
    batch = model.renderer.batch(["how deep is the river?", "two lines,\nand a few more words"])
    shape = {0: "texts", 1: "tokens"}
    try:
        with torch.no_grad(), _silence():
            program = torch.onnx.export(
                EmbeddingGraph(model).eval(),
                (),
                kwargs={name: batch[name] for name in INPUTS},
                dynamic_shapes=dict.fromkeys(INPUTS, shape),
                output_names=[OUTPUT],
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's own classes, and whatever the decoder's code raises under it
        kind = model.decoder.config.model_type
        raise EmbedforgeError(
            f"torch {torch.__version__} cannot write this model ({kind}, pooling '{model.contract.pooling}') "
            f"as ONNX: {_first_line(error)}. embedforge serve runs it as it is"
        ) from error
    assert program is not None
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    program.save(str(file), external_data=size > LARGEST_FILE)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Leave out what the exporter says of itself; what it cannot do, it raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
