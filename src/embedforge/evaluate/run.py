"""Models on tasks: one result file for each pair, then `results.json` and `report.html` from all of them.

A pair whose file is there, with the same model, data and settings, is not run again; so a run that was
stopped goes on, and one more model costs only its own time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedforge.console import add_row, progress_bar
from embedforge.data.task_folder import checked_name, require_tasks
from embedforge.errors import EmbedforgeError, missing_extra
from embedforge.evaluate.decontamination import unchecked_tasks
from embedforge.evaluate.instructions import check_names, instruction_of
from embedforge.evaluate.results import EvaluationSettings, Results, versions
from embedforge.files import read_json, write_json
from embedforge.model.folder import BUNDLED, find_folder, require_model
from embedforge.run_folder import hold
from embedforge.text.contract import FILE_NAME as CONTRACT

if TYPE_CHECKING:
    from rich.progress import Progress

    from embedforge.evaluate.encoders import Encoder

logger = logging.getLogger(__name__)
BM25 = "bm25"
READER = 2
"""Of datasets in folders: what an older one let pass is scored anew."""
_NOT_OF_THE_VECTORS = ("README.md", "evaluation.json")
"""Files of a model's folder into which evaluation writes."""
_HASHED_WHOLE = 64 * 2**20
"""Files of a model up to this size are hashed; larger ones are known by size and time of change."""


