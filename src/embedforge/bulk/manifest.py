"""The plan of an encode run, OUT/manifest.json: which files, how they are cut into shards, and their names.

A shard's name says what is in it: its number, the input file, the rows, the hash of the file's content and
the fingerprint of the model's contract. A file of that name is therefore the right one, whoever wrote it, and
the files that are there are the only record of what is done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from embedforge.bulk.rows import IdKind, id_kind, row_of
from embedforge.bulk.settings import EncodeSettings
from embedforge.data.position import Position
from embedforge.data.ranges import Range, cut
from embedforge.data.readers import read_from
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.files import file_hash, read_object, refuse_file, try_lock, write_json
from embedforge.run_folder import first_difference

MANIFEST = "manifest.json"
VECTORS = "vectors"
LOCKS = "locks"
VERSION = 1

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input, as it was when the run began."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    rows: int
    shards: tuple[Range, ...]

    def check(self, path: Path) -> None:
        """Refuse a file that is not the one the plan was made of.

        Size and time of change are believed; where the time is another, as of a copy, the content decides.

        Raises:
            EmbedforgeError: it is gone, or another one.
        """
        try:
            now = path.stat()
        except OSError as error:
            raise EmbedforgeError(f"{path}: cannot be read any more ({error.strerror})") from None
        same = now.st_size == self.size and (
            now.st_mtime_ns == self.mtime_ns or file_hash(path) == self.sha256
        )
        if not same:
            raise EmbedforgeError(
                f"{path}: the file was changed since this run began, and what is finished belongs to the old "
                "one; choose another --out, or bring the old file back"
            )


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of vectors to be, and the rows it is made of."""

    number: int
    path: Path
    source: int
    """The number of its file in the input."""
    part: Range
    first_row: int
    """Its first row's number in the whole input."""

    @property
    def done(self) -> bool:
        """Whether it is written: files appear whole or not at all."""
        return self.path.exists()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The plan of a run in `out`."""

    out: Path
    settings: EncodeSettings
    model: str
    fingerprint: str
    ids: IdKind | None
    inputs: tuple[InputFile, ...]

    @property
    def rows(self) -> int:
        """Of the whole input."""
        return sum(file.rows for file in self.inputs)

    def shards(self) -> list[Shard]:
        """Return all shards, in the order of the input."""
        starts = [0, *accumulate(file.rows for file in self.inputs)]
        parts = [(source, part) for source, file in enumerate(self.inputs) for part in file.shards]
        return [
            Shard(number, self._path(number, source, part), source, part, starts[source] + part.first)
            for number, (source, part) in enumerate(parts)
        ]

    def _path(self, number: int, source: int, part: Range) -> Path:
        file = self.inputs[source]
        stem = re.sub(r"[^\w-]+", "_", Path(file.path).name.partition(".")[0])[:40]
        name = (
            f"{number:06d}-{stem}-{part.first}-{part.first + part.rows}"
            f"-{file.sha256[:8]}-{self.fingerprint[:8]}.{self.settings.format}"
        )
        return self.out / VECTORS / name

    def save(self) -> None:
        """Write the plan, in one step."""
        write_json(
            self.out / MANIFEST,
            {
                "version": VERSION,
                "asked": self.settings.as_json(),
                "model": self.model,
                "fingerprint": self.fingerprint,
                "ids": self.ids,
                "rows": self.rows,
                "inputs": [asdict(file) for file in self.inputs],
            },
        )

    @classmethod
    def load(cls, out: Path) -> Manifest:
        """Read the plan in `out`.

        Raises:
            EmbedforgeError: there is none, or it is of another version or damaged.
        """
        path = out / MANIFEST
        values = read_object(path)
        if values.get("version") != VERSION:
            raise EmbedforgeError(f"{path}: no plan of version {VERSION}; choose another --out")
        try:
            inputs = tuple(
                InputFile(**{**file, "shards": tuple(Range(*part) for part in file["shards"])})
                for file in values["inputs"]
            )
            return cls(
                out,
                EncodeSettings.from_json(values["asked"]),
                values["model"],
                values["fingerprint"],
                values["ids"],
                inputs,
            )
        except (KeyError, TypeError) as error:
            raise EmbedforgeError(f"{path}: the plan is damaged ({error}); choose another --out") from None


def open_manifest(
    out: Path,
    files: Sequence[Path],
    settings: EncodeSettings,
    *,
    model: str,
    fingerprint: str,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Make the plan of a run, or read the one that is there and hold it to what is asked and to the input.

    Of several processes that start together one makes it, and the others wait.

    Raises:
        EmbedforgeError: the folder holds something else or a run that was asked something else; a file of the
            input is of no use, or was changed.
    """
    refuse_file(out)
    while not (out / MANIFEST).exists():
        if out.exists() and {item.name for item in out.iterdir()} - {LOCKS, "input", "phases.json"}:
            if (out / MANIFEST).exists():  # another process has just written it
                break
            raise EmbedforgeError(f"{out}: this folder is not empty and no encode run; choose another --out")
        with try_lock(out / LOCKS / "plan") as mine:
            if mine and not (out / MANIFEST).exists():
                inputs, ids = scan(files, settings, progress)
                manifest = Manifest(out, settings, model, fingerprint, ids, inputs)
                manifest.save()
                return manifest
        time.sleep(0.2)
    manifest = Manifest.load(out)
    asked, before = settings.as_json(), manifest.settings.as_json()
    if difference := first_difference(before, asked):
        raise EmbedforgeError(f"{out}: the run there is another one, {difference}; choose another --out")
    if manifest.fingerprint != fingerprint:
        raise EmbedforgeError(
            f"{out}: the vectors there are of another model, '{manifest.model}' (contract "
            f"{manifest.fingerprint[:8]}), and '{model}' has the contract {fingerprint[:8]}; choose another "
            "--out"
        )
    if len(manifest.inputs) != len(files):
        raise EmbedforgeError(
            f"{out}: the run there has {len(manifest.inputs)} input files, now there are {len(files)}; "
            "choose another --out"
        )
    for file, path in zip(manifest.inputs, files, strict=True):
        file.check(path)
    return manifest


def scan(
    files: Sequence[Path], settings: EncodeSettings, progress: Progress
) -> tuple[tuple[InputFile, ...], IdKind | None]:
    """Cut every file into ranges and hash it; return what the ids are as well.

    Every row of a text file is looked at, of a Parquet file the first: a wrong column shows before the model
    is loaded, one that some rows may lack (`--keep`) if none has it.
    """
    ids = None if settings.id is None else id_kind(_first(files[0]), settings.id)
    missing = dict.fromkeys(settings.columns)

    def check(record: Record) -> None:
        row_of(record, 0, settings, ids)
        for name in missing.keys() & record.values.keys():
            del missing[name]

    found = []
    for path in files:
        before = path.stat()
        check(_first(path))
        parts = cut(path, settings.rows_per_shard, check, progress)
        found.append(
            InputFile(
                str(path.resolve()),
                before.st_size,
                before.st_mtime_ns,
                file_hash(path),
                sum(part.rows for part in parts),
                tuple(parts),
            )
        )
    for name in missing:
        there = sorted(_first(files[0]).values)
        raise EmbedforgeError(
            f"{files[0]}: no record has the column '{name}'; the first has {', '.join(there)}."
            + did_you_mean(name, there)
        )
    return tuple(found), ids


def _first(path: Path) -> Record:
    records: Iterator[Record] = read_from(path, Position())
    record: Any = next(records, None)
    if record is None:
        raise EmbedforgeError(f"{path}: there is no record in it; check that it was written to its end")
    return record
