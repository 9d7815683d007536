"""A saved model to a model hub, private unless asked otherwise, with its card; nothing leaves in a dry run.

What goes: the files that embedforge and sentence-transformers read, by their suffixes. Paths of this machine
in recipe.json, which are nobody else's business, go as their last part. What is missing for others to use the
model, a licence above all, is said before anything is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.model.folder import HUB_FILES
from embedforge.text.contract import FILE_NAME as CONTRACT

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
CARD, RECIPE = "README.md", "recipe.json"
NEEDED = ("config.json", "tokenizer.json", "modules.json", CONTRACT, CARD)
SENT = (*(pattern for pattern in HUB_FILES if pattern != "*.py"), CARD)
OF_CARD = ("license", "base_model")
"""What the hub and its readers look for, and no file can tell."""


@dataclass(frozen=True)
class Parcel:
    """What would be sent."""

    repo: str
    folder: Path
    private: bool
    files: dict[str, int]
    """Path in the folder, with forward slashes -> bytes."""
    left_out: list[str]
    missing: list[str]
    """Of `OF_CARD`, what the card does not say."""
    replaced: dict[str, bytes] = field(default_factory=dict)
    """Files that go with other content than they have here."""

    @property
    def described(self) -> str:
        """Say what goes where, a line a file."""
        total = sum(self.files.values())
        seen_by = "private" if self.private else "PUBLIC"
        lines = [f"{self.repo} ({seen_by}): {len(self.files)} files, {_size(total)}"]
        lines += [f"  {_size(size):>9}  {name}" for name, size in self.files.items()]
        if self.left_out:
            lines.append(f"left out, for they are no part of a model: {', '.join(self.left_out)}")
        if self.replaced:
            lines.append(f"paths of this machine are cut to their last part in: {', '.join(self.replaced)}")
        if self.missing:
            lines.append(
                f"the card does not say: {', '.join(self.missing)} (the head of {self.folder / CARD})"
            )
        return "\n".join(lines)


def pack(folder: Path, repo: str, *, public: bool) -> Parcel:
    """Look at a folder as it would be sent; without torch and without a network.

    Args:
        folder: of a model that embedforge saved.
        repo: NAME/MODEL on the hub.
        public: for everybody to read.

    Raises:
        EmbedforgeError: no such name of a repository; no model of ours, or a file of it is missing; a public
            model without a licence.
    """
    if not REPOSITORY.fullmatch(repo):
        raise EmbedforgeError(
            f"'{repo}' is no name of a repository; it is NAME/MODEL, with your name or that of a group"
        )
    if not folder.is_dir():
        raise EmbedforgeError(
            f"{folder}: there is no such folder; a model is the folder that holds {CONTRACT}"
        )
    absent = [name for name in NEEDED if not (folder / name).exists()]
    if absent:
        way = (
            "embedforge export writes it as a whole one"
            if CARD in absent
            else "name the folder of a finished model"
        )
        raise EmbedforgeError(f"{folder}: {', '.join(absent)} not there; {way}")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    sent = [name for name in names if any(fnmatch(PurePosixPath(name).name, pattern) for pattern in SENT)]
    head = _head(folder / CARD)
    missing = [key for key in OF_CARD if head.get(key) in (None, "", "unknown")]
    if public and "license" in missing:
        raise EmbedforgeError(
            f"{folder / CARD}: a public model needs a licence, and the card's head says none; write a line "
            "'license: apache-2.0', or what the base allows, between its two lines of ---"
        )
    replaced = {}
    if RECIPE in sent:
        recipe = read_object(folder / RECIPE)
        if (clean := _without_local_paths(recipe)) != recipe:
            replaced[RECIPE] = (json.dumps(clean, ensure_ascii=False, indent=2) + "\n").encode()
    sizes = {
        name: len(replaced[name]) if name in replaced else (folder / name).stat().st_size for name in sent
    }
    left_out = [name for name in names if name not in sizes]
    return Parcel(repo, folder, not public, sizes, left_out, missing, replaced)


def push(parcel: Parcel, *, message: str, say: Callable[[str], None], endpoint: str | None = None) -> str:
    """Send what `pack` has packed, in one commit, and return its address.

    Args:
        parcel: what is sent.
        message: of the commit.
        say: told what is going on.
        endpoint: of the hub; huggingface_hub's own, which HF_ENDPOINT sets, when None.

    Raises:
        EmbedforgeError: the hub cannot be reached or does not know this machine's token; a repository of that
            name is there and public, and a private one was asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=endpoint, library_name="embedforge")
    try:
        api.create_repo(parcel.repo, private=parcel.private, exist_ok=True)
        if parcel.private and not api.repo_info(parcel.repo).private:
            raise EmbedforgeError(
                f"{parcel.repo} is there already and public; say --public if everybody may read it, or "
                "choose another name"
            )
        say(f"sending {len(parcel.files)} files")
        operations = [
            CommitOperationAdd(name, parcel.replaced.get(name, str(parcel.folder / name)))
            for name in parcel.files
        ]
        return str(api.create_commit(parcel.repo, operations, commit_message=message).commit_url)
    except EmbedforgeError:
        raise
    except Exception as error:  # The HTTP library's and the hub client's own classes: many.
        raise EmbedforgeError(_why_not(parcel.repo, error)) from None


def _why_not(repo: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    way = (
        "log in with a token that may write: hf auth login, or set HF_TOKEN"
        if status in (401, 403) or "Token" in type(error).__name__
        else "run the same command again: what is there is not sent twice"
    )
    return f"{repo}: the hub did not take it; {way}. (Why not: {reason})"


def _head(card: Path) -> dict[str, Any]:
    """Return what stands between a card's two lines of ---."""
    begin, _, rest = card.read_text(encoding="utf-8").partition("---\n")
    if begin.strip():
        return {}
    try:
        head = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        raise EmbedforgeError(f"{card}: its head, between the two lines of ---, is no YAML") from None
    return head if isinstance(head, dict) else {}


def _without_local_paths(value: Any) -> Any:
    """Return JSON with absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {key: _without_local_paths(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_local_paths(item) for item in value]
    if isinstance(value, str) and "\n" not in value:
        if PurePosixPath(value).is_absolute():
            return PurePosixPath(value).name
        if PureWindowsPath(value).is_absolute():
            return PureWindowsPath(value).name
    return value


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
