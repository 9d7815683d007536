"""What a source's path begins with, and the name that a source has."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

HUB_PREFIX = "hub:"
CATALOG_PREFIX = "catalog:"


def default_name(path: str) -> str:
    """Return the name of a source that has a path only.

    >>> default_name("data/msmarco.jsonl.gz")
    'msmarco'
    """
    return Path(path.removeprefix(HUB_PREFIX).removeprefix(CATALOG_PREFIX)).name.partition(".")[0]


class Named(Protocol):
    """Anything with a path and, perhaps, a name."""

    @property
    def path(self) -> str:
        """A file, a BEIR folder or `hub:owner/name`."""

    @property
    def name(self) -> str:
        """Empty where none is given."""


def source_name(source: Named) -> str:
    """Return the source's name: the one given, or the last part of its path without endings.

    A file that is named after its split ("train.jsonl") hardly names a source, but two sources of one
    name are refused where they meet.
    """
    return source.name or default_name(source.path)
