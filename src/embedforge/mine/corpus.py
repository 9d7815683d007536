"""The documents to mine from, on disk in shards, so that memory does not grow with their number.

    corpus.json         where they come from, and each shard's rows and fingerprints
    00000.jsonl         [id, text] a line, in order; the id is "" where the source has none
    00000.lines.npy     int64 [rows + 1], the byte at which each line starts
    00000.keys.npy      uint64 [rows, 2], hashes of the id (0 for none) and of the text

Texts count as equal if their hashes are: `embedforge.text.same.layout_key` says what they may differ in.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import hash_of, naming, read_object, write_json
from embedforge.ranking import Indices
from embedforge.text.same import layout_key, stable_hash

VERSION = 2
"""Of what makes texts and words equal: what an older one left in a work folder is made again."""
CORPUS_FILE = "corpus.json"
SHARD_ROWS = 50_000
_IDS, _TEXTS = 0, 1
_KEYS_AT_ONCE = 16_000_000
"""Ids compared at once when looking for repeated ones: 128 MB of hashes."""


class Passage(NamedTuple):
    """A text to mine from, and its id, "" for none."""

    id: str
    text: str


def text_key(text: str) -> int:
    """Return 64 bits that texts share if they count as equal."""
    return stable_hash(layout_key(text))


def id_key(name: str) -> int:
    """Return 64 bits of a document's id, 0 for "", which is none."""
    return stable_hash(name) if name else 0


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of documents."""

    number: int
    first: int
    """The first document's number in the corpus."""
    rows: int
    texts: str
    """Fingerprint of the texts, in order: what vectors depend on."""
    ids: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in a folder; made by `build_corpus`."""

    folder: Path
    shards: tuple[Shard, ...]
    added: int
    """Positives that the source lacked and that therefore stand at the end."""
    empty: tuple[str, ...] = ()
    """Ids of the documents that have no text and are not among these, "" for those without an id."""

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of all ids and texts, in order."""
        return hash_of([[shard.texts, shard.ids] for shard in self.shards])

    def windows(self, shard: Shard, rows: int) -> Iterator[list[str]]:
        """Yield the texts of a shard, `rows` at a time."""
        with _path(self.folder, shard.number, "jsonl").open("rb") as lines:
            while window := list(itertools.islice(lines, rows)):
                yield [json.loads(line)[1] for line in window]

    def documents(self, rows: Indices) -> dict[int, Passage]:
        """Read some documents, in any order; returns row -> document."""
        passages = {}
        for shard, positions in self._by_shard(np.unique(rows)):
            starts = np.load(_path(self.folder, shard.number, "lines.npy"), allow_pickle=False)
            with _path(self.folder, shard.number, "jsonl").open("rb") as lines:
                for position in positions:
                    lines.seek(int(starts[position]))
                    passages[shard.first + int(position)] = Passage(*json.loads(lines.readline()))
        return passages

    def text_keys(self, rows: Indices) -> NDArray[np.uint64]:
        """Return the hashes of the texts of documents, of the shape of `rows`; 0 for negative rows."""
        wanted, back = np.unique(rows, return_inverse=True)
        keys = np.zeros(len(wanted), dtype=np.uint64)
        real = wanted >= 0
        parts = [self._keys(shard)[positions, _TEXTS] for shard, positions in self._by_shard(wanted[real])]
        keys[real] = np.concatenate(parts) if parts else []
        return keys[back].reshape(rows.shape)

    def rows_of_ids(self, keys: Iterable[int]) -> dict[int, int]:
        """Return hash -> row for those of the ids that are here."""
        return self._locate(keys, _IDS)

    def rows_of_texts(self, keys: Iterable[int]) -> dict[int, int]:
        """Return hash -> first row for those of the texts that are here."""
        return self._locate(keys, _TEXTS)

    def _locate(self, keys: Iterable[int], column: int) -> dict[int, int]:
        wanted = np.unique(np.fromiter(keys, dtype=np.uint64))
        rows: dict[int, int] = {}
        for shard in self.shards:
            here = self._keys(shard)[:, column]
            for position in np.flatnonzero(np.isin(here, wanted)):
                rows.setdefault(int(here[position]), shard.first + int(position))
        return rows

    def _by_shard(self, rows: Indices) -> Iterator[tuple[Shard, Indices]]:
        """Split ascending rows by shard, into positions within it."""
        for shard in self.shards:
            start, stop = np.searchsorted(rows, [shard.first, shard.first + shard.rows])
            if start < stop:
                yield shard, rows[start:stop] - shard.first

    def _keys(self, shard: Shard) -> NDArray[np.uint64]:
        return np.asarray(np.load(_path(self.folder, shard.number, "keys.npy"), allow_pickle=False))

    def check_ids(self) -> None:
        """Refuse an id that two documents share; hashes are compared in parts that fit in memory.

        Raises:
            EmbedforgeError: it names the id and both documents.
        """
        parts = 1 + len(self) // _KEYS_AT_ONCE
        for part in range(parts):
            keys = np.concatenate(
                [_part_of(self._keys(shard)[:, _IDS], part, parts) for shard in self.shards]
            )
            keys.sort()
            repeated = keys[1:][(keys[1:] == keys[:-1]) & (keys[1:] != 0)]
            if len(repeated):
                self._refuse_repeated(int(repeated[0]))

    def _refuse_repeated(self, key: int) -> None:
        rows = [
            shard.first + int(position)
            for shard in self.shards
            for position in np.flatnonzero(self._keys(shard)[:, _IDS] == np.uint64(key))
        ]
        one, other = (self.documents(np.array([row]))[row] for row in rows[:2])
        raise EmbedforgeError(
            f"two documents have the id '{one.id}': number {rows[0] + 1}, '{one.text[:60]}', and number "
            f"{rows[1] + 1}, '{other.text[:60]}'; ids must differ"
        )


