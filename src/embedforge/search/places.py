"""Where an index and its model are: a folder, a run's folder, or a store's URL."""

from __future__ import annotations

from pathlib import Path

from embedforge.errors import EmbedforgeError
from embedforge.search.folder_store import INDEX_FILE, FolderStore
from embedforge.search.store import Store

MODEL_FOLDERS = ("model", "run/model")
"""Where a run has its model, seen from the run's folder; runs of earlier versions had run/model alone."""
LANCE_TABLE = "documents.lance"


def is_url(where: str | Path) -> bool:
    """Tell what LanceDB holds: s3://bucket/name, gs://, az://, db://name, or a folder as lance://folder."""
    return "://" in str(where)


def is_lance(where: str | Path) -> bool:
    """Tell an index in LanceDB from one in a folder of ours."""
    return is_url(where) or (Path(where) / LANCE_TABLE).is_dir()


def exists(where: str | Path) -> bool:
    """Tell whether there is an index."""
    if is_lance(where):
        from embedforge.search import lance_store

        return lance_store.exists(str(where))
    return any((place / INDEX_FILE).exists() for place in _places(Path(where)))


def find_store(where: str | Path) -> Store:
    """Open the index of a folder, a run's folder or a URL.

    Raises:
        EmbedforgeError: there is none, or it is damaged.
    """
    if is_lance(where):
        from embedforge.search.lance_store import LanceStore

        return LanceStore(str(where))
    return FolderStore(index_folder_of(Path(where)))


def index_folder_of(folder: Path) -> Path:
    """Return the index's own folder, given it or that of a run.

    Raises:
        EmbedforgeError: there is no index.
    """
    for place in _places(folder):
        if (place / INDEX_FILE).exists():
            return place
    raise EmbedforgeError(
        f"{folder}: there is no index here; make one with: embedforge quickstart --out {folder}, or adapt, "
        "or embedforge index FOLDER --model MODEL"
    )


def _places(folder: Path) -> tuple[Path, Path]:
    return folder / "index", folder


def find_model(where: str, named: str) -> str:
    """Return the folder or name of an index's model: beside it in a run, else what the index names.

    Raises:
        EmbedforgeError: it is not there any more.
    """
    if not is_url(where):
        beside = next((Path(where) / name for name in MODEL_FOLDERS if (Path(where) / name).exists()), None)
        if beside is not None:
            return str(beside)
    if Path(named).is_absolute() and not Path(named).exists():
        raise EmbedforgeError(
            f"{where}: its model '{named}' is not there any more; name another place of it with --model, or "
            "search by words alone with --mode lexical"
        )
    return named
