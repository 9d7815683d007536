"""Sources as a command line names them: `PATH` or `NAME=PATH`, of a kind that the data tells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from embedforge.data.beir import is_beir
from embedforge.data.fields import other_kind
from embedforge.data.names import CATALOG_PREFIX, HUB_PREFIX
from embedforge.data.readers import read_records
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Source, source_of

_ELSEWHERE = (HUB_PREFIX, CATALOG_PREFIX)
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


def sources_of(
    arguments: Sequence[str],
    *,
    kind: str | None = None,
    split: str | None = None,
    instruction: str | None = None,
    cap: int | None = None,
    threshold: float | None = None,
) -> list[Source]:
    """Return the sources that a command line names, each opened as far as to see that it is there.

    Args:
        arguments: `PATH` or `NAME=PATH`: files, BEIR folders, `hub:owner/name`, `catalog:NAME`.
        kind: what the rows of files and hub datasets are; told by the data when None.
        split: of BEIR folders and hub datasets.
        instruction: of rows that bring none of their own.
        cap: at most so many Examples of each source.
        threshold: lowest score of a positive, for the sources of scored pairs.

    Raises:
        EmbedforgeError: no such file or entry, a bad value, or one that no source has a use for.
    """
    sources = []
    for argument in arguments:
        name, path = _name_and_path(argument)
        own = None if path.startswith(CATALOG_PREFIX) else kind or _told_kind(path)
        source = source_of(path, name=name, kind=own, instruction=instruction, cap=cap)
        sources.append(source)
    has_splits = [source.kind == "retrieval" or source.path.startswith(_ELSEWHERE) for source in sources]
    is_scored = [source.kind == "scored_pairs" for source in sources]
    sources = _with(sources, "split", split, has_splits, "BEIR folders and hub datasets")
    return _with(sources, "threshold", threshold, is_scored, "scored pairs")


def _with(
    sources: Sequence[Source], key: str, value: str | float | None, takes: Sequence[bool], whose: str
) -> list[Source]:
    """Give a setting to the sources that have a use for it."""
    if value is not None and not any(takes):
        raise EmbedforgeError(f"--{key} {value} is for {whose}, and no source is of that kind")
    return [
        source.model_copy(update={key: value}) if value is not None and fits else source
        for source, fits in zip(sources, takes, strict=True)
    ]


def _name_and_path(argument: str) -> tuple[str | None, str]:
    match = None if Path(argument).exists() else _NAMED.fullmatch(argument)
    return (match[1], match[2]) if match else (None, argument)


def _told_kind(path: str) -> str | None:
    """Return the kind that a folder's files or a file's first row tell; None for Examples and for the hub."""
    if path.startswith(HUB_PREFIX):
        return None
    if is_beir(path):
        return "retrieval"
    return other_kind(next(read_records(path)).values)
