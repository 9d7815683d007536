"""Where a model lies: in the package, in a folder, or on the hub; looked up without torch."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.model.config_check import check_folder
from embedforge.model.named_bases import NAMED, named_folder

BUNDLED = "embedforge:base"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
NOT_HUB_FILES = ["consolidated*", "original/*", "onnx/*", "openvino/*"]


def find_folder(base: str) -> Path:
    """Return the local folder of a model; a hub id is downloaded (no pickles) or taken from the cache.

    Args:
        base: `embedforge:base` (the decoder in the package), a folder, a named base, or a hub id.

    Raises:
        EmbedforgeError: no such folder; the hub does not have it, or cannot be reached.
    """
    require_model(base)
    if base == BUNDLED:
        return _bundled()
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if base in NAMED:
        return named_folder(base)
    import huggingface_hub  # its HTTP client, of use for hub ids only

    try:
        return Path(
            huggingface_hub.snapshot_download(base, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES)
        )
    except Exception as error:  # A connection that breaks is the hub client's HTTP library's own class.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EmbedforgeError(
            f"'{base}' is no folder here, and could not be fetched from the hub.{_hint(base)} "
            f"(Why not: {reason})"
        ) from None


def require_model(base: str) -> None:
    """Refuse a model that cannot be there, as far as that shows without the network.

    Raises:
        EmbedforgeError: a file, or neither a folder nor a name that a hub could know; a folder whose
            config.json says what cannot be.
    """
    folder = Path(base).expanduser()
    if base == BUNDLED:
        return
    if folder.is_dir():
        check_folder(folder)
        return
    if base in NAMED:
        named_folder(base)
        return
    if folder.exists():
        raise EmbedforgeError(f"{base}: this is a file; a model is a folder with config.json and weights")
    if not HUB_ID.fullmatch(base) or base.startswith("."):
        raise EmbedforgeError(f"{base}: there is no such folder.{_hint(base)}")


def _hint(base: str) -> str:
    parent = Path(base).expanduser().parent
    beside = (
        [str(parent / item.name) for item in parent.iterdir() if item.is_dir()] if parent.is_dir() else []
    )
    return did_you_mean(base, [*beside, BUNDLED, *NAMED])


def _bundled() -> Path:
    folder = Path(str(resources.files("embedforge") / "base"))
    if not any(folder.glob("*.safetensors")):
        raise EmbedforgeError(
            f"{BUNDLED}: this installation has no weights of the bundled decoder (expected in {folder}). "
            "Install embedforge from a built wheel, or name another base: a folder or a hub id"
        )
    return folder
