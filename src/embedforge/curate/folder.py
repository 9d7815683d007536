"""The folder of a curation: what may be replaced, found out before the work."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedforge.data.marks import FILE_NAME
from embedforge.errors import EmbedforgeError
from embedforge.files import refuse_file

REPORT = "report.json"
PAGE = "report.html"
_NAMED = 3
"""Files that a message names; of the others it says how many they are."""


def check_folder(out: Path, files: Sequence[str]) -> None:
    """Refuse a folder that cannot be written, or in which something would be lost.

    What may be replaced is an older curation of the same sources, with nothing beside it: the folder is
    replaced as a whole. Other commands write a `report.json` as well.

    Args:
        out: the folder.
        files: the names that the sources' files will have.

    Raises:
        EmbedforgeError: a file, a folder with something else in it, or one that must not be written.
    """
    _check_access(out)
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not present:
        return
    older = _files_of_curation(out)
    lost = sorted(present - {REPORT, PAGE, FILE_NAME, *older}) if older else sorted(present)
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise EmbedforgeError(
            f"{out}: holds something else ({', '.join(lost[:_NAMED])}{more}), which would be deleted; "
            "name a new or empty folder"
        )
    others = sorted(older - set(files))
    if others:
        raise EmbedforgeError(
            f"{out}: holds a curation of {', '.join(others)}, which would be deleted; name another folder"
        )


def _check_access(out: Path) -> None:
    refuse_file(out)
    above = out.resolve().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise EmbedforgeError(f"{out}: {above} is no folder that may be written; name another one")


def _files_of_curation(out: Path) -> set[str]:
    """Return the names of the files that an older curation wrote, none if this is no curation."""
    try:
        report: Any = json.loads((out / REPORT).read_text(encoding="utf-8"))
        return {str(source["file"]) for source in report["sources"]} if "steps" in report else set()
    except (OSError, ValueError, LookupError, TypeError):
        return set()
