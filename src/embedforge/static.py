"""A static embedder by numpy: a query in half a second of processor time, a folder's passages, without torch.

A decoder without layers is a table: a token's state is its row, normalised. A query then needs the rows of
its own tokens, their mean, and the map after it. That is not worth a second of importing torch, nor five of
loading a model with everything that could be in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.model.shards import WEIGHTS, TensorEntry, read_header
from embedforge.ranking import Floats
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.contract import Contract
from embedforge.text.goldens import VECTOR_NUMBERS, check_goldens, check_vectors
from embedforge.text.render import Rendered, Renderer
from embedforge.text.saved_tokenizer import SavedTokenizer

_TABLE, _NORM = "embed_tokens.weight", "norm.weight"
_MAP, _BIAS = "linear.weight", "linear.bias"
_POOLING, _DENSE = "1_Pooling", "2_Dense"


class StaticEmbedder:
    """What `embedforge.load` gives of a static model, on one core; `open_static` makes it."""

    def __init__(self, folder: Path, contract: Contract, epsilon: float) -> None:
        tensors = {entry.name: entry for entry in read_header(folder / WEIGHTS)}
        self.contract = contract
        self.renderer = Renderer(SavedTokenizer(folder), contract)
        self._table = _mapped(tensors[_TABLE])
        self._norm = _float32(_mapped(tensors[_NORM]))
        self._epsilon = epsilon
        self._map: tuple[Floats, Floats | None] | None = None
        if (folder / _DENSE).is_dir():
            dense = {entry.name: entry for entry in read_header(folder / _DENSE / WEIGHTS)}
            bias = _float32(_mapped(dense[_BIAS])) if _BIAS in dense else None
            self._map = _float32(_mapped(dense[_MAP])), bias

    def encode(self, texts: Sequence[str], prefix: str = "", *, suffix: str = "") -> Floats:
        """Return the vectors of texts in their order, float32 [texts, dim]; see `embedforge.encode`."""
        return self.embed(self.renderer.render(texts, prefix, suffix=suffix))

    def embed(self, rendered: Sequence[Rendered]) -> Floats:
        """Return the vectors of at least one rendered text, float32 [texts, dim]."""
        return np.stack([self._vector(text.input_ids, text.pooling_mask) for text in rendered])

    def _vector(self, ids: list[int], mask: list[int]) -> Floats:
        pooled = np.array(ids)[np.array(mask, dtype=bool)]
        rows = _float32(self._table[pooled])
        rows *= self._norm / np.sqrt(np.mean(rows * rows, axis=1, keepdims=True) + self._epsilon)
        vector = rows.mean(axis=0)
        if self._map is not None:
            weight, bias = self._map
            vector = weight @ vector if bias is None else weight @ vector + bias
        if self.contract.normalize:
            return _unit(vector)
        return np.asarray(vector, dtype=np.float32)


def open_static(folder: Path) -> StaticEmbedder | None:
    """Open a static embedder's folder; None where it is not one, or its goldens do not come out by numpy.

    What is wrong with a folder is for `embedforge.load` to say, which then reads it.
    """
    if not (folder / CONTRACT).exists():
        return None
    try:
        contract, config = Contract.load(folder), read_object(folder / "config.json")
        if not _is_static(folder, contract, config):
            return None
        made = StaticEmbedder(folder, contract, float(config.get("rms_norm_eps", 1e-6)))
        check_goldens(made.renderer, contract)
        vectors = [
            made.encode([golden.text], golden.prefix, suffix=golden.suffix)[0] for golden in contract.goldens
        ]
        check_vectors(contract, [tuple(_unit(vector)[:VECTOR_NUMBERS].tolist()) for vector in vectors])
    except (EmbedforgeError, OSError, KeyError, ValueError):
        return None
    return made


def _is_static(folder: Path, contract: Contract, config: dict[str, Any]) -> bool:
    """Tell a table with a norm, a mean and at most a linear map behind it; only goldens can prove it one."""
    if config.get("num_hidden_layers") != 0 or contract.pooling != "mean":
        return False
    if not any(golden.vector for golden in contract.goldens) or (folder / _POOLING / WEIGHTS).exists():
        return False
    if {entry.name for entry in read_header(folder / WEIGHTS)} != {_TABLE, _NORM}:
        return False
    if not (folder / _DENSE).is_dir():
        return True
    activation = str(read_object(folder / _DENSE / "config.json").get("activation_function", ""))
    return activation.endswith(".Identity")


def _mapped(entry: TensorEntry) -> NDArray[Any]:
    """Map a stored tensor; bfloat16, which numpy has not, as the uint16 that its bits are."""
    kinds: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    return np.memmap(entry.file, kinds[entry.dtype], "r", entry.begin, entry.shape)


def _float32(values: NDArray[Any]) -> Floats:
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.array(values, dtype=np.float32)


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)
