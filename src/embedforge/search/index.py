"""An index that is open: one small API for the command line, the server and programs.

    index = embedforge.Index.open("index")
    for hit in index.search("how is a date parsed?", k=5, filters=["file=lib/*.py"]):
        print(hit.score, hit.document.location, hit.snippet.text)

THIS COMMIT HOLDS SIGNATURES ONLY; the bodies follow, these stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from embedforge.search.document import Hit, Mode
from embedforge.text.contract import Contract

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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


class Index:
    """An index of documents, open for search; safe to use from several threads.

    What is open stays whole while the index is rebuilt, added to or compacted by another process: all of a
    search's texts, vectors and scores are of one generation. `refresh` goes on to the newest.
    """

    facts: Facts

    @classmethod
    def open(
        cls,
        where: str | Path,
        *,
        model: str | Path | SentenceTransformer | None = None,
        device: str | None = None,
    ) -> Index:
        """Open an index; reads little, loads no model.

        Args:
            where: an index folder, the folder of a quickstart or adapt run, or a store's URL.
            model: what embeds the queries: a loaded model (what `embedforge.load` gives; a server shares
                its own), or a folder. None is the one of the run, or that the index names. A loaded model is
                checked at once, any other when it is first needed.
            device: for a model that is loaded here.

        Raises:
            EmbedforgeError: no index, a damaged one, or one of another model (both are named).
        """
        raise NotImplementedError

    def __len__(self) -> int:
        """The number of documents."""
        raise NotImplementedError

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        filters: Sequence[str] = (),
        mode: Mode | None = None,
        vector: NDArray[Any] | None = None,
    ) -> list[Hit]:
        """Return the best `k` documents for a query, best first.

        Args:
            query: in words.
            k: at least 1; fewer hits where fewer documents pass the filters (or, by words, match).
            filters: all must hold: "lang=en", "lang=en,de" (either), "lang!=en", "year>=2020" (also > < <=),
                "file=docs/*" (* and ? stand for anything). A field that a document lacks holds nothing.
            mode: None is the index's own, see `Facts.mode`.
            vector: [dimensions], the query's embedding where the caller has it already (a server that
                batches); must come from a model that `check` accepts.

        Raises:
            EmbedforgeError: an empty query, k below 1, a filter that cannot be read or names no field of
                the index (those there are listed), another number of dimensions, another model.
        """
        raise NotImplementedError

    def check(self, contract: Contract, model: str) -> None:
        """Refuse a model that did not make this index: its vectors have nothing to do with these.

        Raises:
            EmbedforgeError: the fingerprints of the contracts differ; names both models.
        """
        raise NotImplementedError

    def refresh(self) -> bool:
        """Go on to the newest generation, if there is one; tells whether there was.

        Raises:
            EmbedforgeError: the index is gone, or is now one of another model.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the files. An `Index` is a context manager too."""
        raise NotImplementedError
