"""An index that is kept up to date with files: what has changed is embedded again, the rest is left.

Passages are embedded and written in lots of `LOT`; a run that was killed goes on with the files that are not
in the index yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console

from embedforge.console import add_row, note, progress_bar
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.model.folder import DEFAULT_MODEL
from embedforge.search.build import build_index, change_index, compact_index
from embedforge.search.document import FILE, Document
from embedforge.search.embedder import STRANGE, Embedder
from embedforge.search.folder_store import FolderStore
from embedforge.search.folder_write import refuse_foreign
from embedforge.search.places import exists, find_model, find_store, is_url
from embedforge.search.sources import HASH, Source, documents_of, name_of, sources_of
from embedforge.search.store import Change, Store, require_model

LOT = 20_000
MOST_PARTS = 20
"""Segments of a folder's index above which they are put together."""


@dataclass
class Outcome:
    """What was done to an index."""

    added: int = 0
    """Files that were not there."""
    changed: int = 0
    removed: int = 0
    same: int = 0
    embedded: int = 0
    """Passages."""
    documents: int = 0
    """Of the index, now."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Why -> files that give no text."""
    notices: list[str] = field(default_factory=list)
    """What the user should know of what was read, and of how the model takes it."""


def update_index(
    where: str | Path,
    paths: Sequence[Path],
    *,
    model: str | None = None,
    whole: bool = False,
    restart: bool = False,
    device: str | None = None,
    console: Console | None = None,
) -> Outcome:
    """Bring files into an index, or make it; a file that is there unchanged is not embedded again.

    Args:
        where: the index: a folder or a URL.
        paths: folders and files; the first is the root if the index is new.
        model: folder or hub id; None is the index's own.
        whole: `paths` are all there is: what the index has besides them below its root is removed.
        restart: make it anew, whatever is there.
        device: as for `load`.
        console: for progress and notes; standard error when None.

    Raises:
        EmbedforgeError: no model is named for a new index, the index has another model or root, a file
            cannot be read, or there is nothing to index.
    """
    store = find_store(where) if exists(where) and not restart else None
    if store is None and not is_url(where):
        refuse_foreign(Path(where))  # before the work
    root = Path(store.facts.root) if store is not None and store.facts.root else _root(paths[0])
    if whole and store is not None and store.facts.root and root != _root(paths[0]):
        raise EmbedforgeError(
            f"{where}: this index is of the folder {root}; name another --out for {paths[0]}, make it anew "
            f"with --restart, or add files to it: embedforge index add {where} {paths[0]}"
        )
    embedder = _embedder(where, store, model, device)
    counts: Counter[str] = Counter()
    notices: list[str] = []
    sources = sources_of(paths, root, counts, notices)
    known, owners = known_of(store)
    new = [source for source in sources if known.get(source.name) != source.hash]
    names = {source.name for source in sources}
    gone = [name for name in known if name not in names and not name.startswith("/")] if whole else []
    replaced = [source.name for source in new if source.name in known]
    outcome = Outcome(changed=len(replaced), removed=len(gone), same=len(sources) - len(new), notices=notices)
    _Update(where, store, embedder, root, owners, console).run(new, gone, known, counts, outcome)
    outcome.documents = find_store(where).facts.documents
    outcome.passed_over = {key: count for key, count in counts.items() if count}
    return outcome


