"""The search index of a run: the folder's documented definitions, and the passages of its other files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from embedforge.console import advancing, note, progress_bar
from embedforge.documents import Chunk, Folder, Pair
from embedforge.documents.draw import draw
from embedforge.encode import encode
from embedforge.files import read_json, write_json
from embedforge.model.encoder import embedding_model, load
from embedforge.prove.held_out import HeldOut
from embedforge.prove.systems import Encoded
from embedforge.runtime import pick_device
from embedforge.search import Document, Mode, build_index

MADE_OF = "made-of.json"


def passages_of(folder: Folder) -> list[Pair | Chunk]:
    """Return what is searched: of code the described definitions, of all other files every passage."""
    described = [pair for pair in (*folder.train_pairs, *folder.pairs) if pair.kind == "description"]
    files = {pair.file for pair in described}
    return [*described, *(chunk for chunk in (*folder.train, *folder.held_out) if chunk.file not in files)]


def index_folder(
    out: Path,
    model_folder: Path,
    folder: Folder,
    held_out: HeldOut,
    encoded: Encoded,
    most: int,
    searched: tuple[Mode, float],
    made_of: str,
    device: str | None,
    console: Console,
) -> None:
    """Index the folder with the kept model; a part drawn by the seed where time is short.

    Args:
        out: of the run.
        model_folder: of the model that is kept.
        folder: what was read.
        held_out: whose vectors are there already.
        encoded: these vectors, by that model.
        most: passages to encode beyond these.
        searched: how it is to be searched, and the weight of meaning, see `fusion.best_mode`.
        made_of: hash of what the index depends on; one that was made of the same is left as it is.
        device: as for `load`.
        console: told what is left out.
    """
    made = out / "index" / MADE_OF
    if made.exists() and read_json(made) == made_of:
        return
    pairs = [*held_out.pairs, *held_out.distractors]
    known = {pair.id: vector for pair, vector in zip(pairs, encoded.documents, strict=True)}
    passages = passages_of(folder)
    new = [passage for passage in passages if passage.id not in known]
    chosen = draw((passage.id for passage in new), most, seed=0)
    if len(chosen) < len(new):
        left_out = len(new) - len(chosen)
        held = len(passages) - left_out
        note(
            f"the search index holds {held:,} of {len(passages):,} passages; more --minutes index more",
            console,
        )
    new = [passage for passage in new if passage.id in chosen]
    made.unlink(missing_ok=True)  # an index that is being replaced is made of neither
    model = embedding_model(load(str(model_folder), device=str(pick_device(device))))
    contract = model.contract
    with progress_bar(console) as bar:
        vectors = encode(
            model,
            [_text(passage) for passage in new],
            contract.document_prefix(),
            suffix=contract.document_suffix(),
            progress=advancing(bar, "indexing", len(new)),
        )
    known |= {passage.id: vector for passage, vector in zip(new, vectors, strict=True)}
    shown = [passage for passage in passages if passage.id in known]
    build_index(
        out / "index",
        np.stack([known[passage.id] for passage in shown]),
        [
            Document(passage.id, _text(passage), _location(passage), {"file": passage.file})
            for passage in shown
        ],
        model=str(model_folder.resolve()),
        contract=contract,
        mode=searched[0],
        dense_share=searched[1],
    )
    write_json(made, made_of)


def _text(passage: Pair | Chunk) -> str:
    return passage.document if isinstance(passage, Pair) else passage.text


def _location(passage: Pair | Chunk) -> str:
    return f"{passage.file}, {passage.place}" if passage.place else passage.file
