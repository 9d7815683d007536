"""A published checkpoint, or a saved model in another dtype, as one embedforge folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.model.encoder import embedding_model, load, save
from embedforge.model.folder import find_folder
from embedforge.model.llm2vec import load_llm2vec
from embedforge.model.nvembed import convert_nvembed, is_nvembed
from embedforge.text.contract import FILE_NAME as CONTRACT


def export(
    source: str,
    out: Path,
    *,
    adapters: Sequence[str] = (),
    dtype: str | None = None,
    **settings: Any,
) -> None:
    """Write `source` as one folder that `embedforge.load` reads.

    Args:
        source: an LLM2Vec base or first adapter; an official NV-Embed checkpoint, whose bytes are copied
            unless `dtype` changes; or a folder that embedforge saved, for another dtype.
        out: replaced if it holds a model of ours, otherwise new or empty.
        adapters: LLM2Vec's, in the order of training.
        dtype: of the written weights; the stored one when None.
        settings: further arguments of `load_llm2vec`; those that are None are left at their defaults.

    Raises:
        EmbedforgeError: `out` is the source; settings that a finished model has already; see `load_llm2vec`,
            `load` and `save`.
    """
    folder = find_folder(source)
    if folder.resolve() == out.resolve():
        raise EmbedforgeError(f"{out}: the export would replace its source; name another folder")
    chosen = {name: value for name, value in settings.items() if value is not None}
    if not (folder / CONTRACT).exists() and not is_nvembed(folder):
        save(load_llm2vec(source, adapters, dtype=dtype, **chosen), out)
        return
    if adapters or chosen:
        named = ", ".join(sorted(chosen | ({"adapters": adapters} if adapters else {})))
        raise EmbedforgeError(
            f"{source}: this is a finished model, whose contract says how text is wrapped and pooled; leave "
            f"out {named}"
        )
    if is_nvembed(folder) and dtype is None:
        convert_nvembed(folder, out)
        return
    recipe = folder / "recipe.json"
    model = embedding_model(load(source, device="cpu", dtype=dtype))
    save(model, out, read_object(recipe) if recipe.exists() else None, dtype=dtype)
