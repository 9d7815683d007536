"""Writing an index folder, generation after generation; see `folder_store` for what is in it."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import follow_umask, read_object, refuse_file, try_lock, write_json
from embedforge.ranking import Floats
from embedforge.search.document import Document
from embedforge.search.folder_store import INDEX_FILE, OURS, VERSION, FolderStore, Part
from embedforge.search.inverted import hash64
from embedforge.search.segment import write_segment
from embedforge.search.store import Change, Identity

SEGMENT_DOCUMENTS = 250_000
"""Most documents of a segment: bounds the memory that counting its words takes."""
LOCK = ".lock"
_VERSION_1 = ("vectors.npy", "documents.jsonl", "offsets.npy")


def create(
    folder: Path, identity: Identity, documents: Iterable[Document], vectors: NDArray[Any]
) -> FolderStore:
    """Write an index to `folder`; one that is there is replaced once the new one is complete.

    Raises:
        EmbedforgeError: the folder holds something else, vectors and documents do not fit, or the disk is
            full.
    """
    refuse_foreign(folder)
    vectors = checked_vectors(vectors, None, identity.dimensions)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _writing(folder):
            before = read_object(folder / INDEX_FILE) if (folder / INDEX_FILE).exists() else {}
            generation = _next(before)
            record = {
                "version": VERSION,
                "model": identity.model,
                "fingerprint": identity.fingerprint,
                "dimensions": identity.dimensions,
                "mode": identity.mode,
                "dense_share": identity.dense_share,
                "root": identity.root,
                "generation": generation,
                "segments": _write_segments(folder, generation, vectors, documents),
            }
            return _publish(folder, record)
    except BaseException:
        if is_new and not (folder / INDEX_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def refuse_foreign(folder: Path) -> None:
    """Refuse a place where no index can be written.

    Raises:
        EmbedforgeError: a file, or a folder that holds something else.
    """
    refuse_file(folder)
    if folder.exists() and _is_foreign(folder):
        raise EmbedforgeError(
            f"{folder}: this folder holds something else, there is no {INDEX_FILE} in it; name a new or "
            "empty one"
        )


def _is_foreign(folder: Path) -> bool:
    """Tell a folder with something else from ours, be it what a killed process left of its first lot."""
    left = (item.name for item in folder.iterdir() if not OURS.fullmatch(item.name))
    return not (folder / INDEX_FILE).exists() and any(name != LOCK for name in left)


def checked_vectors(vectors: NDArray[Any] | None, documents: int | None, dimensions: int) -> NDArray[Any]:
    """Refuse vectors that no search could use.

    Raises:
        EmbedforgeError: not [documents, dimensions], or not finite.
    """
    shape = None if vectors is None else vectors.shape
    if vectors is None or vectors.ndim != 2 or vectors.shape[1] != dimensions:
        raise EmbedforgeError(f"an index needs vectors [documents, {dimensions}], got shape {shape}")
    if documents is not None and len(vectors) != documents:
        raise EmbedforgeError(f"there are {len(vectors)} vectors for {documents} documents")
    for start in range(0, len(vectors), SEGMENT_DOCUMENTS):
        if not np.isfinite(vectors[start : start + SEGMENT_DOCUMENTS]).all():
            raise EmbedforgeError("an index needs finite vectors, some of these are not")
    return vectors


def change(folder: Path, changes: Change) -> FolderStore:
    """Write the next generation, and return it; an index of version 1 becomes one of today's.

    Raises:
        EmbedforgeError: no index, unusable vectors, another process is writing, or the disk is full.
    """
    FolderStore(folder)  # says what is wrong before there is a lock in it
    with _writing(folder):
        store = FolderStore(folder)
        if any(part.segment.is_old for part in store.parts):
            store = _rewritten(store)
        generation = _next(store.record)
        documents = list(changes.documents)
        gone = {hash64(name) for name in (*changes.remove_ids, *(document.id for document in documents))}
        segments = [_without(folder, part, gone, changes.remove_files, generation) for part in store.parts]
        kept = [segment for segment in segments if segment is not None]
        if documents:
            vectors = checked_vectors(changes.vectors, len(documents), store.facts.dimensions)
            kept += _write_segments(folder, generation, vectors, documents)
        return _publish(folder, {**store.record, "generation": generation, "segments": kept})


def compact(folder: Path) -> FolderStore:
    """Write the next generation without what is removed, in as few segments as can be.

    Raises:
        EmbedforgeError: as for `change`.
    """
    FolderStore(folder)
    with _writing(folder):
        return _rewritten(FolderStore(folder))


def _rewritten(store: FolderStore) -> FolderStore:
    generation = _next(store.record)
    vectors = np.concatenate([*_vectors(store)])
    segments = _write_segments(store.folder, generation, vectors, store.all_documents())
    record = {**store.record, "version": VERSION, "generation": generation, "segments": segments}
    return _publish(store.folder, record)


def _vectors(store: FolderStore) -> Iterator[Floats]:
    yield np.empty((0, store.facts.dimensions), dtype=np.float32)
    for part in store.parts:
        yield part.segment.vectors if part.alive is None else part.segment.vectors[part.alive]


def _without(
    folder: Path, part: Part, gone: set[int], files: Sequence[str], generation: str
) -> dict[str, Any] | None:
    """Write which documents of a segment are left; None where none are."""
    dead = np.isin(part.segment.ids, np.array(sorted(gone), dtype=np.uint64))
    if files:
        wanted = set(files)
        dead |= np.array([value in wanted for value in part.segment.values("file")])
    before = 0
    if part.alive is not None:
        before = int((~part.alive).sum())
        dead |= ~part.alive
    if dead.all():
        return None
    if dead.sum() == before:
        return dict(part.record)
    name = f"removed-{generation}-{secrets.token_hex(4)}.npy"
    np.save(folder / name, dead, allow_pickle=False)
    return {**part.record, "removed": name}


def _write_segments(
    folder: Path, generation: str, vectors: NDArray[Any], documents: Iterable[Document]
) -> list[dict[str, Any]]:
    segments: list[dict[str, Any]] = []
    rest = iter(documents)
    try:
        for start in range(0, len(vectors), SEGMENT_DOCUMENTS):
            block = vectors[start : start + SEGMENT_DOCUMENTS]
            name = f"segment-{generation}-{secrets.token_hex(4)}"
            segments.append({"name": name, "documents": len(block)})
            (folder / name).mkdir()
            write_segment(folder / name, block, itertools.islice(rest, len(block)))
            follow_umask(folder / name)
        left = sum(1 for _ in rest)
        if left:
            raise EmbedforgeError(f"there are {len(vectors)} vectors for {len(vectors) + left} documents")
    except BaseException as error:
        for segment in segments:
            shutil.rmtree(folder / segment["name"], ignore_errors=True)
        if isinstance(error, OSError):
            raise EmbedforgeError(
                f"{folder}: the index could not be written, nothing was changed ({error}); is the disk full?"
            ) from error
        raise
    return segments


def _next(record: Mapping[str, Any]) -> str:
    return str(int(record.get("generation", 0)) + 1)


def _publish(folder: Path, record: dict[str, Any]) -> FolderStore:
    """Make `record` the newest generation, then delete what it does not name."""
    write_json(folder / INDEX_FILE, record)
    store = FolderStore(folder)
    named = {name for part in record["segments"] for name in (part["name"], part.get("removed"))}
    for item in folder.iterdir():
        if item.name in named or not (OURS.fullmatch(item.name) or item.name in _VERSION_1):
            continue
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
    return store


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two writers at once would each drop what the other adds.

    Raises:
        EmbedforgeError: another process is writing.
    """
    with try_lock(folder / LOCK) as mine:
        if not mine:
            raise EmbedforgeError(
                f"{folder}: another process is writing to this index; try again when it is done"
            )
        yield
