"""A folder of datasets as mteb tasks, so that mteb computes the metrics; nothing comes from a hub.

The layout is that of `embedforge.data.task_folder`: `type/dataset/...`, with type one of the keys of `TYPES`.
This module needs mteb.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata

from embedforge.data.beir import read_beir
from embedforge.data.fields import negatives_of, positives_of
from embedforge.data.kinds import scored_pair
from embedforge.data.labels import labelled_rows
from embedforge.data.nli import ENTAILMENT, read_nli
from embedforge.data.notes import Notes
from embedforge.data.readers import read_records
from embedforge.data.record import Record
from embedforge.data.task_folder import find_datasets, fingerprint, hub_tasks, names_of, split_file, task_name
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.evaluate.retrieval import v_measure

_FEWEST_TO_CLUSTER = 4
_LANGUAGE = ["eng-Latn"]  # mteb asks for one; nothing here depends on it


class _FolderTask(AbsTask):
    """What the tasks of a folder share: metadata of the instance, and files instead of a hub."""

    data_loaded: bool
    notes: Notes
    """What was passed over in the data that was loaded last."""

    def __init__(self, folder: Path, split: str, metadata: TaskMetadata) -> None:
        self.folder, self.split, self.metadata = folder, split, metadata
        self.notes = Notes()
        super().__init__()

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the split (and `train`, where a classifier is fitted) from the folder."""
        if not self.data_loaded:
            self.notes.clear()
            self.dataset = self._read()
            self.data_loaded = True

    def unload_data(self) -> None:
        """Let the data go; mteb's own method would drop the metadata as well."""
        self.dataset, self.data_loaded = None, False

    @property
    def prediction_file_name(self) -> str:
        """A flat file name: the slash of `type/dataset` would be a folder."""
        return f"{self.metadata.name.replace('/', '__')}_predictions.json"

    def _read(self) -> Any:
        raise NotImplementedError

    def _records(self, split: str) -> Iterable[Record]:
        return read_records(split_file(self.folder, split))

    def _error(self, message: str) -> EmbedforgeError:
        return EmbedforgeError(f"{split_file(self.folder, self.split)}: {message}")


class FolderRetrieval(_FolderTask, AbsTaskRetrieval):
    """Queries, a corpus and judgements: a BEIR folder."""

    def _read(self) -> Any:
        data = read_beir(self.folder, self.split, corpus="all")
        self.notes.update(data.notes)
        if len(data.documents) < 2:
            raise EmbedforgeError(f"{self.folder}: its corpus has one document, which every search finds")
        queries = [{"id": i, "text": t} for i, t in data.queries.items()]
        corpus = [{"id": i, "text": t} for i, t in data.documents.items()]
        return {"default": {self.split: _retrieval_split(corpus, queries, data.grades)}}


class FolderReranking(_FolderTask, AbsTaskRetrieval):
    """Each query has its own few candidates: `query`, `positive` and `negative`, documents as in Examples."""

    def _read(self) -> Any:
        corpus, queries = [], []
        candidates: dict[str, list[str]] = {}
        relevant: dict[str, dict[str, int]] = {}
        for record in self._records(self.split):
            query_id = f"q{record.number}"
            queries.append({"id": query_id, "text": record.text("query")})
            relevant[query_id], candidates[query_id] = {}, []
            for key, gain, texts in zip(("positive", "negative"), (1, 0), _candidates(record), strict=True):
                for i, text in enumerate(texts):
                    document_id = f"{query_id}-{key}{i}"
                    corpus.append({"id": document_id, "text": text})
                    relevant[query_id][document_id] = gain
                    candidates[query_id].append(document_id)
        return {"default": {self.split: _retrieval_split(corpus, queries, relevant, candidates)}}


