"""What a model's config.json must not say, found without torch: wrong types, and sizes that cannot be meant.

A configuration is read by other libraries, which take a value as it is and fail far from it, or try to
allocate what it asks for. So the keys that decoders have in common are looked at first, and the sizes are
compared with those of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from embedforge.bounds import require_plain_files
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_BESIDE_WIDTH = ("vocab_size", "intermediate_size", "ffn_dim")
"""Counts of rows of a matrix as wide as the model."""
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim")
_POSITIONS = ("max_position_embeddings", "n_positions")
_COUNTS = frozenset((*_WIDTHS, *_LAYERS, *_BESIDE_WIDTH, *_HEADS, *_POSITIONS))
_NUMBERS = frozenset(
    (
        *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta"),
        *("initializer_range", "attention_dropout", "hidden_dropout", "partial_rotary_factor"),
    )
)
_MODULES = "modules.json"
"""What a folder of sentence-transformers may have in place of config.json."""
_KINDS: tuple[tuple[str, type, str], ...] = (
    ("model_type", str, "the name of a kind of model"),
    ("dtype", str, "the name of a dtype"),
    ("torch_dtype", str, "the name of a dtype"),
    ("text_config", dict, "an object"),
    ("auto_map", dict, "an object"),
)
_MOST = 10**9
_MOST_LAYERS = 10**4
_SLACK = 16
"""How much more than the weights' bytes a matrix may have numbers: shared and packed weights are smaller."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model, and one for what its config.json says.

    Raises:
        EmbedforgeError: a pipe or device among the files, or a value of a wrong type or size.
    """
    require_plain_files(folder)
    if any((folder / name).is_file() for name in _ADAPTER_FILES):  # its config.json tells of the base
        return
    file = folder / "config.json"
    if not file.is_file():
        if not (folder / _MODULES).is_file():
            held = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
            raise EmbedforgeError(
                f"{folder}: no config.json, so this is not a model folder (it holds {held})"
            )
        return
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    values = read_object(file)
    for section in (values, values.get("text_config")):
        if isinstance(section, dict):
            check_values(file, section, weights)


def check_values(file: Path, values: Mapping[str, Any], weight_bytes: int = 0) -> None:
    """Refuse counts that are none, numbers that are none, and sizes beyond those of the weights.

    Args:
        file: for messages.
        values: of a config.json, or of its text_config.
        weight_bytes: of all weight files; 0 where they are not known.

    Raises:
        EmbedforgeError: names the file, the key and the value.
    """
    for key, kind, wanted in _KINDS:
        if not isinstance(values.get(key), kind | None):
            raise _wrong(file, values, key, wanted)
    for key, value in values.items():
        if key in _COUNTS and value is not None and not _is_count(key, value):
            least, most = _bounds_of(key)
            raise _wrong(file, values, key, f"a whole number from {least} to {most:,}")
        if key in _NUMBERS and value is not None and not _is_number(value):
            raise _wrong(file, values, key, "a finite number, 0 or more")
    width = next((values[key] for key in _WIDTHS if _is_count(key, values.get(key))), 0)
    layers = next((values[key] for key in _LAYERS if _is_count(key, values.get(key))), 1)
    wide = {key: layers * width * width for key in _WIDTHS if values.get(key) == width}
    wide |= {key: values[key] * width for key in _BESIDE_WIDTH if _is_count(key, values.get(key))}
    for key, numbers in wide.items():
        if weight_bytes and numbers > _SLACK * weight_bytes:
            names = ", ".join(sorted(path.name for path in file.parent.glob("*.safetensors"))[:3])
            raise EmbedforgeError(
                f"{file}: {key} is {values[key]:,}, which makes {numbers:,} numbers, and the weights there "
                f"have {weight_bytes:,} bytes; is config.json another model's, or {names} cut off?"
            )


def require_counts(file: Path, values: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse keys that are there and are no counts.

    Raises:
        EmbedforgeError: names the file, the key and the value.
    """
    for key in keys:
        if key in values and not _is_count(key, values[key]):
            raise _wrong(file, values, key, f"a whole number from 1 to {_MOST:,}")


def culprit(values: Mapping[str, Any], said: str) -> str:
    """Return "'key' is value: " for the key of a config.json that an error names, "" where it names none.

    >>> culprit({"rope_scaling": 3, "vocab_size": 10}, "Validation error for field 'rope_scaling'")
    "'rope_scaling' is 3: "
    """
    named = [key for key in values if len(key) > 3 and key in said]
    key = max(named, key=len, default="")
    return f"'{key}' is {values[key]!r:.60}: " if key else ""


def _is_count(key: str, value: Any) -> bool:
    """Say whether a value is a count; a static embedder has no layers, and nothing else may be 0."""
    least, most = _bounds_of(key)
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _bounds_of(key: str) -> tuple[int, int]:
    return (0, _MOST_LAYERS) if key in _LAYERS else (1, _MOST)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def _wrong(file: Path, values: Mapping[str, Any], key: str, wanted: str) -> EmbedforgeError:
    return EmbedforgeError(f"{file}: '{key}' must be {wanted}, found {values[key]!r:.60}")
