"""The texts of evaluation tasks, which training data must not hold: folders of datasets, and tasks of mteb.

Queries are what a task asks about: the queries of a search, and every text of a task that has no queries.
Documents are what a search looks through; training on them can be legitimate, since many test collections
share the corpus of their training data (arXiv 2401.00368 does not count a shared Wikipedia either).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedforge.data.beir import read_beir, read_corpus, read_judged_queries
from embedforge.data.fields import negatives_of, positives_of
from embedforge.data.readers import read_records
from embedforge.data.task_folder import (
    checked_name,
    find_datasets,
    fingerprint,
    hub_tasks,
    split_file,
    task_name,
)
from embedforge.errors import EmbedforgeError, did_you_mean

Documents = Literal["none", "relevant", "all"]
DOCUMENTS: tuple[Documents, ...] = ("none", "relevant", "all")
_KEYS = {
    "classification": ("text",),
    "clustering": ("text",),
    "sts": ("sentence1", "sentence2"),
    "nli": ("premise", "hypothesis"),
    "bitext": ("sentence1", "sentence2"),
}
"""Where the texts of a type stand; retrieval and reranking have queries and documents."""
_NO_TEXTS = {
    "id",
    "idx",
    "label",
    "labels",
    "label_text",
    "lang",
    "genre",
    "dataset",
    "split",
    "sid",
    "pair_id",
}
"""Columns of mteb's tables that hold words which are no texts: a label "joy" is no text to keep out."""


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """One task: name and fingerprint as `embedforge evaluate` has them, and its texts, read when asked."""

    name: str
    fingerprint: str
    queries: Callable[[], Iterator[str]]
    documents: Callable[[Documents], Iterator[str]]


def find_evaluation_tasks(tasks: Sequence[str], split: str = "test") -> list[EvaluationTask]:
    """Resolve folders of datasets, mteb task names and mteb benchmark names.

    Args:
        tasks: each a name, or several apart by commas.
        split: of the datasets in folders; tasks of mteb have their own.

    Raises:
        EmbedforgeError: a folder without a dataset, a name that mteb does not know, two datasets of one name,
            or a split where there is no folder.
    """
    by_name: dict[str, EvaluationTask] = {}
    folders = 0
    for name in (name for item in tasks for name in _names(item)):
        if "/" in name and not Path(name).exists():
            near = did_you_mean(Path(name).name, (path.name for path in Path(name).parent.glob("*")))
            raise EmbedforgeError(f"--against {name}: there is no such folder.{near}")
        if Path(name).is_dir():
            folders += 1
            chosen = [_folder_task(dataset, split) for dataset in find_datasets(Path(name), split)]
        else:
            purpose = f"decontaminating against '{name}', which is no folder,"
            chosen = [mteb_task(task) for task in hub_tasks(name, option="--against", purpose=purpose)]
        for task in chosen:
            if by_name.setdefault(task.name, task).fingerprint != task.fingerprint:
                raise EmbedforgeError(
                    f"--against {name}: there are two datasets '{task.name}' with different data, and marks "
                    "know them by this name; rename one"
                )
    if split != "test" and not folders:
        raise EmbedforgeError(
            f"--against-split {split} has no effect without a folder in --against; tasks of mteb have theirs"
        )
    return list(by_name.values())


def _names(item: str) -> list[str]:
    """Split at commas, but for those of a folder's name and those in parentheses: "MTEB(eng, v2)"."""
    names = [item] if Path(item).is_dir() else re.split(r",\s*(?![^(]*\))", item)
    if not all(name.strip() for name in names):
        raise EmbedforgeError(f"--against '{item}': an empty name; name folders, tasks or benchmarks")
    return [name.strip() for name in names]


def _folder_task(dataset: Path, split: str) -> EvaluationTask:
    kind = dataset.parent.name

    def queries() -> Iterator[str]:
        if kind == "retrieval":
            yield from read_judged_queries(dataset, split).values()
        else:
            for record in read_records(split_file(dataset, split)):
                yield from (record.text(key) for key in _KEYS.get(kind, ("query",)))

    def documents(which: Documents) -> Iterator[str]:
        if which == "none" or kind not in ("retrieval", "reranking"):
            return
        if kind == "retrieval":
            if which == "relevant":
                yield from read_beir(dataset, split, corpus="relevant").documents.values()
            else:
                yield from (text for _, text in read_corpus(dataset) if text)
            return
        for record in read_records(split_file(dataset, split)):
            for read in (positives_of, negatives_of) if which == "all" else (positives_of,):
                yield from (text for text, _ in read(record))

    return EvaluationTask(checked_name(task_name(dataset), split), fingerprint(dataset), queries, documents)


def mteb_task(task: Any) -> EvaluationTask:
    """Return the texts of an mteb task; its data is loaded when they are first asked for.

    Args:
        task: an `mteb.AbsTask`; of an aggregate of tasks the texts of all.
    """
    members = list(getattr(task, "tasks", None) or [task])
    metadata = task.metadata
    return EvaluationTask(
        metadata.name,
        str(metadata.dataset["revision"]),
        lambda: _mteb_queries(members),
        lambda which: iter(()) if which == "none" else _mteb_documents(members, which),
    )


def _mteb_queries(tasks: Sequence[Any]) -> Iterator[str]:
    for task, part in _parts(tasks):
        if _is_search(part):
            wanted = set(part["relevant_docs"])
            yield from (row["text"] for row in part["queries"] if str(row["id"]) in wanted)
        else:
            yield from _all_texts(part, without=getattr(task, "label_column_name", ""))


def _mteb_documents(tasks: Sequence[Any], which: Documents) -> Iterator[str]:
    for _, part in _parts(tasks):
        if _is_search(part):
            yield from _corpus(part, only_relevant=which == "relevant")


def _parts(tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each task with the data of each of its splits."""
    for task in tasks:
        _load(task)
        for part in _splits(task.dataset, set(task.eval_splits)):
            yield task, part


def _load(task: Any) -> None:
    if task.data_loaded:
        return
    try:
        task.load_data()
    except (OSError, ValueError, RuntimeError) as error:
        raise EmbedforgeError(
            f"--against {task.metadata.name}: mteb cannot load its data ({error}). Check the network, or "
            "name a folder with the test set"
        ) from error


def _corpus(part: Mapping[str, Any], *, only_relevant: bool) -> Iterator[str]:
    judgements = part["relevant_docs"].values()
    relevant = {name for judged in judgements for name, gain in judged.items() if gain > 0}
    for row in part["corpus"]:
        if not only_relevant or str(row["id"]) in relevant:
            yield f"{row.get('title') or ''} {row['text']}".strip()


def _is_search(part: Any) -> bool:
    return isinstance(part, Mapping) and "relevant_docs" in part


def _splits(dataset: Mapping[str, Any], wanted: set[str]) -> Iterator[Any]:
    """Yield the data of the wanted splits; above a split there may be a subset for each language."""
    for name, part in dataset.items():
        if name in wanted:
            yield part
        elif isinstance(part, Mapping):
            yield from _splits(part, wanted)


def _all_texts(rows: Any, *, without: str) -> Iterator[str]:
    """Yield every text of a table's rows, also of lists, but for labels: they are no text of the task.

    Args:
        rows: of one split.
        without: the task's own name for its column of labels, besides the usual ones.
    """
    for row in rows:
        for column, value in row.items():
            if column == without or column in _NO_TEXTS:
                continue
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and text.strip():
                    yield text
