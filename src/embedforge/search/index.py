"""An index that is open: one small API for the command line, the server and programs.

index = embedforge.Index.open("index")
for hit in index.search("how is a date parsed?", k=5, filters=["file=lib/*.py"]):
    print(hit.score, hit.document.location, hit.snippet.text)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.ranking import Floats
from embedforge.search.document import MODES, Hit, Mode
from embedforge.search.embedder import open_model
from embedforge.search.filters import Filter, parse_filters
from embedforge.search.fusion import CANDIDATES, fuse
from embedforge.search.places import find_model, find_store
from embedforge.search.repeats import PER_FILE, Chosen, without_repeats
from embedforge.search.store import Facts, Key, Store, require_model
from embedforge.static import StaticEmbedder
from embedforge.text.contract import Contract

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedforge.model.embedding_model import EmbeddingModel

DEEPEST = 20 * CANDIDATES
"""Where so many that were found are fewer than `k` texts, no further ones are looked for."""

Ranked = list[tuple[Key, float]]
"""Documents and their scores, best first."""


class Index:
    """An index of documents, open for search; safe to use from several threads.

    What is open stays whole while the index is rebuilt, added to or compacted by another process: all of a
    search's texts, vectors and scores are of one generation. `refresh` goes on to the newest.

    >>> import embedforge, numpy
    >>> from embedforge.search import Document, build_index
    >>> documents = [Document("a", "git reset moves the branch"), Document("b", "git stash puts it aside")]
    >>> build_index("index", numpy.eye(2), documents, model="model", contract=embedforge.Contract())
    >>> with embedforge.Index.open("index") as index:
    ...     [hit.document.id for hit in index.search("stash", mode="lexical")]
    ['b']
    """

    def __init__(
        self,
        store: Store,
        where: str,
        model: str | Path | SentenceTransformer | None = None,
        device: str | None = None,
    ) -> None:
        self._store, self._where, self._device = store, where, device
        self._lock = threading.Lock()
        self._model: EmbeddingModel | StaticEmbedder | None = None
        self._model_name = ""
        if model is None or isinstance(model, (str, Path)):
            self._model_name = str(model or "")
        else:
            from embedforge.model.encoder import embedding_model

            self._model = embedding_model(model)
            self.check(self._model.contract, "the given model")

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
        return cls(find_store(where), str(where), model, device)

    @property
    def facts(self) -> Facts:
        """What is known of the generation that is open."""
        return self._store.facts

    def __len__(self) -> int:
        return self.facts.documents

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        filters: str | Sequence[str] = (),
        mode: Mode | None = None,
        vector: NDArray[Any] | None = None,
        per_file: int = PER_FILE,
    ) -> list[Hit]:
        """Return the best `k` documents for a query, best first; of one text one, which names the others.

        Args:
            query: in words.
            k: at least 1; fewer hits where fewer documents pass the filters (or, by words, match).
            filters: all must hold: "lang=en", "lang=en,de" (either), "lang!=en", "year>=2020" (also > < <=),
                "file=docs/*" (* and ? stand for anything). A document that lacks the field does not pass.
            mode: None is the index's own, see `Facts.mode`.
            vector: [dimensions], the query's embedding where the caller has it already (a server that
                batches); must come from a model that `check` accepts.
            per_file: so many passages of one file at most, unless there are not enough others for `k`; 0 for
                no limit. Those left out are named in `Hit.more`.

        Raises:
            EmbedforgeError: an empty query, k below 1, per_file below 0, a filter that cannot be read or
                names no field of the index (those there are listed), another number of dimensions, another
                model.
        """
        store = self._store  # one generation, whatever `refresh` does meanwhile
        mode = mode or store.facts.mode
        if mode not in MODES:
            raise EmbedforgeError(f"mode '{mode}': one of {', '.join(MODES)}.{did_you_mean(mode, MODES)}")
        if not query.strip():
            raise EmbedforgeError("the query is empty; say what to look for, in words")
        if k < 1:
            raise EmbedforgeError(f"k is the number of hits, at least 1; got {k}")
        if per_file < 0:
            raise EmbedforgeError(f"per_file is a number of passages, or 0 for no limit; got {per_file}")
        conditions = parse_filters(filters, store.facts.fields)
        asked = None if mode == "lexical" else self._vector(query, vector)
        depth = max(CANDIDATES, k)
        while True:
            sides = _sides(store, query, asked, mode, depth, conditions)
            found = fuse(*sides, store.facts.dense_share) if mode == "fused" else [*sides[0], *sides[1]]
            chosen = without_repeats(found, store.documents, query, k, per_file)
            if len(chosen) == k or max(map(len, sides)) < depth or depth > DEEPEST:
                break
            depth *= 4  # the best are few texts, many times
        scores = _scores(store, query, asked, mode, chosen, sides)
        return [
            Hit(
                one.document,
                one.score,
                **score,
                snippet=one.snippet,
                also=tuple(one.also),
                more=tuple(one.more),
            )
            for one, score in zip(chosen, scores, strict=True)
        ]

    def _vector(self, query: str, vector: NDArray[Any] | None) -> Floats:
        """Return the query's embedding, [dimensions] float32, of a model that is the index's."""
        if vector is None:
            vector = self._embedded(query)
        if vector.shape != (self.facts.dimensions,):
            raise EmbedforgeError(
                f"{self._where}: the query has shape {vector.shape}, "
                f"the index's vectors ({self.facts.dimensions},)"
            )
        asked = np.ascontiguousarray(vector, dtype=np.float32)
        if not np.isfinite(asked).all():
            raise EmbedforgeError("the query's vector holds what is not a number (NaN) or infinite")
        return asked

    def _embedded(self, query: str) -> Floats:
        model = self._loaded()
        prefix, suffix = model.contract.query_prefix(), model.contract.query_suffix()
        if isinstance(model, StaticEmbedder):
            return model.encode([query], prefix, suffix=suffix)[0]
        from embedforge.encode import encode  # torch, once it is known that there is something to search

        return encode(model, [query], prefix, suffix=suffix)[0]

    def _loaded(self) -> EmbeddingModel | StaticEmbedder:
        """Load the model at first use, and see whether it is the index's."""
        with self._lock:
            if self._model is None:
                folder = self._model_name or find_model(self._where, self.facts.model)
                model = open_model(folder, self._device)
                self.check(model.contract, folder)
                self._model, self._model_name = model, folder
            return self._model

    def check(self, contract: Contract, model: str) -> None:
        """Refuse a model that did not make this index: its vectors have nothing to do with these.

        Raises:
            EmbedforgeError: the fingerprints of the contracts differ; names both models.
        """
        require_model(self.facts, self._where, contract.fingerprint, model)

    def refresh(self) -> bool:
        """Go on to the newest generation, if there is one; tells whether there was.

        Raises:
            EmbedforgeError: the index is gone, or is now one of another model.
        """
        newest = self._store.newest()
        if newest is None:
            return False
        if self._model is not None:
            name = self._model_name or "the given model"
            require_model(newest.facts, self._where, self._model.contract.fingerprint, name)
        self._store = newest
        return True

    def close(self) -> None:
        """Let go of the model; files are let go of with the last search that reads them."""
        self._model = None


