"""What was read of the user's folder, kept in the run: it stays the same when the folder changes.

OUT/data/texts.jsonl               passages to train on: MNTP
OUT/data/sentences.jsonl           their sentences: SimCSE
OUT/data/held-out.jsonl            passages that no training sees
OUT/data/held-out-sentences.jsonl
OUT/data/pairs.jsonl               questions that held-out text asks and answers by its structure
OUT/data/distractors.jsonl         passages of training text, to search the answers among
OUT/data/folder.json               what was counted; written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedforge.documents import Chunk, Folder, Pair, read_folder
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, write_json, write_text

TEXTS_FILE, SENTENCES_FILE, DONE = "texts.jsonl", "sentences.jsonl", "folder.json"
HELD_OUT_FILE, HELD_OUT_SENTENCES_FILE = "held-out.jsonl", "held-out-sentences.jsonl"
PAIRS_FILE, DISTRACTORS_FILE = "pairs.jsonl", "distractors.jsonl"

CHARACTERS_PER_TOKEN = 4
"""About what a token is worth; a passage of so many characters just fits the model."""
CHUNK_CHARACTERS = (200, 1500)
CHARACTERS_PER_MINUTE = 2_500_000
"""Most text that is read for a minute of the run: reading is to take a small part of it."""
MOST_CHARACTERS = 200_000_000


def chunk_characters(max_tokens: int) -> int:
    """Return the size of passages for a model that reads `max_tokens`.

    >>> chunk_characters(128), chunk_characters(512)
    (512, 1500)
    """
    least, most = CHUNK_CHARACTERS
    return min(most, max(least, CHARACTERS_PER_TOKEN * max_tokens))


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
        EmbedforgeError: see `read_folder`.
    """
    if (data / DONE).exists():
        return _recall(data)
    found = read_folder(
        folder,
        seed=seed,
        chunk_characters=chunk_characters(max_tokens),
        max_characters=min(MOST_CHARACTERS, int(max(1.0, minutes) * CHARACTERS_PER_MINUTE)),
        progress=progress,
    )
    _keep(data, found)
    return found


def _keep(data: Path, folder: Folder) -> None:
    for name, chunks in ((TEXTS_FILE, folder.train), (HELD_OUT_FILE, folder.held_out)):
        _write(data / name, map(asdict, chunks))
    for name, texts in (
        (SENTENCES_FILE, folder.sentences),
        (HELD_OUT_SENTENCES_FILE, folder.held_out_sentences),
        (DISTRACTORS_FILE, folder.distractors),
    ):
        _write(data / name, ({"text": text} for text in texts))
    _write(data / PAIRS_FILE, map(asdict, folder.pairs))
    write_json(data / DONE, {"counts": folder.counts, "notices": folder.notices})


def _recall(data: Path) -> Folder:
    facts = read_object(data / DONE)
    train, held_out = (
        [Chunk(**row | {"headings": tuple(row["headings"])}) for row in _read(data / name)]
        for name in (TEXTS_FILE, HELD_OUT_FILE)
    )
    sentences, held_out_sentences, distractors = (
        [str(row["text"]) for row in _read(data / name)]
        for name in (SENTENCES_FILE, HELD_OUT_SENTENCES_FILE, DISTRACTORS_FILE)
    )
    pairs = [Pair(**row) for row in _read(data / PAIRS_FILE)]
    return Folder(
        train, sentences, held_out, held_out_sentences, pairs, distractors, facts["counts"], facts["notices"]
    )


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
    except (OSError, ValueError) as error:
        raise EmbedforgeError(
            f"{path}: cannot be read ({error}); remove {path.parent} and run again to read the folder anew"
        ) from None
