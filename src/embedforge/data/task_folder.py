"""Evaluation tasks by name, and folders of them: `type/dataset/...`; for evaluation and decontamination.

A retrieval dataset is a BEIR folder, any other has a file for each split in a format that
`embedforge.data.readers` reads. The task is named `type/dataset`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedforge.errors import EmbedforgeError, did_you_mean, missing_extra

logger = logging.getLogger(__name__)

TYPES = ("retrieval", "reranking", "classification", "clustering", "sts", "nli", "bitext")
ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def names_of(tasks: str | Path | Sequence[str]) -> list[str]:
    """Return the names in --tasks: folders, and tasks and benchmarks of mteb.

    >>> names_of("STS12, MTEB(eng, v2)")  # a comma inside parentheses belongs to a benchmark's name
    ['STS12', 'MTEB(eng, v2)']
    """
    if isinstance(tasks, Path):
        return [str(tasks)]
    return re.split(r",\s*(?![^(]*\))", tasks.strip()) if isinstance(tasks, str) else list(tasks)


def require_tasks(tasks: str | Path | Sequence[str], split: str = "test") -> None:
    """Refuse a folder that is not there or has no dataset, before what is slow is imported.

    Raises:
        EmbedforgeError: names the folder, and the nearest one that is there.
    """
    for name in names_of(tasks):
        if Path(name).is_dir():
            _of_split(Path(name).resolve(), split)
        elif "/" in name:
            near = did_you_mean(Path(name).name, (path.name for path in Path(name).parent.glob("*")))
            raise EmbedforgeError(f"--tasks {name}: there is no such folder.{near}")


def find_datasets(folder: Path, split: str = "test") -> list[Path]:
    """Return the datasets of a folder that have the split, sorted by type and name.

    Args:
        folder: one of type folders, a type folder, or one dataset.
        split: which split they must have; those without it are left out, and so are folders that look like
            datasets of a type that there is not. A warning names them.

    Raises:
        EmbedforgeError: none has it.
    """
    folder = folder.resolve()
    datasets, with_split = _of_split(folder, split)
    left_out = [task_name(dataset) for dataset in datasets if dataset not in with_split]
    if left_out:
        logger.warning("%s: left out, without a split '%s': %s", folder, split, ", ".join(left_out))
    if datasets[0].parent.parent == folder and (unknown := _of_no_type(folder, split)):
        logger.warning(
            "%s: left out, in a folder of no known type: %s; types are: %s",
            *(folder, ", ".join(unknown), ", ".join(TYPES)),
        )
    return with_split


def _of_split(folder: Path, split: str) -> tuple[list[Path], list[Path]]:
    """Return all datasets of a folder, and those that have the split; see `find_datasets`."""
    if folder.parent.name in TYPES:
        datasets = [folder]
    elif folder.name in TYPES:
        datasets = sorted(p for p in folder.iterdir() if p.is_dir())
    else:
        datasets = sorted(p for kind in TYPES for p in (folder / kind).glob("*") if p.is_dir())
    with_split = [dataset for dataset in datasets if has_split(dataset, split)]
    if not with_split:
        state = f"none of its {len(datasets)} datasets has" if datasets else "no datasets, so none with"
        raise EmbedforgeError(
            f"{folder}: {state} a split '{split}'. Expected TYPE/DATASET/{split}.jsonl, or "
            f"retrieval/DATASET/qrels/{split}.tsv; types are: {', '.join(TYPES)}"
        )
    return datasets, with_split


def _of_no_type(folder: Path, split: str) -> list[str]:
    """Name the folders below `folder` that have the split, in a folder that is no type."""
    datasets = sorted(p for p in folder.glob("[!.]*/*") if p.is_dir() and p.parent.name not in TYPES)
    return [
        task_name(p) for p in datasets if split_files(p, split) or (p / "qrels" / f"{split}.tsv").exists()
    ]


def task_name(dataset: Path) -> str:
    """Return the task's name, `type/dataset`."""
    return f"{dataset.parent.name}/{dataset.name}"


def checked_name(task: str, split: str) -> str:
    """Return a task's name in a mark of decontamination; what was checked against `dev` is not `test`."""
    return task if split == "test" else f"{task} ({split})"


def split_file(dataset: Path, split: str) -> Path:
    """Return the file of a split, whatever its format; without one, the path that the error will name.

    Raises:
        EmbedforgeError: there are two, and one would be left out without a word.
    """
    files = split_files(dataset, split)
    if len(files) > 1:
        raise EmbedforgeError(
            f"{dataset}: {' and '.join(file.name for file in files)} are the same split, and one would be "
            "read; keep one of them"
        )
    return files[0] if files else dataset / f"{split}{ENDINGS[0]}"


def split_files(dataset: Path, split: str) -> list[Path]:
    """Return the files of a split, of whatever format."""
    return [file for ending in ENDINGS if (file := dataset / f"{split}{ending}").exists()]


def has_split(dataset: Path, split: str) -> bool:
    """Say whether a dataset has a split."""
    if dataset.parent.name == "retrieval":
        return (dataset / "qrels" / f"{split}.tsv").exists()
    return bool(split_files(dataset, split))


def fingerprint(dataset: Path) -> str:
    """Return a hash of all files of a dataset, in the order of their names: it changes with the data."""
    digest = hashlib.sha256()
    for path in sorted(p for p in dataset.rglob("*") if p.is_file()):
        digest.update(path.relative_to(dataset).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def hub_tasks(name: str, *, option: str, purpose: str) -> list[Any]:
    """Return mteb's tasks of a benchmark's or a task's name.

    Args:
        name: as mteb knows it.
        option: of the command line, for the message.
        purpose: what mteb is needed for, should it be missing.

    Raises:
        EmbedforgeError: mteb is missing, or knows no such name.
    """
    try:
        import mteb
        from mteb.get_tasks import _TASKS_REGISTRY
    except ImportError:
        raise missing_extra("mteb", "evaluate", purpose) from None
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError:
        pass
    try:
        return [mteb.get_task(name)]
    except KeyError:
        raise EmbedforgeError(
            f"{option} {name}: neither a folder nor an mteb task or benchmark."
            f"{did_you_mean(name, _TASKS_REGISTRY)}"
        ) from None
