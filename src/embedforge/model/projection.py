"""A linear map after pooling: part of the model, saved as sentence-transformers' own Dense."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers.base.modules import Dense as StockDense
from torch import Tensor, nn
from typing_extensions import override

from embedforge.errors import EmbedforgeError
from embedforge.model.embedding_model import EmbeddingModel

FOLDER = "2_Dense"


class Dense(StockDense):
    """sentence-transformers' own, for vectors of any dtype: poolers give float32 whatever the weights."""

    @override
    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        name = self.module_input_name
        return super().forward(features | {name: features[name].to(self.linear.weight.dtype)})


def dense_of(projection: nn.Linear) -> Dense:
    """Wrap a map as a module of sentence-transformers, sharing its weights."""
    dense = Dense(
        projection.in_features,
        projection.out_features,
        bias=projection.bias is not None,
        activation_function=nn.Identity(),
    )
    dense.linear = projection
    return dense


def save_projection(projection: nn.Linear | None, folder: Path) -> None:
    """Write a map into a model's folder, in float32; nothing where there is none."""
    if projection is None:
        return
    copy = nn.Linear(projection.in_features, projection.out_features, bias=projection.bias is not None)
    copy.load_state_dict({name: value.float().cpu() for name, value in projection.state_dict().items()})
    (folder / FOLDER).mkdir()
    dense_of(copy).save(str(folder / FOLDER))


def load_projection(folder: Path) -> nn.Linear | None:
    """Read the map of a model's folder, in float32; None where there is none.

    Raises:
        EmbedforgeError: its files are missing or damaged.
    """
    if not (folder / FOLDER).is_dir():
        return None
    try:
        dense = StockDense.load(str(folder), subfolder=FOLDER, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise EmbedforgeError(
            f"{folder / FOLDER}: the map after the pooling cannot be read ({error}); download it again"
        ) from None
    return dense.linear.float()


def restore_projection(model: EmbeddingModel, state: Mapping[str, Tensor]) -> None:
    """Give a model an empty map of the shape that a finished stage's weights have one of."""
    weight = state.get("projection.weight")
    if weight is not None and model.projection is None:
        model.projection = empty_map(weight.shape[1], weight.shape[0]).to(model.device)


def empty_map(width: int, out: int) -> nn.Linear:
    """Return a map of zeros, in float32, from vectors of `width` numbers to those of `out`."""
    return nn.Linear(width, out, bias=True, dtype=torch.float32).apply(_zero)


def rotate(model: EmbeddingModel, rotation: NDArray[np.float64]) -> None:
    """Turn a model's vectors by a rotation, folded into the map after the pooling or made one.

    Args:
        model: its `projection` is replaced.
        rotation: orthogonal [dim, dim], for `vectors @ rotation`.

    Raises:
        EmbedforgeError: it is not orthogonal, or of another width.
    """
    width = model.dim
    if rotation.shape != (width, width) or not np.allclose(rotation.T @ rotation, np.eye(width), atol=1e-8):
        raise EmbedforgeError(f"a rotation of {width} numbers is orthogonal, this {rotation.shape} is not")
    turn, old = torch.from_numpy(np.ascontiguousarray(rotation.T)), model.projection
    turned = empty_map(model.hidden_size, width)
    with torch.no_grad():
        turned.weight.copy_(turn if old is None else turn @ old.weight.double().cpu())
        if old is not None and old.bias is not None:
            turned.bias.copy_(turn @ old.bias.double().cpu())
    model.projection = turned.to(model.device)


def _zero(module: Any) -> None:
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
