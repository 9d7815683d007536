"""A folder of Python source or text, without labels, to units for training and held-out evaluation.

The author of the folder has already asked and answered: a docstring and its code, a heading and its
section. Nothing else is assumed about the folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from embedforge.documents.draw import draw
from embedforge.documents.find_files import DEFAULT_EXCLUDES, PassedOver, find_files, read_bytes
from embedforge.errors import EmbedforgeError
from embedforge.quickstart.source_units import python_units, text_units
from embedforge.quickstart.split import drop_repeats, label, split
from embedforge.quickstart.unit import Unit

Progress = Callable[[int, int], None]
"""Called with the number of files read and of all files to read."""

MAX_FILES = 2000
MAX_UNITS = 20_000
MAX_BYTES = 1_000_000
"""A larger file is a table or generated."""
TRAIN_UNITS_NEEDED = 50

_SUFFIXES = {"python": frozenset({".py"}), "text": frozenset({".md", ".markdown", ".rst", ".txt"})}
_BOILERPLATE_FILE = re.compile(
    r"(licen[cs]e|copying|notice|change(log|s)|history|news|authors|contributors|code_of_conduct|requirements"
    r"|top_level|entry_points|sources)\b|changelog",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Corpus:
    """A folder's units, split so that train holds nothing that dev or test asks about."""

    train: list[Unit]
    dev: list[Unit]
    test: list[Unit]
    counts: dict[str, int]
    """What was found, read, kept and passed over, in the order of the work."""


def read_corpus(
    folder: Path,
    *,
    seed: int = 0,
    language: Literal["auto", "python", "text"] = "auto",
    excludes: Collection[str] = DEFAULT_EXCLUDES,
    max_files: int = MAX_FILES,
    max_units: int = MAX_UNITS,
    progress: Progress | None = None,
) -> Corpus:
    """Read the Python files of `folder`, or its Markdown, reStructuredText and plain text.

    A file that cannot be read or parsed is passed over and counted. Where there are more files or units
    than the limits, the seed draws which are kept.

    Args:
        folder: searched with its subfolders; links to folders are not followed.
        seed: decides the sample and the split; the same folder and seed give the same corpus.
        language: which files to read; "auto" takes whichever there are more of.
        excludes: names of folders to pass over.
        max_files: most files to read.
        max_units: most units to keep.
        progress: called after every file.

    Raises:
        EmbedforgeError: no such folder, or too little in it to train and to test.
    """
    found, counts = _find_files(folder, frozenset(excludes))
    language, files = _choose(found, language)
    counts[f"files_{language}"] = len(files)
    counts["files_of_other_kind"] = sum(map(len, found.values())) - len(files)
    drawn = draw(files, max_files, seed)
    counts["files_over_limit"] = len(files) - len(drawn)
    units = _read_files(folder, [file for file in files if file in drawn], language, counts, progress)
    counts["units_found"] = len(units)
    units, dropped = drop_repeats(units)
    counts.update(dropped)
    kept = draw((unit.id for unit in units), max_units, seed)
    counts["units_over_limit"] = len(units) - len(kept)
    units = label([unit for unit in units if unit.id in kept])
    _require(folder, len(units), TRAIN_UNITS_NEEDED, language, counts)
    train, dev, test, dropped = split(units, seed)
    counts.update(dropped)
    _require(folder, len(train), TRAIN_UNITS_NEEDED, language, counts)
    counts.update(train=len(train), dev=len(dev), test=len(test))
    return Corpus(train, dev, test, dict(counts))


def _find_files(folder: Path, excludes: frozenset[str]) -> tuple[dict[str, list[str]], Counter[str]]:
    """List the files of each language by their paths from `folder`, sorted."""
    found: dict[str, list[str]] = {language: [] for language in _SUFFIXES}
    files, excluded = find_files(folder, excludes)
    counts: Counter[str] = Counter(folders_excluded=excluded, files_boilerplate=0)
    for file in files:
        path = PurePosixPath(file)
        for language, suffixes in _SUFFIXES.items():
            if path.suffix.lower() not in suffixes:
                continue
            if language == "text" and _BOILERPLATE_FILE.match(path.stem):
                counts["files_boilerplate"] += 1
            else:
                found[language].append(file)
    return found, counts


def _choose(
    found: dict[str, list[str]], language: Literal["auto", "python", "text"]
) -> tuple[Literal["python", "text"], list[str]]:
    if language == "auto":
        language = "python" if len(found["python"]) >= len(found["text"]) else "text"
    return language, found[language]


def _read_files(
    folder: Path,
    files: list[str],
    language: Literal["python", "text"],
    counts: Counter[str],
    progress: Progress | None,
) -> list[Unit]:
    """Read every file's units; `counts` takes what was passed over."""
    read = python_units if language == "python" else text_units
    depth = _shared_depth(files)
    units: list[Unit] = []
    counts.update(files_not_parsed=0, files_not_readable=0, files_too_large=0)
    for number, file in enumerate(files, start=1):
        try:
            source = read_bytes(folder / file, MAX_BYTES)
            found, passed_over = read(source, file, _package(file, depth))
            units += found
            counts.update(passed_over)
        except PassedOver as reason:
            counts[str(reason)] += 1
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            counts["files_not_parsed"] += 1
        if progress is not None:
            progress(number, len(files))
    return units


def _shared_depth(files: list[str]) -> int:
    """Count the folders that all files lie in, which say nothing about any of them."""
    depth = 0
    for folders in zip(*(PurePosixPath(file).parent.parts for file in files), strict=False):
        if len(set(folders)) > 1:
            break
        depth += 1
    return depth


def _package(file: str, depth: int) -> str:
    """Return the top-level folder or module of a file, below the folders shared by all.

    >>> _package("src/library/io/reader.py", 2), _package("src/library/errors.py", 2)
    ('io', 'errors')
    """
    path = PurePosixPath(file)
    return path.parts[depth] if len(path.parts) > depth + 1 else path.stem


def _require(folder: Path, found: int, needed: int, language: str, counts: Counter[str]) -> None:
    if found >= needed:
        return
    what = (
        "Python functions and classes with a docstring of at least four words"
        if language == "python"
        else "sections of Markdown or text under a heading"
    )
    listed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    raise EmbedforgeError(
        f"{folder}: found {found} {what} for training, at least {needed} are needed (better: 1000). "
        f"Counted: {listed or 'nothing'}. Give a larger folder, or one with more documentation in it."
    )
