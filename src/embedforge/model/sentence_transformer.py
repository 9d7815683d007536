"""A SentenceTransformer that is saved as `embedforge.save` saves: `save`, `save_pretrained`, `push_to_hub`.

sentence-transformers' own way writes the classes at hand, which are embedforge's, leaves the goldens without
vectors, and puts a card of its own in the place of ours.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
from sentence_transformers.base.modules import Normalize
from sentence_transformers.util.quantization import quantize_embeddings
from torch import Tensor
from typing_extensions import override

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, write_json
from embedforge.model.card import CARD, EVALUATION
from embedforge.model.modules import Pool, TextEncoder
from embedforge.model.projection import Dense
from embedforge.runtime import require_finite
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.contract import Contract

logger = logging.getLogger(__name__)
CARRIED = ("decontaminated.json", "merge.json")
"""Files of a model's folder that go on being true of a copy: what its training data was checked against, and
what it was merged from."""
OF_THESE_WEIGHTS = (EVALUATION, CARD)
"""Those that are true of the same vectors only."""
ROUNDED = ("int8", "uint8", "binary", "ubinary")
"""Precisions of `encode` in which NaN would be a number like others."""


class SentenceTransformer(sentence_transformers.SentenceTransformer):
    """sentence-transformers' own in all but how it is saved: as `embedforge.save` does."""

    origin: Path | None = None
    """The folder that it was loaded from, whose recipe, marks and card go along."""

    @override
    def encode(self, *inputs: Any, **options: Any) -> Any:
        """Encode as sentence-transformers does; vectors that are cut are of unit length if whole ones are.

        sentence-transformers leaves them shorter, so that inner products, and what an index makes of them,
        are no cosines; `cut_dimensions`, the server and `embedforge encode --dim` bring them to unit length.
        A column of a table (a pandas Series) counts as the list that it holds.

        Raises:
            EmbedforgeError: `truncate_dim` is not a number of dimensions that the model has; a vector is not
                finite.
        """
        inputs = tuple(_listed(given) for given in inputs)
        options |= {name: _listed(options[name]) for name in ("inputs", "sentences") if name in options}
        dim = options.get("truncate_dim")
        dim = self.truncate_dim if dim is None else dim
        if dim is not None:
            whole = next(module.get_embedding_dimension() for module in reversed(self) if _has_width(module))
            if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or not 0 < dim <= whole:
                raise EmbedforgeError(f"truncate_dim {dim!r}: the model's vectors have {whole} dimensions")
            if any(isinstance(module, Normalize) for module in self):
                options["normalize_embeddings"] = True
        if options.get("precision") in ROUNDED and "output_value" not in options:
            return self._rounded(inputs, options)
        vectors = super().encode(*inputs, **options)
        texts = options.get("inputs", options.get("sentences", inputs[0] if inputs else None))
        _refuse_not_finite(vectors, texts)
        return vectors

    def _rounded(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Encode to int8 or bits; a vector that is not finite shows only before it is rounded."""
        whole = {"precision": "float32", "convert_to_numpy": True, "convert_to_tensor": False}
        vectors = self.encode(*inputs, **options | whole)
        if not len(vectors):
            return super().encode(*inputs, **options)
        rounded = quantize_embeddings(np.atleast_2d(vectors), precision=options["precision"])
        if options.get("convert_to_tensor"):
            rounded = torch.from_numpy(rounded)
        elif not options.get("convert_to_numpy", True):
            rounded = list(torch.from_numpy(rounded))
        return rounded[0] if vectors.ndim == 1 else rounded

    @override
    def save(
        self,
        path: str,
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write the model as `embedforge.save` does: modules, contract, goldens, card.

        Other files in the folder stay. Of a model whose vectors have not changed since it was loaded, the
        card stays too. Where modules were added or taken away, there is no contract to write: then
        sentence-transformers saves in its own way, and a warning says so.

        Args:
            path: a folder.
            model_name: has no effect.
            create_model_card: false leaves README.md out.
            train_datasets: has no effect.
            safe_serialization: only True.

        Raises:
            EmbedforgeError: see `embedforge.save`; or pickles are asked for.
        """
        if not safe_serialization:
            raise EmbedforgeError("embedforge saves safetensors only; leave safe_serialization at True")
        if not self._has_our_modules():
            logger.warning(
                "%s: modules were added or taken away, which the contract knows nothing of: saved by "
                "sentence-transformers, without goldens",
                path,
            )
            super().save(path, model_name, create_model_card, train_datasets, safe_serialization)
            return
        target = Path(path)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as scratch:
            written = Path(scratch) / "model"
            self._write(written)
            if not create_model_card:
                (written / CARD).unlink()
            _move(written, target)

    def _has_our_modules(self) -> bool:
        kinds = [type(module) for module in self]
        rest = [kind for kind in kinds[2:] if kind not in (Dense, Normalize)]
        ours = kinds[:2] == [TextEncoder, Pool] and not rest and kinds.count(Dense) <= 1
        return ours and kinds.count(Normalize) == int(self[0].contract.normalize)

    def _write(self, folder: Path) -> None:
        from embedforge.model.encoder import embedding_model, save  # which makes this class

        origin = self.origin if self.origin is not None and (self.origin / CONTRACT).exists() else None
        recipe = None if origin is None else origin / "recipe.json"
        save(embedding_model(self), folder, read_object(recipe) if recipe and recipe.exists() else None)
        file = folder / "config_sentence_transformers.json"
        write_json(file, read_object(file) | self._get_model_config())
        if origin is None:
            return
        same = _same_vectors(Contract.load(origin), Contract.load(folder))
        for name in (*CARRIED, *(OF_THESE_WEIGHTS if same else ())):
            if (origin / name).exists():
                (folder / name).write_bytes((origin / name).read_bytes())


def _listed(given: Any) -> Any:
    """Return a column of a table as a list, and anything else as it is."""
    return given.to_list() if hasattr(given, "to_list") else given


def _refuse_not_finite(vectors: Any, texts: Any) -> None:
    """Refuse vectors that are not finite; those of a list, and states of tokens, are not looked at."""
    if isinstance(vectors, Tensor):
        if not bool(vectors.isfinite().all()):  # on its device
            _refuse_not_finite(vectors.float().cpu().numpy(), texts)
    elif isinstance(vectors, np.ndarray):
        require_finite(np.atleast_2d(vectors), [texts] if vectors.ndim == 1 else list(texts))


def _has_width(module: Any) -> bool:
    return hasattr(module, "get_embedding_dimension")


def _same_vectors(one: Contract, other: Contract) -> bool:
    """Tell whether two contracts are the same up to the rounding of their goldens."""
    if one.model_copy(update={"goldens": ()}) != other.model_copy(update={"goldens": ()}):
        return False
    if [golden.text for golden in one.goldens] != [golden.text for golden in other.goldens]:
        return False
    return all(
        len(a.vector) == len(b.vector) and np.allclose(a.vector, b.vector, atol=1e-6)
        for a, b in zip(one.goldens, other.goldens, strict=True)
    )


def _move(source: Path, target: Path) -> None:
    """Put files, and those of subfolders, in the place of older ones; the weights last."""
    files = sorted((file for file in source.rglob("*") if file.is_file()), key=lambda file: file.suffix)
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
