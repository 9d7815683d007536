"""A search index in a folder: vectors, documents, and which model they belong to.

    index.json       model, fingerprint of its contract, number of documents, dimensions
    vectors.npy      float32 [documents, dimensions]
    documents.jsonl  one document a line, in the order of the vectors
    offsets.npy      int64 [documents + 1], the byte at which each line starts

Vectors and documents are read where they lie on disk, so an index may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import read_json, replace_folder, write_json
from embedforge.text.contract import Contract

VERSION = 1
INDEX_FILE = "index.json"


@dataclass(frozen=True, slots=True)
class Document:
    """A text that can be found."""

    id: str
    text: str
    location: str = ""
    """Where a reader finds it, "file:line" for example."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found, and its inner product with the query."""

    document: Document
    score: float


def fingerprint(contract: Contract) -> str:
    """Return a hash of how a model turns text into vectors: `Contract.fingerprint`."""
    return contract.fingerprint


def build_index(
    folder: Path, vectors: NDArray[Any], documents: Iterable[Document], *, model: str, contract: Contract
) -> None:
    """Write an index to `folder`; an older index there is replaced once the new one is complete.

    Args:
        folder: created if it does not exist.
        vectors: [documents, dimensions], the documents' embeddings, in their order.
        documents: one for each vector.
        model: name or folder of the model, for messages.
        contract: the model's, checked again at every search.

    Raises:
        EmbedforgeError: the folder holds something else, vectors and documents do not fit, or the disk is
            full.
    """
    if vectors.ndim != 2 or not len(vectors):
        raise EmbedforgeError(f"an index needs vectors [documents, dimensions], got shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise EmbedforgeError("an index needs finite vectors, some of these are not")
    facts = {
        "version": VERSION,
        "model": model,
        "fingerprint": fingerprint(contract),
        "documents": len(vectors),
        "dimensions": vectors.shape[1],
    }
    try:
        with replace_folder(folder, INDEX_FILE) as partial:
            offsets = _write_documents(partial / "documents.jsonl", documents)
            if len(offsets) != len(vectors) + 1:
                raise EmbedforgeError(f"there are {len(vectors)} vectors for {len(offsets) - 1} documents")
            np.save(partial / "offsets.npy", np.array(offsets, dtype=np.int64), allow_pickle=False)
            np.save(partial / "vectors.npy", np.asarray(vectors, dtype=np.float32), allow_pickle=False)
            write_json(partial / INDEX_FILE, facts)
    except OSError as error:
        raise EmbedforgeError(
            f"{folder}: the index could not be written, nothing was changed ({error}); is the disk full?"
        ) from error


def _write_documents(path: Path, documents: Iterable[Document]) -> list[int]:
    offsets = [0]
    with path.open("wb") as file:
        for document in documents:
            # A lone surrogate (an undecodable file name) becomes \udcxx, which JSON reads back as it was.
            line = json.dumps(asdict(document), ensure_ascii=False).encode("utf-8", "backslashreplace")
            offsets.append(offsets[-1] + file.write(line + b"\n"))
    return offsets


@dataclass(frozen=True)
class Index:
    """An index on disk, opened with `Index.load`."""

    folder: Path
    model: str
    fingerprint: str
    vectors: NDArray[np.float32]
    """[documents, dimensions], a memory map."""
    offsets: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Open the index in `folder`; the texts and vectors stay on disk.

        Raises:
            EmbedforgeError: no index, one of a later version, or one whose files do not fit together.
        """
        facts = read_json(folder / INDEX_FILE)
        if not isinstance(facts, dict) or facts.get("version") != VERSION:
            raise EmbedforgeError(
                f"{folder / INDEX_FILE}: not an index of version {VERSION}; build it again with this version"
            )
        try:
            vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
            offsets = np.load(folder / "offsets.npy", allow_pickle=False)
            size = (folder / "documents.jsonl").stat().st_size
            whole = (
                vectors.shape == (facts["documents"], facts["dimensions"])
                and offsets.shape == (facts["documents"] + 1,)
                and offsets[-1] == size
            )
            index = cls(folder, facts["model"], facts["fingerprint"], vectors, offsets)
        except (OSError, ValueError, KeyError) as error:
            raise EmbedforgeError(f"{folder}: the index is damaged ({error}); build it again") from None
        if not whole:
            raise EmbedforgeError(f"{folder}: the index is damaged (sizes do not fit); build it again")
        return index

    def __len__(self) -> int:
        return len(self.vectors)

    def check(self, contract: Contract, model: str) -> None:
        """Refuse a model that did not make this index: its vectors have nothing to do with these.

        Raises:
            EmbedforgeError: the fingerprints of the contracts differ.
        """
        if fingerprint(contract) != self.fingerprint:
            raise EmbedforgeError(
                f"{self.folder}: this index was built with the model '{self.model}', whose contract differs "
                f"from that of '{model}'. Search with that model, or build the index again with this one."
            )

    def search(self, query: NDArray[Any], k: int = 10) -> list[Hit]:
        """Return the `k` documents of highest inner product, best first; exact.

        Args:
            query: [dimensions], embedded as a query by the index's model (see `check`).
            k: at least 1; all documents where there are fewer.

        Raises:
            EmbedforgeError: another number of dimensions.
        """
        if query.shape != self.vectors.shape[1:]:
            raise EmbedforgeError(
                f"{self.folder}: the query has shape {query.shape}, "
                f"the index's vectors {self.vectors.shape[1:]}"
            )
        from embedforge.nearest import exact_search  # torch, when there is something to look for

        rows, scores = exact_search(query[None, :], self.vectors, k)
        with (self.folder / "documents.jsonl").open("rb") as file:
            hits = []
            for row, score in zip(rows[0], scores[0], strict=True):
                file.seek(int(self.offsets[row]))
                hits.append(Hit(Document(**json.loads(file.readline())), float(score)))
        return hits
