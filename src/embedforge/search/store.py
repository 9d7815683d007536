"""What an index asks of the store that holds it: `folder_store` (exact, always there) or `lance_store`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.ranking import Floats
from embedforge.search.document import DENSE_SHARE, Document, Mode
from embedforge.search.filters import Filter

Key = Hashable
"""Names a document within one generation of a store."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an index without looking into it."""

    model: str
    """Name or folder of the model that embedded it."""
    fingerprint: str
    """Of that model's contract, see `fingerprint`."""
    documents: int
    dimensions: int
    mode: Mode
    """How it is searched where nothing is said: "fused", or what a report found best."""
    fields: tuple[str, ...]
    """Keys of metadata, for filters."""
    store: str
    """"folder" (exact), or "lancedb"."""
    generation: str
    """Changes whenever the index does."""
    root: str = ""
    """The folder whose files it holds; "" for documents from elsewhere."""
    dense_share: float = DENSE_SHARE
    """Weight of meaning where both sides are fused, from 0 to 1; what a report found best, or the default."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of an index, in one step: what goes, then what comes.

    A document that comes with the id of one that is there replaces it.
    """

    documents: Iterable[Document] = ()
    vectors: NDArray[Any] | None = None
    """[documents, dimensions], the documents' embeddings; None where none come."""
    remove_ids: Sequence[str] = ()
    remove_files: Sequence[str] = ()
    """Values of the field "file"."""


class Store(Protocol):
    """One generation of an index, open for reading; it does not change. Safe to use from several threads."""

    @property
    def facts(self) -> Facts:
        """What is known of it."""

    def nearest(self, vector: Floats, k: int, filters: Sequence[Filter]) -> list[tuple[Key, float]]:
        """Return the `k` documents of highest inner product and these products, best first."""

    def matching(self, query: str, k: int, filters: Sequence[Filter]) -> list[tuple[Key, float]]:
        """Return the `k` documents of highest BM25 score above 0, and these scores, best first."""

    def documents(self, keys: Sequence[Key]) -> list[Document]:
        """Read documents."""

    def dense_scores(self, vector: Floats, keys: Sequence[Key]) -> list[float]:
        """Return the inner products of documents that were found by words."""

    def lexical_scores(self, query: str, keys: Sequence[Key]) -> list[float | None]:
        """Return the BM25 scores of documents that were found by meaning; None where that is not known."""

    def ids(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield each document's id and metadata."""

    def newest(self) -> Store | None:
        """Return the newest generation, None where it is this one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an index is told when it is made."""

    model: str
    fingerprint: str
    dimensions: int
    mode: Mode = "fused"
    root: str = ""
    dense_share: float = DENSE_SHARE


def require_model(facts: Facts, where: str, fingerprint: str, model: str) -> None:
    """Refuse vectors of a model that did not make an index: they have nothing to do with its own.

    Raises:
        EmbedforgeError: the fingerprints differ; names both models.
    """
    if fingerprint != facts.fingerprint:
        raise EmbedforgeError(
            f"{where}: this index was built with the model '{facts.model}', whose contract differs "
            f"from that of '{model}'. Search with that model, or build the index again with this one."
        )
