"""What a source's path begins with, and the name that a source has from it."""

from __future__ import annotations

from pathlib import Path

HUB_PREFIX = "hub:"
CATALOG_PREFIX = "catalog:"


def default_name(path: str) -> str:
    """Return the name of a source that has a path only.

    >>> default_name("data/msmarco.jsonl.gz")
    'msmarco'
    """
    return Path(path.removeprefix(HUB_PREFIX).removeprefix(CATALOG_PREFIX)).name.partition(".")[0]
