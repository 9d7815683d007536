"""`embedforge export --to`: load the model, write it in a form, run what was written, then keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from embedforge import __version__
from embedforge.errors import EmbedforgeError
from embedforge.export import gguf_files, graph_files, stock
from embedforge.export.forms import PACKAGES, require_form
from embedforge.export.parity import FLOAT32_COSINE, INT8_COSINE, Parity, Reference, table
from embedforge.export.texts import probes
from embedforge.files import replace_folder, write_json, write_text
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.encoder import embedding_model, load
from embedforge.model.folder import find_folder

MARKER = "export.json"
"""The file by which a folder is known as an export, which a later one may replace."""


@dataclass(frozen=True)
class Export:
    """What was written, and how it compares: the model itself first, the written file last."""

    folder: Path
    rows: tuple[Parity, ...]
    texts: int
    left_out: int = 0
    """Texts of the check that this form does not take: longer ones than the contract's, in a GGUF file."""

    def table(self) -> str:
        """Return the parity table as Markdown."""
        return table(self.rows, self.texts)


def export_to(
    source: str,
    out: Path,
    form: str,
    *,
    int8: bool = False,
    texts: Path | None = None,
    min_cosine: float | None = None,
) -> Export:
    """Write a model in another program's form, if what was written gives the same vectors.

    It is run with its own runtime on the contract's goldens and 200 more texts, and held to the token ids,
    pooling masks and vectors that the model itself has in float32. What is over the tolerance is not kept.

    Args:
        source: a model folder or hub id that `embedforge.load` reads.
        out: a new or empty folder, or an older export, which is replaced once the new one has passed.
        form: onnx, openvino, gguf or sentence-transformers.
        int8: weights in 8 bits; not for sentence-transformers.
        texts: a file of a text a line, in place of the 200 texts.
        min_cosine: least cosine of each text with the model's own vector; 0.9999, with int8 0.98, when None.

    Raises:
        EmbedforgeError: the form cannot hold the model, with the reason; a package is missing; what was
            written has other tokens or vectors than the model.
    """
    require_form(form, int8)
    folder = find_folder(source)
    if folder.resolve() == out.resolve():
        raise EmbedforgeError(f"{out}: the export would replace its source; name another folder")
    model = embedding_model(load(source, device="cpu", dtype="float32")).eval()
    if obstacle := _obstacle(form, model):
        raise EmbedforgeError(f"{source}: --to {form} cannot hold this model: {obstacle}")
    least = min_cosine if min_cosine is not None else INT8_COSINE if int8 else FLOAT32_COSINE
    given = probes(model.renderer, texts)
    reference = Reference(model, gguf_files.checkable(given) if form == "gguf" else given)
    with replace_folder(out, MARKER) as partial:
        if form in PACKAGES:
            write_json(partial / MARKER, facts_of(form, model))  # embed.py reads it, in the check too
        rows = (reference.parity, *_write(form, source, model, partial, reference, int8, least))
        export = Export(out, rows, len(reference.probes), len(given) - len(reference.probes))
        _describe(form, model, partial, export, reference, least)
    return export


def _obstacle(form: str, model: EmbeddingModel) -> str | None:
    if form == "sentence-transformers":
        return stock.obstacle(model)
    if form == "gguf":
        return gguf_files.obstacle(model)
    return graph_files.obstacle(model)


def _write(
    form: str,
    source: str,
    model: EmbeddingModel,
    folder: Path,
    reference: Reference,
    int8: bool,
    least: float,
) -> Sequence[Parity]:
    if form == "sentence-transformers":
        return stock.write(source, folder, reference, least)
    if form == "gguf":
        return gguf_files.write(model, folder, reference, int8, least)
    return graph_files.write(form, model, folder, reference, int8, least)


def facts_of(form: str, model: EmbeddingModel) -> dict[str, Any]:
    """Return what an exported folder says of itself."""
    return {
        "form": form,
        "embedforge": __version__,
        "torch": torch.__version__,
        "fingerprint": model.contract.fingerprint,
        "dim": model.dim,
        "ids": {
            "bos": model.tokenizer.bos_token_id,
            "eos": model.tokenizer.eos_token_id,
            "pad": model.renderer.pad_id,
        },
    }


def _describe(
    form: str, model: EmbeddingModel, folder: Path, export: Export, reference: Reference, least: float
) -> None:
    """Write what the check said, and how the folder is used."""
    check = {
        "texts": export.texts,
        "left_out": export.left_out,
        "min_cosine": least,
        "rows": [row.facts() for row in export.rows],
    }
    write_json(folder / MARKER, facts_of(form, model) | {"check": check})
    if form == "sentence-transformers":
        return  # its README.md is the model's card
    contract = model.contract
    write_text(
        folder / "README.md",
        _README.format(
            form=form,
            pooling=contract.pooling,
            attention=contract.attention,
            dim=model.dim,
            max_tokens=contract.max_tokens,
            prefix=contract.query_prefix(),
            table=export.table(),
            texts=export.texts,
            left_out=_LEFT_OUT.format(export.left_out) if export.left_out else "",
            use=gguf_files.use(model, reference.probes)
            if form == "gguf"
            else graph_files.USE.format(package=PACKAGES[form]),
        ),
    )


_LEFT_OUT = " ({} more have more tokens than it takes)"

_README = """# A text-embedding model as {form}

Written by `embedforge export`. {dim} dimensions; pooling: {pooling}; attention: {attention}; at most
{max_tokens} tokens a text. Before a query stands {prefix!r}, unless another instruction is given.

{use}

## The check

What stands here was run on {texts} texts{left_out} and compared with the model itself:

{table}
"""