def _sides(
    store: Store, query: str, vector: Floats | None, mode: Mode, depth: int, filters: Sequence[Filter]
) -> tuple[Ranked, Ranked]:
    """Return what is found by meaning and by words; nothing on a side that the mode leaves out."""
    nearest = [] if vector is None else store.nearest(vector, depth, filters)
    return nearest, [] if mode == "dense" else store.matching(query, depth, filters)


def _scores(
    store: Store,
    query: str,
    vector: Floats | None,
    mode: Mode,
    chosen: Sequence[Chosen],
    sides: tuple[Ranked, Ranked],
) -> list[dict[str, float | None]]:
    """Return the scores of each hit by the fields of `Hit`, those of the side that did not find it too."""
    if mode != "fused" or vector is None:
        return [{mode: one.score} for one in chosen]
    dense, lexical = dict(sides[0]), cast(dict[Key, float | None], dict(sides[1]))
    keys = [one.key for one in chosen]
    only_words = [key for key in keys if key not in dense]
    only_meaning = [key for key in keys if key not in lexical]
    dense.update(zip(only_words, store.dense_scores(vector, only_words), strict=True))
    lexical.update(zip(only_meaning, store.lexical_scores(query, only_meaning), strict=True))
    return [{"dense": dense[one.key], "lexical": lexical[one.key], "fused": one.score} for one in chosen]
