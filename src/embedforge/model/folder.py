"""Where a model lies: in the package, in a folder, or on the hub; looked up without torch."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from embedforge.endpoint import without_password
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.model.config_check import check_folder
from embedforge.model.gguf_base import gguf_folder, is_gguf, require_gguf
from embedforge.model.named_bases import NAMED, named_folder

BUNDLED = "embedforge:base"
"""The decoder in the package, which nothing has trained to embed."""
DEFAULT_MODEL = "embedforge:forge-tiny"
"""The embedder in the package: what embeds where no model is named."""
_PACKAGED = {BUNDLED: "base", DEFAULT_MODEL: "forge_tiny"}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILES = ["README.md", "*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
NOT_HUB_FILES = ["consolidated*", "original/*", "onnx/*", "openvino/*"]


def find_folder(base: str) -> Path:
    """Return the local folder of a model; a hub id is downloaded (no pickles) or taken from the cache.

    Args:
        base: `embedforge:base` or `embedforge:forge-tiny` (the package's own), a folder, a GGUF file, a named
            base, or a hub id.

    Raises:
        EmbedforgeError: no such folder; the hub does not have it, or cannot be reached.
    """
    require_model(base)
    if base in _PACKAGED:
        return _packaged(base)
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if base in NAMED:
        return named_folder(base)
    if is_gguf(base):
        return gguf_folder(folder)
    try:
        return _hub_folder(base)
    except Exception as error:  # A connection that breaks is the hub client's HTTP library's own class.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EmbedforgeError(
            f"'{base}' is no folder here, and could not be fetched from the hub.{_hint(base)} "
            f"(Why not: {reason})"
        ) from None


@cache  # The hub is asked once: a verb looks for its model before torch is imported, and loads it after.
def _hub_folder(name: str) -> Path:
    import huggingface_hub  # its HTTP client, of use for hub ids only

    return Path(
        huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES)
    )


def require_model(base: str) -> None:
    """Refuse a model that cannot be there, as far as that shows without the network.

    What is going to load the model calls `find_folder` instead, which refuses the same and asks the hub.

    Raises:
        EmbedforgeError: a file, or neither a folder nor a name that a hub could know; a folder whose
            config.json says what cannot be.
    """
    folder = Path(base).expanduser()
    if base in _PACKAGED:
        return
    if folder.is_dir():
        check_folder(folder)
        return
    if base in NAMED:
        named_folder(base)
        return
    if is_gguf(base):
        require_gguf(folder)
        return
    if "://" in base:
        raise EmbedforgeError(
            f"{without_password(base)}: this is an address, and not the folder or hub id of a model; "
            "an endpoint can be a teacher of embedforge mine, distill and train"
        )
    if folder.exists():
        raise EmbedforgeError(f"{base}: this is a file; a model is a folder with config.json and weights")
    if not HUB_ID.fullmatch(base) or base.startswith("."):
        raise EmbedforgeError(f"{base}: there is no such folder.{_hint(base)}")


def _hint(base: str) -> str:
    parent = Path(base).expanduser().parent
    beside = (
        [str(parent / item.name) for item in parent.iterdir() if item.is_dir()] if parent.is_dir() else []
    )
    return did_you_mean(base, [*beside, *_PACKAGED, *NAMED])


def _packaged(name: str) -> Path:
    folder = Path(str(resources.files("embedforge") / _PACKAGED[name]))
    if not any(folder.glob("*.safetensors")):
        raise EmbedforgeError(
            f"{name}: this installation has no weights of it (expected in {folder}). Install embedforge from "
            "a built wheel, or name another model: a folder or a hub id"
        )
    return folder