def build_corpus(
    folder: Path,
    documents: Callable[[], Iterable[Passage]],
    source: str,
    *,
    positives: Sequence[Passage] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Corpus:
    """Write documents to `folder`, or open what an earlier call wrote there from the same source.

    Args:
        folder: created if it does not exist; ours alone.
        documents: yields them, from the start at each call; those without a text are left out.
        source: fingerprint of the source's content; "" for one that cannot be told unchanged, and is read
            again each time.
        positives: documents that must be among them; those that are not, by id or by text, follow at the
            end, for their scores have to be known.
        progress: called with the number of documents written since the last call.

    Raises:
        EmbedforgeError: no document with a text, or an id that two of them share.
    """
    origin = hash_of([VERSION, SHARD_ROWS, source, [list(document) for document in positives]])
    path = folder / CORPUS_FILE
    if source and path.exists() and (facts := read_object(path)).get("origin") == origin:
        known_shards = tuple(Shard(**shard) for shard in facts["shards"])
        corpus = Corpus(folder, known_shards, facts["added"], tuple(facts.get("empty", ())))
        progress(len(corpus))
        return corpus
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    shards: list[Shard] = []
    empty: list[str] = []
    _write_shards(folder, shards, _with_text(documents(), empty), progress)
    known = Corpus(folder, tuple(shards), 0)
    missing = _missing(known, positives)
    _write_shards(folder, shards, missing, progress)
    corpus = Corpus(folder, tuple(shards), len(missing), tuple(empty))
    if not shards:
        raise EmbedforgeError("there is no document to mine from; name a corpus that holds some")
    corpus.check_ids()
    facts = {"origin": origin, "added": corpus.added, "empty": empty}
    write_json(path, facts | {"shards": [asdict(shard) for shard in shards]})
    return corpus


def _with_text(documents: Iterable[Passage], empty: list[str]) -> Iterator[Passage]:
    """Yield the documents that have a text, and note the ids of the others."""
    for document in documents:
        if document.text:
            yield document
        else:
            empty.append(document.id)


def _missing(corpus: Corpus, positives: Sequence[Passage]) -> list[Passage]:
    """Return the positives that a corpus lacks, by id and by text, each text and each id once."""
    ids = set(corpus.rows_of_ids(id_key(passage.id) for passage in positives)) - {0}
    texts = set(corpus.rows_of_texts(text_key(passage.text) for passage in positives))
    missing = []
    for passage in positives:
        name, text = id_key(passage.id), text_key(passage.text)
        if text not in texts and name not in ids:
            missing.append(passage)
            texts.add(text)
            ids |= {name} - {0}
    return missing


def _write_shards(
    folder: Path, shards: list[Shard], passages: Iterable[Passage], progress: Callable[[int], None]
) -> None:
    """Write the next shards, and append what they are."""
    left = iter(passages)
    while shard := _write_shard(folder, shards, itertools.islice(left, SHARD_ROWS)):
        shards.append(shard)
        progress(shard.rows)


def _write_shard(folder: Path, before: Sequence[Shard], documents: Iterable[Passage]) -> Shard | None:
    """Write the next shard; None where there is no document left for it."""
    number = len(before)
    texts, ids = hashlib.sha256(), hashlib.sha256()
    starts: list[int] = [0]
    keys: list[tuple[int, int]] = []
    file = _path(folder, number, "jsonl")
    with naming(file), file.open("wb") as lines:
        for document in documents:
            text = document.text.encode("utf-8", "surrogatepass")
            texts.update(len(text).to_bytes(8, "little") + text)
            ids.update(json.dumps(document.id).encode())
            starts.append(starts[-1] + lines.write(json.dumps(document).encode() + b"\n"))
            keys.append((id_key(document.id), text_key(document.text)))
    if not keys:
        file.unlink()
        return None
    with naming(file):
        np.save(_path(folder, number, "lines.npy"), np.array(starts, dtype=np.int64), allow_pickle=False)
        np.save(_path(folder, number, "keys.npy"), np.array(keys, dtype=np.uint64), allow_pickle=False)
    first = before[-1].first + before[-1].rows if before else 0
    return Shard(number, first, len(keys), texts.hexdigest()[:32], ids.hexdigest()[:32])


def _path(folder: Path, number: int, ending: str) -> Path:
    return folder / f"{number:05}.{ending}"


def _part_of(keys: NDArray[np.uint64], part: int, parts: int) -> NDArray[np.uint64]:
    return keys if parts == 1 else keys[keys % np.uint64(parts) == part]


def hash_of_all(values: Iterable[object]) -> str:
    """Return a short hash of values that JSON can hold, without all of their JSON in memory."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:32]
