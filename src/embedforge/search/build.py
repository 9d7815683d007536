"""Making an index and changing it, whatever store holds it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.search import folder_write
from embedforge.search.document import DENSE_SHARE, Document, Mode
from embedforge.search.places import index_folder_of, is_lance, is_url
from embedforge.search.store import Change, Identity, Store
from embedforge.text.contract import Contract


def build_index(
    where: str | Path,
    vectors: NDArray[Any],
    documents: Iterable[Document],
    *,
    model: str,
    contract: Contract,
    mode: Mode = "fused",
    dense_share: float = DENSE_SHARE,
    root: str = "",
) -> None:
    """Write an index; an older one there is replaced once the new one is complete.

    Args:
        where: a folder, created if it does not exist, or a store's URL.
        vectors: [documents, dimensions], the documents' embeddings, in their order.
        documents: one for each vector.
        model: name or folder of the model, which searches look up.
        contract: the model's, checked again at every search.
        mode: how it is searched where nothing is said.
        dense_share: weight of meaning where both sides are fused, from 0 to 1.
        root: the folder whose files these are, where they are.

    Raises:
        EmbedforgeError: the folder holds something else, vectors and documents do not fit, or the disk is
            full.
    """
    if vectors.ndim != 2 or not len(vectors):
        raise EmbedforgeError(f"an index needs vectors [documents, dimensions], got shape {vectors.shape}")
    identity = Identity(model, contract.fingerprint, vectors.shape[1], mode, root, dense_share)
    if is_url(where):
        from embedforge.search import lance_store

        lance_store.create(str(where), identity, documents, vectors)
    else:
        folder_write.create(Path(where), identity, documents, vectors)


def change_index(where: str | Path, change: Change) -> Store:
    """Change an index in one step; returns what it is now.

    Raises:
        EmbedforgeError: no index, unusable vectors, or the disk is full.
    """
    if is_lance(where):
        from embedforge.search import lance_store

        return lance_store.change(str(where), change)
    return folder_write.change(index_folder_of(Path(where)), change)


def compact_index(where: str | Path) -> Store:
    """Drop what is removed, and put what was added bit by bit together; returns what it is now."""
    if is_lance(where):
        from embedforge.search import lance_store

        return lance_store.compact(str(where))
    return folder_write.compact(index_folder_of(Path(where)))
