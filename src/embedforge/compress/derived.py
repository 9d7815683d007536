"""A model made of another one: what its folder takes over from that one's."""

from __future__ import annotations

from pathlib import Path

from embedforge.data.marks import copy_mark_of_model
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.encoder import save
from embedforge.model.folder import find_folder
from embedforge.text.contract import FILE_NAME as CONTRACT


def require_source(model: str, out: Path, purpose: str) -> Path:
    """Return the folder of a model that another is to be made of.

    Args:
        model: a folder or a hub id.
        out: where the other is to be written.
        purpose: "rotated", for messages.

    Raises:
        EmbedforgeError: it is not embedforge's, or would be replaced.
    """
    source = find_folder(model)
    if not (source / CONTRACT).exists():
        raise EmbedforgeError(
            f"{model}: has no contract.json, and only a model that embedforge saved can be {purpose}; write "
            f"a published checkpoint as one with: embedforge export {model} FOLDER"
        )
    if source.resolve() == out.resolve():
        raise EmbedforgeError(f"{out}: the {purpose} model would replace its source; name another folder")
    return source


def save_derived(model: EmbeddingModel, source: Path, out: Path) -> None:
    """Save a model with the recipe of the one that it was made of, and with its mark of decontamination."""
    recipe = source / "recipe.json"
    save(model, out, read_object(recipe) if recipe.exists() else None)
    copy_mark_of_model(source, out)
