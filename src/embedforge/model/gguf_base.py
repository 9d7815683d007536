"""A decoder in a GGUF file as a base: `model.base: FILE.gguf`.

transformers reads the file and makes plain numbers of its quantised weights. That takes a while, so the model
folder it gives is kept beside the named bases, and made once for a file as it is.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from embedforge.errors import EmbedforgeError, missing_extra
from embedforge.files import hash_of, read_object, replace_folder, write_json
from embedforge.model.named_bases import NOTE, bases_folder

SUFFIX = ".gguf"
_MAGIC = b"GGUF"


def is_gguf(base: str) -> bool:
    """Say whether a base is a file by its ending."""
    return base.lower().endswith(SUFFIX)


def require_gguf(file: Path) -> None:
    """Refuse, without torch, what cannot be read as a GGUF file.

    Raises:
        EmbedforgeError: no such file, another kind of file, one part of several, or the extra is missing.
    """
    if not file.is_file():
        raise EmbedforgeError(f"{file}: there is no such file")
    with file.open("rb") as content:
        magic = content.read(4)
    if magic != _MAGIC:
        raise EmbedforgeError(f"{file}: this is no GGUF file (it begins with {magic!r}); download it again")
    if "-of-0" in file.name:
        raise EmbedforgeError(
            f"{file}: this is one part of a split GGUF file, which transformers cannot read; join them: "
            "llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf"
        )
    if importlib.util.find_spec("gguf") is None:
        raise missing_extra("gguf", "gguf", f"reading {file.name}")


def gguf_folder(file: Path) -> Path:
    """Return the model folder of a GGUF file, made if it is not there yet.

    The weights are bfloat16, since those of the file are mostly coarser.

    Raises:
        EmbedforgeError: see `require_gguf`; or transformers does not know the decoder in it.
    """
    require_gguf(file)
    status = file.stat()
    source = {"file": str(file.resolve()), "bytes": status.st_size, "changed": status.st_mtime_ns}
    folder = bases_folder() / f"{file.stem}-{hash_of(source)[:12]}"
    if (folder / NOTE).exists() and read_object(folder / NOTE) == source:
        return folder
    from embedforge.model.fetch_base import convert_gguf  # torch

    try:
        with replace_folder(folder, NOTE) as partial:
            convert_gguf(file, partial)
            write_json(partial / NOTE, source)
    except EmbedforgeError:
        raise
    except Exception as error:  # Whatever the library makes of a file that somebody else wrote.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise EmbedforgeError(
            f"{file}: transformers cannot read this GGUF file ({type(error).__name__}: {reason}). Name the "
            "folder or hub id that it was made from instead"
        ) from error
    return folder