class FolderClassification(_FolderTask, AbsTaskClassification):
    """A classifier on 8 texts a class, 10 times over: `text` and `label`, with a `train` split."""

    def _read(self) -> Any:
        train = labelled_rows(self._records("train"))
        numbers = {label: i for i, label in enumerate(sorted({label for _, label in train}))}
        test = list(self._test_rows(numbers))
        if len(test) < 2:
            raise self._error("its one text is no test of a classifier; add more")
        return DatasetDict(
            {
                split: Dataset.from_dict(
                    {"text": [text for text, _ in rows], "label": [numbers[label] for _, label in rows]}
                )
                for split, rows in (("train", train), (self.split, test))
            }
        )

    def _test_rows(self, known: Collection[str]) -> Iterator[tuple[str, str]]:
        for record in self._records(self.split):
            label = str(record.label("label"))
            if label not in known:
                raise record.error(
                    f"label '{label}' of {self.split} is not in train, so that no classifier can know it."
                    f"{did_you_mean(label, known)}"
                )
            yield record.text("text"), label


class FolderClustering(_FolderTask, AbsTaskClustering):
    """k-means against labels: `text` and `label`.

    mteb clusters samples drawn *with* replacement, in which copies of one text always meet; here each
    of the repeats takes a random half of the texts (see `retrieval.v_measure`), which also gives an
    honest interval.
    """

    def _read(self) -> Any:
        rows = labelled_rows(self._records(self.split))
        if len(rows) < _FEWEST_TO_CLUSTER:
            raise self._error(f"{len(rows)} texts are too few to cluster; {_FEWEST_TO_CLUSTER} are needed")
        columns = {"sentences": [text for text, _ in rows], "labels": [label for _, label in rows]}
        return DatasetDict({self.split: Dataset.from_dict(columns)})

    def _evaluate_subset(self, model: Any, data_split: Any, **settings: Any) -> dict[str, Any]:
        from mteb._create_dataloaders import create_dataloader

        options = settings["encode_kwargs"]
        loader = create_dataloader(
            data_split, task_metadata=self.metadata, input_column="sentences", num_proc=None, **options
        )
        split_options = {"hf_split": settings["hf_split"], "hf_subset": settings["hf_subset"]}
        vectors = np.asarray(model.encode(loader, task_metadata=self.metadata, **split_options, **options))
        values = v_measure(vectors, data_split["labels"], seed=self.seed)
        return {"v_measure": float(values.mean()), "v_measures": {"halves": values.tolist()}}


class FolderSTS(_FolderTask, AbsTaskSTS):
    """Spearman of cosine and human score: `sentence1`, `sentence2`, `score`."""

    def _read(self) -> Any:
        first, second, scores = zip(*map(scored_pair, self._records(self.split)), strict=True)
        if len(set(scores)) < 2:
            raise self._error(f"every pair has the score {scores[0]:g}; a correlation needs two at least")
        columns = {"sentence1": first, "sentence2": second, "score": scores}
        return DatasetDict({self.split: Dataset.from_dict({k: list(v) for k, v in columns.items()})})


class FolderPairClassification(_FolderTask, AbsTaskPairClassification):
    """Does the cosine tell entailment from the rest? `premise`, `hypothesis`, `label`.

    Labels are those of `embedforge.data.nli`, as in training; pairs without one are passed over.
    """

    def _read(self) -> Any:
        pairs = list(read_nli(self._records(self.split), self.notes))
        labels = [int(pair.label == ENTAILMENT) for pair in pairs]
        if len(set(labels)) < 2:
            raise self._error("it needs pairs with and without entailment")
        columns = {
            "sentence1": [pair.premise for pair in pairs],
            "sentence2": [pair.hypothesis for pair in pairs],
            "labels": labels,
        }
        return DatasetDict({self.split: Dataset.from_dict(columns)})


class FolderBitext(_FolderTask, AbsTaskBitextMining):
    """Find each sentence's translation among all of its language: `sentence1`, `sentence2`, `lang`."""

    def _read(self) -> Any:
        rows: dict[str, dict[str, list[str]]] = {}
        for record in self._records(self.split):
            pair = rows.setdefault(_language(record), {"sentence1": [], "sentence2": []})
            for key, texts in pair.items():
                texts.append(record.text(key))
        for language, columns in rows.items():
            if len(columns["sentence1"]) < 2:
                raise self._error(f"language '{language}' has one pair, which every model finds; add more")
        return {
            language: DatasetDict({self.split: Dataset.from_dict(columns)})
            for language, columns in rows.items()
        }


