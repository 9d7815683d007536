"""Files of rows, written and read, and the errors of bad ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from embedforge.data.fields import example_of
from embedforge.data.readers import read_records
from embedforge.errors import EmbedforgeError


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def read_all(path: Path) -> list[dict]:
    return [record.values for record in read_records(path)]


def examples_of(path: Path) -> list:
    return [*map(example_of, read_records(path))]


def fails(path: Path, *parts: str, read=examples_of) -> str:
    """Reading `path` is an error whose message has all the parts; every message names the file."""
    with pytest.raises(EmbedforgeError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message or path.name in message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    return message
