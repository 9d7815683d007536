"""Safetensors files as lists of named byte ranges: checked, read and rewritten one tensor at a time.

A safetensors file is an 8-byte little-endian header length, a JSON header with each tensor's dtype, shape
and byte range, and the bytes. Reading the header by itself shows at once whether the file is whole, and
renaming tensors needs no tensor in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import safe_open

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
INT8_WEIGHTS = "model.int8.safetensors"
"""Of model/int8.py."""
INDEX = "model.safetensors.index.json"
_CHUNK_BYTES = 16 * 2**20
_ALIGNMENT = 8


class TensorEntry(NamedTuple):
    """Where a stored tensor lies; `begin` and `end` are positions in the file, in bytes."""

    file: Path
    name: str
    dtype: str
    """As safetensors spells it: F32, BF16, F16 ..."""
    shape: tuple[int, ...]
    begin: int
    end: int


def list_tensors(folder: Path) -> list[TensorEntry]:
    """List the tensors of a folder's weights, shard by shard, after checking that every shard is whole.

    Raises:
        EmbedforgeError: no safetensors weights, a shard of the index is missing, or a file is cut off; the
            message names the file, the size it has and the size it should have.
    """
    index = folder / INDEX
    if index.exists():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise EmbedforgeError(f"{index}: names no files under 'weight_map'; download it again")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        lost = [file.name for file in files if not file.exists()]
        if lost:
            raise EmbedforgeError(
                f"{folder}: {INDEX} names {len(files)} files, of which {len(lost)} are not there "
                f"({', '.join(lost[:5])}); download them again"
            )
    else:
        files = [folder / (INT8_WEIGHTS if (folder / INT8_WEIGHTS).exists() else WEIGHTS)]
        if not files[0].exists():
            raise EmbedforgeError(
                f"{folder}: there is neither {INDEX} nor {WEIGHTS}, and only safetensors are read: download "
                "one of them with its shards, or save the model in this format"
            )
    return [entry for file in files for entry in read_header(file)]


def read_header(file: Path) -> list[TensorEntry]:
    """List the tensors of one safetensors file in the order of their bytes, and check the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        if size < max(start, 8):
            raise EmbedforgeError(
                f"{file}: the file ends inside its header ({size} bytes, no safetensors file of this kind "
                "is that short); it was cut off or is a placeholder: download it again"
            )
        content = stream.read(start - 8)
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        entries = [
            TensorEntry(
                file, name, item["dtype"], tuple(item["shape"]), *(start + at for at in item["data_offsets"])
            )
            for name, item in header.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        # Some downloads reserve the whole file first: an interrupted one has its size, and zeros inside.
        raise EmbedforgeError(
            f"{file}: its header is no list of tensors; the file is damaged or was not downloaded to its "
            "end: download it again"
        ) from None
    expected = max((entry.end for entry in entries), default=start)
    if size != expected:
        raise EmbedforgeError(
            f"{file}: the file has {size} bytes, its header asks for {expected}; download it again"
        )
    return sorted(entries, key=lambda entry: entry.begin)


def read_tensors(entries: Iterable[TensorEntry]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) one at a time, opening each file once.

    A tensor is a view of the mapped file, read from disk when touched: copy what has to last.
    """
    for file, group in groupby(entries, key=lambda entry: entry.file):
        with safe_open(file, framework="pt") as stored:
            for entry in group:
                yield entry.name, stored.get_tensor(entry.name)


def copy_tensors(entries: Mapping[str, TensorEntry], target: Path) -> None:
    """Write a safetensors file with the given tensors under new names; bytes are copied in small pieces."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        begin, end = end, end + entry.end - entry.begin
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with target.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for entry in entries.values():
            with entry.file.open("rb") as source:
                source.seek(entry.begin)
                left = entry.end - entry.begin
                while left:
                    left -= out.write(source.read(min(left, _CHUNK_BYTES)))


def write_index(folder: Path, files: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of a sharded checkpoint; `files` gives the shard of each tensor."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(files.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
