"""`embedforge search`: the text of a quickstart or adapt run, by meaning."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from embedforge.console import stdout
from embedforge.errors import EmbedforgeError
from embedforge.search.index import INDEX_FILE, Hit, Index

LINES_SHOWN = 6
MODEL_FOLDERS = ("run/model", "model")


def search(folder: Path, query: str, *, k: int = 5, device: str | None = None) -> list[Hit]:
    """Print the best `k` documents for a query, and return them.

    Args:
        folder: of a quickstart or adapt run, or an index (then its model is where the index says).
        query: in words.
        k: number of hits.
        device: "cpu", "cuda", ...

    Raises:
        EmbedforgeError: there is no index, its model is gone or another one, or the query is empty.
    """
    if not query.strip():
        raise EmbedforgeError("the query is empty; say what to look for, in words")
    index_folder = folder / "index" if (folder / "index" / INDEX_FILE).exists() else folder
    if not (index_folder / INDEX_FILE).exists():
        raise EmbedforgeError(
            f"{folder}: there is no index here; make one with: embedforge quickstart --out {folder}, or adapt"
        )
    index = Index.load(index_folder)
    model_folder = next(
        (folder / name for name in MODEL_FOLDERS if (folder / name).exists()), Path(index.model)
    )
    if not model_folder.exists():
        raise EmbedforgeError(f"{index_folder}: its model '{model_folder}' is not there any more")
    from embedforge.encode import encode  # torch, once it is known that there is something to search
    from embedforge.model.encoder import embedding_model, load
    from embedforge.runtime import pick_device

    model = embedding_model(load(str(model_folder), device=str(pick_device(device))))
    contract = model.contract
    index.check(contract, str(model_folder))
    vectors = encode(model, [query], contract.query_prefix(), suffix=contract.query_suffix())
    hits = index.search(vectors[0], k)
    console = stdout()
    for rank, hit in enumerate(hits, start=1):
        head = Text.assemble((f"{rank}.", "bold"), " ", (hit.document.location, "cyan"), f"  {hit.score:.3f}")
        console.print(head)
        lines = hit.document.text.strip().splitlines()
        more = ["…"] if len(lines) > LINES_SHOWN else []
        console.print("\n".join("   " + line for line in [*lines[:LINES_SHOWN], *more]))
    return hits
