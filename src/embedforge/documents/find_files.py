"""Listing a folder, and reading a file of it with a limit."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path

from embedforge.errors import EmbedforgeError

DEFAULT_EXCLUDES = frozenset(
    {"test", "tests", "idle_test", "site-packages", "node_modules", "venv", "__pycache__", "build", "dist"}
)
"""Folders passed over wherever they stand below the given one, besides hidden ones: tests repeat the names
of what they test, the rest is other people's or generated."""


RUN_FILES = ("prove.json", "quickstart.json", "adapt.json")
"""What the folder of a run of `quickstart` or `adapt` has, today's or an earlier version's."""


class PassedOver(Exception):
    """A file that gives no text; the message is the name that it is counted under."""


def find_files(folder: Path, excludes: Collection[str]) -> tuple[list[str], int]:
    """List all files below `folder` by their paths from it, sorted, and count the folders passed over.

    Links to folders are not followed, so that a loop of links ends and nothing outside is read.

    Raises:
        EmbedforgeError: there is no such folder.
    """
    if not folder.is_dir():
        what = (
            "this is a file; give the folder that it is in" if folder.is_file() else "there is no such folder"
        )
        raise EmbedforgeError(f"{folder}: {what}")
    files: list[str] = []
    excluded = 0
    for parent, folders, names in os.walk(folder):
        wanted = [
            name
            for name in folders
            if name not in excludes and not name.startswith(".") and not _is_run(Path(parent, name))
        ]
        excluded += len(folders) - len(wanted)
        folders[:] = wanted
        files += [Path(parent, name).relative_to(folder).as_posix() for name in names]
    return sorted(files), excluded


def _is_run(folder: Path) -> bool:
    """Tell whether embedforge has filled a folder: its report and model card are no text of the user's."""
    return any((folder / name).is_file() for name in RUN_FILES)


def read_bytes(path: Path, most: int) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        PassedOver: larger ("files_too_large"), vanished or forbidden, or not a plain file, as a pipe that
            would never end ("files_not_readable").
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PassedOver("files_not_readable")
        if status.st_size > most:
            raise PassedOver("files_too_large")
        with path.open("rb") as file:
            source = file.read(most + 1)  # it may have grown
    except OSError:
        raise PassedOver("files_not_readable") from None
    if len(source) > most:
        raise PassedOver("files_too_large")
    return source


def content_hash(path: Path, most: int) -> str:
    """Return a hash of a file of at most `most` bytes: what tells, later on, whether it has changed.

    Raises:
        PassedOver: as of `read_bytes`.
    """
    return blake2b(read_bytes(path, most), digest_size=16).hexdigest()