@dataclass(frozen=True, slots=True)
class _Kind:
    task: Callable[[Path, str, TaskMetadata], AbsTask]
    mteb_type: str
    main_score: str


TYPES = {
    "retrieval": _Kind(FolderRetrieval, "Retrieval", "ndcg_at_10"),
    "reranking": _Kind(FolderReranking, "Reranking", "map_at_1000"),
    "classification": _Kind(FolderClassification, "Classification", "accuracy"),
    "clustering": _Kind(FolderClustering, "Clustering", "v_measure"),
    "sts": _Kind(FolderSTS, "STS", "cosine_spearman"),
    "nli": _Kind(FolderPairClassification, "PairClassification", "cosine_ap"),
    "bitext": _Kind(FolderBitext, "BitextMining", "accuracy"),
}


def find_tasks(tasks: str | Sequence[str], split: str = "test") -> list[AbsTask]:
    """Resolve folders, mteb task names and mteb benchmark names (a list, or separated by commas).

    A folder is one of type folders, a type folder or one dataset. Datasets of a folder that lack
    `split` are left out; a folder in which none has it is an `EmbedforgeError`, and so is an unknown name.
    """
    resolved: list[AbsTask] = []
    for name in names_of(tasks):
        if Path(name).is_dir():
            resolved += folder_tasks(Path(name), split)
        else:
            resolved += hub_tasks(name, option="--tasks", purpose="embedforge evaluate")
    seen: set[str] = set()
    for task in resolved:
        if task.metadata.name in seen:
            raise EmbedforgeError(f"--tasks: '{task.metadata.name}' is named twice; each task once")
        seen.add(task.metadata.name)
    return resolved


def folder_tasks(folder: Path, split: str = "test") -> list[AbsTask]:
    """Return the tasks of a folder of datasets, sorted by name; see `find_tasks`."""
    return [_task(dataset, split) for dataset in find_datasets(folder, split)]


def _task(dataset: Path, split: str) -> AbsTask:
    kind = TYPES[dataset.parent.name]
    languages: Any = _LANGUAGE
    if dataset.parent.name == "bitext":
        records = read_records(split_file(dataset, split))
        languages = dict.fromkeys(sorted({_language(record) for record in records}), _LANGUAGE)
    metadata = TaskMetadata(
        name=task_name(dataset),
        description=f"{dataset.parent.name} on the files of {dataset.name}",
        type=kind.mteb_type,
        category="t2t",
        dataset={"path": dataset.name, "revision": fingerprint(dataset)},
        eval_splits=[split],
        eval_langs=languages,
        main_score=kind.main_score,
    )
    return kind.task(dataset, split, metadata)


def _retrieval_split(
    corpus: list[dict[str, str]],
    queries: list[dict[str, str]],
    relevant: dict[str, dict[str, int]],
    candidates: dict[str, list[str]] | None = None,
) -> dict[str, Any]:
    return {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list(queries),
        "relevant_docs": relevant,
        "top_ranked": candidates,
    }


def _candidates(record: Record) -> tuple[list[str], list[str]]:
    """Return the right and the wrong candidates of a query: without both there is nothing to rank."""
    right, wrong = ([text for text, _ in read(record)] for read in (positives_of, negatives_of))
    if not right or not wrong:
        raise record.error(
            f"no {'negatives' if right else 'positives'} for the query, so that all rankings of its "
            "documents are equally good; add some, or remove the record"
        )
    if both := set(right) & set(wrong):
        raise record.error(f"{min(both)!r:.60} is a positive and a negative; keep one of the two")
    return right, wrong


def _language(record: Record) -> str:
    return record.optional_text("lang") or "default"
