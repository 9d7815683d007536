"""The mark of decontaminated data: against which evaluation tasks its texts were checked.

`decontaminated.json` lies beside the files it speaks of and holds their hashes, so that a file that was
changed since has lost its mark; or in a model's folder, where it speaks of the data the model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from embedforge.errors import EmbedforgeError
from embedforge.files import file_hash, read_object, write_json
from embedforge.validation import explain

FILE_NAME = "decontaminated.json"


class CheckedTask(BaseModel):
    """One evaluation task that data was checked against."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    """Of the task's data, as `embedforge evaluate` stores it: a hash of its files, or mteb's revision."""
    documents: Literal["none", "relevant", "all"] = "none"
    """Which documents of the task's corpus were checked, besides its queries."""
    ngram: int = 0
    """Words of the n-grams that no text may share with the task; 0 for none."""
    bm25: float = 0.0
    """The least share of a text's BM25 score that counts as a copy of it; 0 for none."""


class Mark(BaseModel):
    """What `decontaminated.json` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    tasks: Mapping[str, CheckedTask]
    """By the names that `embedforge evaluate` gives them."""
    files: Mapping[str, str] = {}
    """SHA-256 of each file in the same folder; empty for a model."""


def read_mark(path: Path) -> Mark | None:
    """Return the mark of a data file or of a model's folder; None without one, or when the file has changed.

    Raises:
        EmbedforgeError: there is a mark that cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        mark = Mark.model_validate(read_object(folder / FILE_NAME))
    except ValidationError as error:
        raise EmbedforgeError(f"{folder / FILE_NAME}:\n{explain(error, Mark)}") from None
    if path.is_dir():
        return mark if not mark.files else None
    return mark if path.is_file() and mark.files.get(path.name) == file_hash(path) else None


def write_mark(folder: Path, mark: Mark) -> None:
    """Write a mark into a folder of data, or of a model."""
    write_json(folder / FILE_NAME, mark.model_dump(mode="json"))


def carry_mark(source: Path | None, target: Path) -> None:
    """Give `target`, made from `source` without a new query or positive, the mark that `source` has.

    For mining, which adds negatives only. Files of the target's folder that have the same marks stay marked;
    a source without a mark takes the target's away, for it may have been another file's.

    Args:
        source: the file that was read; None for what is no file and cannot have a mark.
        target: the file that was written.
    """
    mark, beside = None if source is None else read_mark(source), _mark_of_folder(target.parent)
    others = {name: value for name, value in beside.files.items() if name != target.name} if beside else {}
    if mark is None:
        if beside is not None:
            write_mark(target.parent, beside.model_copy(update={"files": others}))
        return
    if beside is not None and others:
        mark = common_mark([mark, beside])
    files = {**others, target.name: file_hash(target)}
    write_mark(target.parent, mark.model_copy(update={"files": files}))


def copy_mark_of_model(source: Path, target: Path) -> None:
    """Give a copy of a model, in another dtype say, the mark of its training data, if the model has one."""
    mark = read_mark(source) if source.is_dir() else None
    if mark is not None:
        write_mark(target, mark)


def training_mark(sources: Sequence[Path | None]) -> Mark:
    """Return what can be said of a model trained on these files: the tasks that all of them were checked on.

    Args:
        sources: the mix's files; None for a source that is no file, which has no mark.
    """
    marks = [None if path is None else read_mark(path) for path in sources]
    known = [mark for mark in marks if mark is not None]
    return common_mark(known) if known and len(known) == len(marks) else Mark(tasks={})


def common_mark(marks: Sequence[Mark]) -> Mark:
    """Return the tasks of the first mark that all the others have, with the same data."""
    first, *others = marks
    return Mark(
        tasks={
            name: task
            for name, task in first.tasks.items()
            if all(name in mark.tasks and mark.tasks[name].fingerprint == task.fingerprint for mark in others)
        }
    )


def undecontaminated(
    sources: Mapping[str, Path | None], tasks: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Return for each source the tasks that it was not checked against; without those that lack none.

    Args:
        sources: name -> data file, or a model's folder; None for what cannot have a mark (a hub dataset).
        tasks: name -> fingerprint, as evaluation stores it.
    """
    missing = {}
    for name, path in sources.items():
        mark = None if path is None else read_mark(path)
        checked = {} if mark is None else {task: item.fingerprint for task, item in mark.tasks.items()}
        open_tasks = tuple(task for task, value in tasks.items() if checked.get(task) != value)
        if open_tasks:
            missing[name] = open_tasks
    return missing


def _mark_of_folder(folder: Path) -> Mark | None:
    path = folder / FILE_NAME
    return Mark.model_validate(read_object(path)) if path.is_file() else None
