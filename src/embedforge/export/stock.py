"""A folder that sentence-transformers reads with its own modules: no embedforge, no code of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from embedforge.errors import EmbedforgeError
from embedforge.export.parity import Floats, Parity, Reference, by_frame
from embedforge.export.texts import Probe
from embedforge.files import read_json, read_object
from embedforge.model.decoder import quiet
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.encoder import embedding_model, load, save
from embedforge.model.folder import find_folder
from embedforge.model.layout import obstacle_to_stock

_OTHERWISE = (
    ". Where embedforge is installed, a model folder loads as SentenceTransformer(folder, "
    "trust_remote_code=True); --to onnx needs no embedforge"
)


class _Stock:
    def __init__(self, folder: Path) -> None:
        with quiet():
            self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})

    def tokens(self, probe: Probe) -> tuple[list[int], list[int] | None]:
        ids = self.model.tokenizer(
            [probe.prefix + probe.text], truncation=True, max_length=self.model.max_seq_length
        )["input_ids"][0]
        return list(ids), None

    def vectors(self, probes: Sequence[Probe]) -> Floats:
        return by_frame(
            probes,
            lambda texts, prefix, _: self.model.encode(
                texts, prompt=prefix, batch_size=32, show_progress_bar=False
            ),
        )


def obstacle(model: EmbeddingModel) -> str | None:
    """Say what sentence-transformers' own modules cannot do of a contract; None when they can."""
    reason = obstacle_to_stock(model.contract)
    return None if reason is None else f"in plain sentence-transformers {reason}{_OTHERWISE}"


def write(source: str, folder: Path, reference: Reference, least: float) -> Sequence[Parity]:
    """Write the model in the dtype that it has, and run it in plain sentence-transformers, in float32."""
    recipe = find_folder(source) / "recipe.json"
    model = embedding_model(load(source, device="cpu"))
    save(model, folder, read_object(recipe) if recipe.exists() else None)
    modules = [module["type"] for module in read_json(folder / "modules.json")]
    if own := [name for name in modules if not name.startswith("sentence_transformers.")]:
        raise EmbedforgeError(
            f"{source}: --to sentence-transformers cannot hold this model: its vectors come out otherwise "
            f"there (the note above says what differs), so it needs {own[0]}{_OTHERWISE}"
        )
    parity = reference.compare("sentence-transformers", _Stock(folder))
    reference.require(parity, least)
    return [parity]
