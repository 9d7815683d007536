"""What an encode run reads: files, folders of files, and standard input, put down in a file first."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from embedforge.data.readers import require_file, require_format
from embedforge.errors import EmbedforgeError
from embedforge.files import refuse_file, replace_file

STDIN = "-"
STDIN_FOLDER = "input"
STDIN_FORMATS = ("jsonl", "csv", "tsv", "txt")
ENDINGS = (".jsonl", ".csv", ".tsv", ".txt")


def find_inputs(inputs: Sequence[str | Path], out: Path, stdin_format: str | None = None) -> list[Path]:
    """Return the files that are meant: each given one, those of a folder by name, and a copy of stdin.

    Raises:
        EmbedforgeError: no such file, an ending that no reader knows, an empty folder, nothing on stdin.
    """
    files: list[Path] = []
    if stdin_format is not None and STDIN not in map(str, inputs):
        raise EmbedforgeError(f"--stdin-format {stdin_format}: the input is not standard input; name it as -")
    for given in inputs:
        path = Path(given)
        if str(given) == STDIN:
            files.append(_spool(out, stdin_format or "jsonl", sys.stdin.buffer))
        elif path.is_dir():
            files += _files_in(path)
        else:
            require_file(path)
            require_format(path)
            files.append(path)
    return files


def _files_in(folder: Path) -> list[Path]:
    known = (*ENDINGS, *(f"{ending}.gz" for ending in ENDINGS), ".parquet")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.lower().endswith(known) and not path.name.startswith((".", "_"))
    ]
    if not found:
        raise EmbedforgeError(f"{folder}: there is no file to read in this folder ({', '.join(known)})")
    return found


def _spool(out: Path, stdin_format: str, source: IO[bytes]) -> Path:
    """Copy standard input to a file in `out`, so that a second start finds the same rows in it."""
    if stdin_format not in STDIN_FORMATS:
        raise EmbedforgeError(f"--stdin-format {stdin_format}: there is {', '.join(STDIN_FORMATS)}")
    if source.isatty():
        raise EmbedforgeError("standard input ('-') is a terminal; pipe a file into it, or name a file")
    refuse_file(out)
    target = out / STDIN_FOLDER / f"stdin.{stdin_format}"
    with replace_file(target) as partial, partial.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    return target