def evaluate(
    models: Sequence[str | Path],
    tasks: str | Path | Sequence[str],
    out: Path | str,
    *,
    instructions: Mapping[str, str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    tokens_per_batch: int = 16_384,
    max_tokens: int | None = None,
    split: str = "test",
    resume: bool = True,
) -> Results:
    """Score models on tasks with mteb and write `results.json` and `report.html` into `out`.

    >>> import embedforge
    >>> results = embedforge.evaluate(["embedforge:base@mean", "bm25"], "datasets", "evaluation")
    >>> round(results.score("bm25", "retrieval/pairs"), 2)
    0.67

    Args:
        models: what `embedforge.load` reads, `bm25`, and `DECODER@POOLING` for a decoder that nothing has
            trained; the first is what the others are compared with.
        tasks: folders of datasets (see `embedforge.evaluate.tasks`), mteb task or benchmark names.
        out: folder of the results.
        instructions: by task name or task type, instead of the shipped ones.
        device: "cpu", "cuda", ...
        dtype: of the weights; as saved when None.
        tokens_per_batch: tokens of one forward pass, padding included.
        max_tokens: cuts texts shorter than the contract does.
        split: of the datasets in folders; tasks of mteb have their own.
        resume: keep finished pairs of an earlier run in `out`.

    Raises:
        EmbedforgeError: mteb is missing, a name is unknown, data is broken.
    """
    require_mteb()
    out, names = Path(out), [str(model) for model in models]
    labels = model_labels(names)
    decoders = [decoder_of(model) for model in names if model != BM25]
    for decoder in decoders:
        require_model(decoder)
    require_tasks(tasks, split)
    for decoder in decoders:  # last, as the hub may have much to send
        find_folder(decoder)
    from embedforge.evaluate.summary import write_summary
    from embedforge.evaluate.tasks import find_tasks

    selected = find_tasks([str(tasks)] if isinstance(tasks, Path) else tasks, split)
    check_names(instructions or {}, [t.metadata.name for t in selected], [t.metadata.type for t in selected])
    settings = EvaluationSettings(split, dtype, max_tokens, tokens_per_batch, instructions)
    table: dict[str, dict[str, dict[str, Any] | None]] = {task.metadata.name: {} for task in selected}
    with hold(out):
        with quiet_mteb(), progress_bar() as progress:
            for model, label in zip(names, labels, strict=True):
                runner = _Runner(model, label, settings, device, progress, len(selected))
                for task in selected:
                    table[task.metadata.name][label] = runner.result(task, out, resume=resume)
        results = Results(out, labels, table, _unchecked(selected, labels, names))
        write_summary(results, settings)
    for model, label in zip(names, labels, strict=True):
        _note_in_model(model, {name: row[label] for name, row in table.items()}, split)
    return results


def _unchecked(selected: Sequence[Any], labels: Sequence[str], names: Sequence[str]) -> Any:
    """Return the tasks that models' training data was not checked against."""
    revisions = {  # tasks of mteb have no split of ours
        checked_name(task.metadata.name, getattr(task, "split", "test")): str(task.metadata.revision)
        for task in selected
    }
    return unchecked_tasks(dict(zip(labels, names, strict=True)), revisions)


def _note_in_model(model: str, results: Mapping[str, dict[str, Any] | None], split: str) -> None:
    """Put the scores into the folder and card of a model that embedforge saved here."""
    from embedforge.model.card import note_evaluation

    folder = Path(model)
    scored = {name: result for name, result in results.items() if result is not None}
    if not scored or not (folder / CONTRACT).exists():
        return
    try:
        note_evaluation(folder, scored, split)
    except OSError as error:
        logger.warning("%s: the scores could not be put into the model's card (%s)", folder, error.strerror)


class _Runner:
    """One model on many tasks; the model is loaded when the first unfinished task needs it."""

    def __init__(
        self,
        model: str,
        label: str,
        settings: EvaluationSettings,
        device: str | None,
        progress: Progress,
        tasks: int,
    ) -> None:
        self._model, self._label, self._settings, self._device = model, label, settings, device
        self._fingerprint = model_fingerprint(model)
        self._encoder: Encoder | None = None
        self._bar = progress
        self._row = add_row(progress, label, tasks)

    def result(self, task: Any, out: Path, *, resume: bool) -> dict[str, Any] | None:
        """Return the result of a task, from its file or by running it; None where it cannot be done."""
        from embedforge.evaluate.baselines import BM25_TYPES

        if self._model == BM25 and task.metadata.type not in BM25_TYPES:
            self._bar.advance(self._row)
            return None
        path = out / "tasks" / file_name(self._label) / f"{file_name(task.metadata.name)}.json"
        own = self._settings.instructions or {}
        instruction = (
            None if self._model == BM25 else instruction_of(task.metadata.name, task.metadata.type, own)
        )
        inputs = task_inputs(task, self._fingerprint, instruction, self._settings)
        result: dict[str, Any] | None = read_json(path) if resume and path.exists() else None
        if result is None or result["inputs"] != inputs:
            result = {"model": self._model, "inputs": inputs, **self._run(task)}
            write_json(path, result)
        self._bar.advance(self._row)
        return result

    def _instruction(self, task: Any) -> str | None:
        if self._model == BM25:
            return None
        return instruction_of(task.metadata.name, task.metadata.type, self._settings.instructions or {})

    def _run(self, task: Any) -> dict[str, Any]:
        texts = 0

        def advance(count: int) -> None:
            nonlocal texts
            texts += count
            self._bar.update(self._row, note=f"{task.metadata.name}: {texts:,} texts")

        runner, settings, instruction = self._scorer(task, advance)
        result = score_task(runner, task, self._model)
        if task.data_loaded:
            task.unload_data()
        return {**result, "instruction": instruction, "settings": settings}

    def _scorer(self, task: Any, advance: Callable[[int], None]) -> tuple[Any, dict[str, Any], str | None]:
        from embedforge.evaluate.baselines import Bm25Search
        from embedforge.evaluate.encoders import Encoder

        if self._model == BM25:
            return Bm25Search(advance), {}, None
        if self._encoder is None:
            self._bar.update(self._row, note="loading")
            settings = self._settings
            self._encoder = Encoder(
                self._model,
                instructions=settings.instructions,
                device=self._device,
                dtype=settings.dtype,
                tokens_per_batch=settings.tokens_per_batch,
                max_tokens=settings.max_tokens,
            )
        self._encoder.progress = advance
        return self._encoder, self._encoder.settings(), self._encoder.instruction(task.metadata)


def task_inputs(
    task: Any, model: str, instruction: str | None, settings: EvaluationSettings
) -> dict[str, Any]:
    """Return all that the numbers depend on; an older result counts only if this is the same.

    Args:
        task: from `find_tasks`.
        model: its fingerprint.
        instruction: what its queries get.
        settings: of the evaluation.
    """
    metadata = task.metadata
    return {
        "model": model,
        "task": metadata.name,
        "data": metadata.revision,
        "splits": list(task.eval_splits),
        "instruction": instruction,
        "dtype": settings.dtype,
        "max_tokens": settings.max_tokens,
        "tokens_per_batch": settings.tokens_per_batch,
        "versions": versions(),
        **({"reader": READER} if hasattr(task, "folder") else {}),
    }


def score_task(runner: Any, task: Any, model: str) -> dict[str, Any]:
    """Score something on a task with mteb; the task's data stay loaded.

    Args:
        runner: encoder or search of mteb's protocols.
        task: from `find_tasks`.
        model: what an error calls it.

    Returns:
        Type and metric of the task, `score`, all `scores` by split, `units` or None, seconds, notes.

    Raises:
        EmbedforgeError: the score is not finite, or the data are bad.
    """
    from embedforge.evaluate.mteb_call import run_with_mteb
    from embedforge.evaluate.units import unit_scores

    start = time.monotonic()
    result, predicted = run_with_mteb(runner, task)
    by_split = {split: {row["hf_subset"]: row for row in rows} for split, rows in result.scores.items()}
    score = float(result.get_score())
    if not math.isfinite(score):
        raise EmbedforgeError(
            f"{model} on {task.metadata.name}: the score is {score}; are its vectors all equal, "
            "or NaN? Finished tasks are kept"
        )
    units = None
    if len(by_split) == 1:
        ((split, scores),) = by_split.items()
        units = unit_scores(task, split, predicted, scores)
    return {
        "type": task.metadata.type,
        "metric": task.metadata.main_score,
        "score": score,
        "seconds": round(time.monotonic() - start, 1),
        "scores": _finite(by_split),
        "units": None if units is None else units.as_json(),
        "notes": dict(getattr(task, "notes", {})),
    }


def model_labels(models: Sequence[str]) -> tuple[str, ...]:
    """Return for each model the shortest end of its path that no other shares.

    >>> model_labels(["runs/a/model", "runs/b/model", "bm25"])
    ('a/model', 'b/model', 'bm25')
    """
    if not models or len(set(models)) < len(models):
        raise EmbedforgeError(f"name at least one model, and each once; got: {', '.join(models) or 'none'}")
    parts = [model.rstrip("/").split("/") for model in models]
    return tuple(_short_label(part, parts) for part in parts)


def decoder_of(model: str) -> str:
    """Return what has to be there for a model's name: the decoder of DECODER@POOLING, else the model.

    >>> decoder_of("embedforge:base@mean"), decoder_of("runs/a/model"), decoder_of("http://me@host/v1")
    ('embedforge:base', 'runs/a/model', 'http://me@host/v1')
    """
    decoder, separator, pooling = model.rpartition("@")
    is_one = separator and re.fullmatch(r"\w+", pooling) and "://" not in model and not Path(model).exists()
    return decoder if is_one else model


def _short_label(part: list[str], parts: list[list[str]]) -> str:
    depths = range(1, len(part))
    alone = (n for n in depths if sum(other[-n:] == part[-n:] for other in parts) == 1)
    return "/".join(part[-next(alone, len(part)) :])


def model_fingerprint(model: str) -> str:
    """Hash of a model folder's files (of large ones size and time of change); of a hub id, its name."""
    from embedforge.evaluate.untrained import split_name

    decoder, pooling = split_name(model) or (model, "")
    folder = Path(find_folder(BUNDLED) if decoder == BUNDLED else decoder)
    digest = hashlib.sha256(pooling.encode() if folder.is_dir() else model.encode())
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    for path in (p for p in files if p not in {folder / name for name in _NOT_OF_THE_VECTORS}):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        status = path.stat()
        if status.st_size <= _HASHED_WHOLE:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        else:
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _finite(value: Any) -> Any:
    """Replace NaN (mteb's score of what it could not compute) by None: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_name(label: str) -> str:
    """Return a flat file name for a model's label or a task's name."""
    return label.replace("/", "__")


def require_mteb(purpose: str = "embedforge evaluate") -> None:
    """Refuse to go on without mteb; `purpose` is what needs it."""
    if importlib.util.find_spec("mteb") is None:
        raise missing_extra("mteb", "evaluate", purpose)


@contextlib.contextmanager
def quiet_mteb() -> Iterator[None]:
    """Silence mteb's log lines and the progress bars of datasets, which would tear ours."""
    import datasets

    logger = logging.getLogger("mteb")
    level, bars = logger.level, datasets.utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