class _Update:
    """Embeds files and writes them, lot by lot."""

    def __init__(
        self,
        where: str | Path,
        store: Store | None,
        embedder: Embedder,
        root: Path,
        owners: dict[str, str],
        console: Console | None,
    ) -> None:
        self.where, self.store, self.embedder, self.root = where, store, embedder, root
        self.owners, self.console = owners, console
        self._strange = 0.0

    def run(
        self,
        new: Sequence[Source],
        gone: list[str],
        known: dict[str, str],
        counts: Counter[str],
        outcome: Outcome,
    ) -> None:
        with progress_bar(self.console, transient=True) as bar:
            row = add_row(bar, "files", len(new)) if new else None
            for files, documents in _lots(new, self.embedder.characters, counts):
                removed = [*gone, *(name for name in files if name in known)]
                self._write(documents, removed)
                gone = []
                outcome.embedded += len(documents)
                outcome.added += len({document.metadata[FILE] for document in documents} - known.keys())
                if row is not None:
                    bar.advance(row, len(files))
        outcome.notices += self._told()
        if gone and self.store is not None:
            self._write([], gone)
        if self.store is None:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            raise EmbedforgeError(
                f"{self.root}: there is no text to index in it. Counted: {listed or 'none'}"
            )
        if isinstance(self.store, FolderStore) and self.store.size[0] > MOST_PARTS:
            compact_index(self.where)

    def _write(self, documents: list[Document], removed: list[str]) -> None:
        self._check_ids(documents, removed)
        texts = [document.text for document in documents]
        vectors = self.embedder(texts) if texts else None
        self._strange = max(self._strange, self.embedder.tokens_a_word(texts) or 0.0 if texts else 0.0)
        if self.store is not None:
            self.store = change_index(self.where, Change(documents, vectors, remove_files=removed))
        elif vectors is not None:
            contract, name = self.embedder.contract, self.embedder.name
            build_index(self.where, vectors, documents, model=name, contract=contract, root=str(self.root))
            self.store = find_store(self.where)

    def _told(self) -> list[str]:
        """Say where the model does not take in what it was given."""
        notices = []
        if self.embedder.cut:
            most = self.embedder.contract.max_tokens
            notices.append(
                f"{self.embedder.cut:,} passages are longer than the {most} tokens that the model reads; "
                "what stands after them is found by words only"
            )
        if self._strange >= STRANGE:
            notices.append(
                f"this is not the language of {self.embedder.name}, whose vocabulary has its words in pieces "
                f"({self._strange:.1f} tokens a word): by meaning it finds less here; by words (--mode "
                "lexical) nothing is lost. A model of that language: --model NAME --restart"
            )
        return notices

    def _check_ids(self, documents: list[Document], removed: list[str]) -> None:
        """Refuse an id that two documents have: one would take the other's place."""
        for document in documents:
            owner = self.owners.get(document.id)
            if owner is not None and owner not in removed:
                raise EmbedforgeError(
                    f"{document.location}: the id '{document.id}' is that of another document, of {owner}; "
                    "each needs its own"
                )
        counted = Counter(document.id for document in documents)
        if len(counted) < len(documents):
            twice = next(name for name, count in counted.items() if count > 1)
            places = [document.location for document in documents if document.id == twice]
            raise EmbedforgeError(
                f"{places[0]} and {places[1]}: both have the id '{twice}'; each needs its own"
            )
        self.owners |= {document.id: str(document.metadata[FILE]) for document in documents}


def remove_from_index(where: str | Path, names: Sequence[str]) -> tuple[int, Store]:
    """Remove files (as the index calls them; * and ? stand for anything) or documents by their ids.

    Returns:
        How many documents went, and what the index is now.

    Raises:
        EmbedforgeError: one of these names nothing.
    """
    store = find_store(where)
    root = Path(store.facts.root) if store.facts.root else Path.cwd()
    documents = list(store.ids())
    files = {str(fields[FILE]) for _, fields in documents if FILE in fields}
    ids = {name for name, _ in documents}
    gone_files: set[str] = set()
    gone_ids: list[str] = []
    for name in names:
        found = {file for file in files if fnmatchcase(file, name) or file == name_of(Path(name), root)}
        gone_files |= found
        if not found and name in ids:
            gone_ids.append(name)
        elif not found:
            raise EmbedforgeError(
                f"{where}: holds no file and no document '{name}'.{did_you_mean(name, files or ids)}"
            )
    after = change_index(where, Change(remove_ids=gone_ids, remove_files=sorted(gone_files)))
    return store.facts.documents - after.facts.documents, after


def known_of(store: Store | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return an index's files, each with the hash of what it was, and its ids, each with its file."""
    hashes: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name, fields in store.ids() if store is not None else ():
        file = str(fields.get(FILE, "no file"))
        owners[name] = file
        if FILE in fields:
            hashes[file] = str(fields.get(HASH, ""))
    return hashes, owners


def _embedder(where: str | Path, store: Store | None, model: str | None, device: str | None) -> Embedder:
    if store is None:
        if model is None:
            note(f"no model was named: {DEFAULT_MODEL}, the embedder in the package, embeds {where}")
        return Embedder(DEFAULT_MODEL if model is None else model, device)
    embedder = Embedder(find_model(str(where), store.facts.model) if model is None else model, device)
    require_model(store.facts, str(where), embedder.contract.fingerprint, embedder.name)
    return embedder


def _root(path: Path) -> Path:
    whole = path.resolve()
    return whole if whole.is_dir() else whole.parent


def _lots(
    sources: Sequence[Source], characters: Callable[[str], int], counts: Counter[str]
) -> Iterator[tuple[list[str], list[Document]]]:
    """Yield files and their documents, `LOT` or a few more at a time; a file is in one lot."""
    files: list[str] = []
    documents: list[Document] = []
    for source in sources:
        files.append(source.name)
        documents += documents_of(source, characters, counts)
        if len(documents) >= LOT:
            yield files, documents
            files, documents = [], []
    if files:
        yield files, documents
