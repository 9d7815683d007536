"""What was read of the user's folder, kept in the run: the split stays what it was when the run began.

OUT/data/texts.jsonl         passages to train on: MNTP
OUT/data/sentences.jsonl     their sentences: SimCSE
OUT/data/train-pairs.jsonl   questions that training text asks and answers by its structure
OUT/data/held-out.jsonl      passages that no training sees
OUT/data/pairs.jsonl         questions that held-out text asks and answers
OUT/data/folder.json         the folder's files, what was counted, the hash of each file above; written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedforge.documents import Chunk, Folder, Pair, read_folder
from embedforge.documents.chunks import chunk_characters
from embedforge.documents.find_files import PassedOver, content_hash
from embedforge.documents.folder import MAX_BYTES, readable_files
from embedforge.errors import EmbedforgeError
from embedforge.files import file_hash, hash_of, read_object, write_json, write_jsonl

TEXTS_FILE, SENTENCES_FILE, TRAIN_PAIRS_FILE = "texts.jsonl", "sentences.jsonl", "train-pairs.jsonl"
HELD_OUT_FILE, PAIRS_FILE, FOLDER_FILE = "held-out.jsonl", "pairs.jsonl", "folder.json"

CHARACTERS_PER_MINUTE = 2_500_000
"""Most text that is read for a minute of the run: reading is to take a small part of it."""
MOST_CHARACTERS = 200_000_000
NAMED = 5
"""So many files are named where the folder has changed."""

Stamp = tuple[int, int, str]
"""A file's size, time of change, and hash; no hash for one too large to be read."""


def read_texts(
    data: Path,
    folder: Path,
    *,
    max_tokens: int,
    minutes: float,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Folder:
    """Read the folder and keep the result in `data`, or take what is there from an earlier start.

    Args:
        data: OUT/data.
        folder: the user's.
        max_tokens: the contract's limit, which decides the size of passages.
        minutes: of the whole run, which limits how much is read.
        seed: of what is held out and drawn.
        progress: called with the files read and all files.

    Raises:
        EmbedforgeError: see `read_folder`; the folder or a file in `data` is not what it was any more.
    """
    if (data / FOLDER_FILE).exists():
        check_unchanged(data, folder)
        return _recall(data)
    files = stamps(folder, readable_files(folder))
    found = read_folder(
        folder,
        seed=seed,
        chunk_characters=chunk_characters(max_tokens),
        max_characters=min(MOST_CHARACTERS, int(max(1.0, minutes) * CHARACTERS_PER_MINUTE)),
        progress=progress,
    )
    _keep(data, found, files)
    return found


def key_of(data: Path, *facts: Any) -> str:
    """Return the hash of all that was read and of further facts: a name for what is made of them."""
    written = read_object(data / FOLDER_FILE)["written"]
    return hash_of([written, facts])


def check_unchanged(data: Path, folder: Path) -> None:
    """Refuse to go on with a folder that has changed: new files would not be read, the split be of old ones.

    Raises:
        EmbedforgeError: files were added, removed or changed since the run began; names some.
    """
    changed = changes(folder, read_object(data / FOLDER_FILE)["files"], readable_files(folder))
    if changed:
        raise EmbedforgeError(
            f"{folder}: the folder is not what it was when the run in {data.parent} began: files {changed}. "
            "What that run holds out, and every figure of it, belongs to what was read then. Start anew with "
            "--restart, or choose another --out"
        )


def hashes(data: Path, names: Iterable[str]) -> dict[str, str]:
    """Return what tells, later on, whether files of the run are still what was written."""
    return {name: file_hash(data / name) for name in names}


def check_written(data: Path, written: Mapping[str, str]) -> None:
    """Refuse to go on with files of the run that were edited or removed: name -> hash of what was written.

    Raises:
        EmbedforgeError: names the file.
    """
    for name, known in written.items():
        if not (data / name).exists() or file_hash(data / name) != known:
            raise EmbedforgeError(
                f"{data / name}: this is not what the run has written any more; start anew with --restart"
            )


def stamps(folder: Path, files: Iterable[str]) -> dict[str, Stamp]:
    """Return what tells, later on, whether files have changed."""
    return {file: _stamp(folder / file) for file in files}


def changes(folder: Path, before: Mapping[str, Sequence[Any]], files: Iterable[str]) -> str:
    """Say which files are others than those stamped before; "" if none are."""
    now = set(files)
    lists = {
        "added": sorted(now - before.keys()),
        "removed": sorted(before.keys() - now),
        "changed": [file for file in sorted(now & before.keys()) if _differs(folder / file, before[file])],
    }
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for what, names in lists.items()
        if names
    )


def _keep(data: Path, folder: Folder, files: Mapping[str, Stamp]) -> None:
    rows: dict[str, Iterable[Mapping[str, Any]]] = {
        TEXTS_FILE: map(asdict, folder.train),
        SENTENCES_FILE: ({"text": text} for text in folder.sentences),
        TRAIN_PAIRS_FILE: map(asdict, folder.train_pairs),
        HELD_OUT_FILE: map(asdict, folder.held_out),
        PAIRS_FILE: map(asdict, folder.pairs),
    }
    for name, items in rows.items():
        write_jsonl(data / name, items)
    facts = {
        "files": files,
        "written": hashes(data, rows),
        "counts": folder.counts,
        "notices": folder.notices,
    }
    write_json(data / FOLDER_FILE, facts)


def _recall(data: Path) -> Folder:
    facts = read_object(data / FOLDER_FILE)
    check_written(data, facts["written"])
    train, held_out = (
        [Chunk(**row | {"headings": tuple(row["headings"])}) for row in _read(data / name)]
        for name in (TEXTS_FILE, HELD_OUT_FILE)
    )
    pairs, train_pairs = (
        [Pair(**row) for row in _read(data / name)] for name in (PAIRS_FILE, TRAIN_PAIRS_FILE)
    )
    sentences = [str(row["text"]) for row in _read(data / SENTENCES_FILE)]
    return Folder(train, sentences, held_out, pairs, train_pairs, facts["counts"], facts["notices"])


def _differs(path: Path, before: Sequence[Any]) -> bool:
    """Tell whether a file has other content; one that was only touched has not."""
    size, changed, content = _stamp(path)
    if [size, changed] == list(before[:2]):
        return False
    return not before[2] or content != before[2]


def _stamp(path: Path) -> Stamp:
    """Stamp a file; one that cannot be read, or is none, is passed over by the readers too."""
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns, content_hash(path, MAX_BYTES)
    except PassedOver:
        return status.st_size, status.st_mtime_ns, ""
    except OSError:
        return 0, 0, ""


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
