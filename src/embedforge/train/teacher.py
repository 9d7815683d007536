"""The teachers of a stage of distillation: what they are asked, and where their answers are kept."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from embedforge.console import advancing, progress_bar
from embedforge.data.readers import read_records
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError
from embedforge.files import file_hash, read_json, write_json
from embedforge.ranking import Floats
from embedforge.recipe import Recipe, Teacher
from embedforge.recipe.terms import FILE_PREFIX, distillation_of
from embedforge.runtime import empty_cache, is_first_rank
from embedforge.train.vector_cache import VectorCache, key_of

TEXTS_AT_ONCE = 1024
"""Embedded together and written together: what a kill can cost."""
SECONDS_BETWEEN_LOOKS = 2.0


class TeacherModel(Protocol):
    """Texts to unit vectors, queries and documents each in their own way; mining's teachers are such."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about the vectors, as JSON; equal identities may share vectors."""

    def queries(self, texts: Sequence[str], instructions: Sequence[str]) -> Floats:
        """Embed queries, each with its instruction ("" for none): float32 [texts, dimensions]."""

    def documents(self, texts: Sequence[str]) -> Floats:
        """Embed documents: float32 [texts, dimensions]."""


OpenTeacher = Callable[[Teacher, str | None], TeacherModel]
"""Given a teacher's settings and a device."""


class Question(NamedTuple):
    """A text as a teacher is asked for it."""

    role: str
    """query or document; a text with an instruction is a query."""
    instruction: str
    text: str

    @property
    def key(self) -> int:
        """What its vector is found by."""
        return key_of(*self)


@dataclass(frozen=True)
class Teaching:
    """What a run has for its teachers."""

    open: OpenTeacher | None
    """`open_teacher` of `embedforge.mine.teachers`; vectors in files need none."""
    cache: Path
    """The run's own folder of vectors."""
    source_folder: Path | None = None
    device: str | None = None
    quiet: bool = True

    def file_of(self, teacher: Teacher) -> Path:
        """Return the file of a teacher whose vectors are in one."""
        return Path(self.source_folder or "", teacher.model.removeprefix(FILE_PREFIX))


def check_teachers(recipe: Recipe, teaching: Teaching) -> None:
    """Refuse distillation that could not be begun.

    Raises:
        EmbedforgeError: a teacher and nothing to open it with, no such file, or a sharded model.
    """
    for stage in recipe.stages:
        distill = distillation_of(stage.objective)
        if distill is None:
            continue
        models = [one.model for one in distill.teacher if not one.model.startswith(FILE_PREFIX)]
        for one in distill.teacher:
            if one.model.startswith(FILE_PREFIX) and not teaching.file_of(one).is_file():
                raise EmbedforgeError(
                    f"stage '{stage.name}', teacher '{one.model}': there is no file {teaching.file_of(one)}"
                )
        if models and teaching.open is None:
            raise EmbedforgeError(
                f"stage '{stage.name}' has the teacher '{models[0]}', and nothing to open it with was given: "
                "pass teachers=open_teacher, from embedforge.mine.teachers, to train(), as `embedforge "
                "train` does"
            )
        if recipe.training.fsdp:
            raise EmbedforgeError(
                f"stage '{stage.name}' distils, which is not done with a model in shards: leave "
                "training.fsdp empty, or train that stage by a recipe of its own"
            )


class Targets:
    """The targets of a stage, looked up by text: the vectors of its teachers side by side."""

    def __init__(self, caches: Sequence[VectorCache]) -> None:
        self.caches = list(caches)

    @property
    def dim(self) -> int:
        """Numbers of a target."""
        return sum(cache.dim for cache in self.caches)

    def of(self, questions: Sequence[Question]) -> Floats:
        """Return targets of unit length, float32 [questions, dim]; each teacher has the same share."""
        keys = [question.key for question in questions]
        parts = [_unit(cache.vectors(keys)) for cache in self.caches]
        return _unit(np.concatenate(parts, axis=1))


def targets_of(
    teachers: Sequence[Teacher],
    questions: Callable[[], Iterable[Question]],
    teaching: Teaching,
    *,
    shared: str,
    note: Path,
) -> Targets:
    """Return the targets of a stage, embedding what no cache has yet; the first rank does, others wait.

    Args:
        teachers: of the objective.
        questions: gives all texts of the stage that need a target; may be asked again.
        teaching: of the run.
        shared: the objective's `cache`.
        note: a file in which the stage remembers its caches, so that a resumed run need not load a teacher.

    Raises:
        EmbedforgeError: a teacher that cannot be loaded or does not answer, or a file that lacks a text.
    """
    root = Path(teaching.source_folder or "", shared) if shared else teaching.cache
    while not (complete := _remembered(note, questions)):
        if is_first_rank():
            folders = [str(_filled(one, questions, teaching, root).folder) for one in teachers]
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, folders)
        else:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return Targets(complete)


def _remembered(note: Path, questions: Callable[[], Iterable[Question]]) -> list[VectorCache] | None:
    """Return the caches that a stage has noted, if they are there and have all that it needs."""
    if not note.exists():
        return None
    folders = [Path(folder) for folder in read_json(note)]
    if not all((folder / "teacher.json").exists() for folder in folders):
        return None
    caches = [VectorCache(folder) for folder in folders]
    for some in _blocks(questions(), TEXTS_AT_ONCE):
        keys = [question.key for question in some]
        if any(cache.lacks(keys) for cache in caches):
            return None
    return caches


def _filled(
    settings: Teacher, questions: Callable[[], Iterable[Question]], teaching: Teaching, root: Path
) -> VectorCache:
    """Return a teacher's cache with all that the stage needs."""
    if settings.model.startswith(FILE_PREFIX):
        path = teaching.file_of(settings)
        cache = VectorCache.of(root, {"file": file_hash(path)})
        copy_vectors(path, cache, questions())
        return cache
    assert teaching.open is not None  # check_teachers
    teacher = teaching.open(settings, teaching.device)
    try:
        cache = VectorCache.of(root, teacher.identity)
        with progress_bar(transient=teaching.quiet) as bar:
            bar.disable = teaching.quiet
            fill(cache, questions(), teacher, advancing(bar, f"vectors of {settings.model}"))
        return cache
    finally:
        del teacher
        gc.collect()
        empty_cache()


def fill(
    cache: VectorCache,
    questions: Iterable[Question],
    teacher: TeacherModel,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Embed the questions that the cache has no vector of, a block at a time."""
    with cache.writing():
        for some in _blocks(_new(questions, cache.keys()), TEXTS_AT_ONCE):
            cache.append([question.key for question in some], _asked(teacher, some))
            progress(len(some))


def copy_vectors(path: Path, cache: VectorCache, questions: Iterable[Question]) -> None:
    """Copy from a file the vectors that the questions need and the cache lacks.

    A record has `text` and `vector`, a list of numbers, and where it matters `instruction` and `role`, query
    or document; without a role it answers for both.

    Raises:
        EmbedforgeError: a bad record, or a question whose vector is not in the file.
    """
    with cache.writing():
        wanted = {question.key: question for question in _new(questions, cache.keys())}
        if not wanted:
            return
        found: dict[int, Floats] = {}
        for record in read_records(path):
            for key in _keys_of(record):
                if wanted.pop(key, None) is not None:
                    found[key] = _vector_of(record)
            if len(found) >= TEXTS_AT_ONCE:
                cache.append(list(found), np.stack(list(found.values())))
                found = {}
        if found:
            cache.append(list(found), np.stack(list(found.values())))
    if wanted:
        role, instruction, text = next(iter(wanted.values()))
        as_what = f"{role} with the instruction '{instruction}'" if instruction else role
        raise EmbedforgeError(
            f"{path}: it has no vector of {len(wanted)} of the stage's texts, the first is the {as_what} "
            f"{text!r:.80}; add them, or take the model itself as teacher"
        )


def _new(questions: Iterable[Question], known: set[int]) -> Iterator[Question]:
    """Yield each question once that is not known; notes it as such."""
    for question in questions:
        if (key := question.key) not in known:
            known.add(key)
            yield question


def _asked(teacher: TeacherModel, questions: Sequence[Question]) -> Floats:
    """Embed queries as queries and documents as documents, [questions, dimensions]."""
    parts: list[tuple[list[int], Floats]] = []
    if rows := [row for row, question in enumerate(questions) if question.role == "query"]:
        asked = [questions[row] for row in rows]
        vectors = teacher.queries([one.text for one in asked], [one.instruction for one in asked])
        parts.append((rows, vectors))
    if rows := [row for row, question in enumerate(questions) if question.role != "query"]:
        parts.append((rows, teacher.documents([questions[row].text for row in rows])))
    vectors = np.empty((len(questions), parts[0][1].shape[1]), dtype=np.float32)
    for rows, found in parts:
        vectors[rows] = found
    return vectors


def _keys_of(record: Record) -> list[int]:
    instruction, role = record.optional_text("instruction"), record.optional_text("role")
    if role not in ("", "query", "document"):
        raise record.error(f"'role' is query or document, not '{role}'")
    text = record.text("text")
    return [key_of(one, instruction, text) for one in ((role,) if role else ("query", "document"))]


def _vector_of(record: Record) -> Floats:
    given = record.require("vector")
    try:
        vector = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        vector = np.empty(0, dtype=np.float32)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise record.error(f"'vector' must be a list of finite numbers, found {given!r:.60}")
    return _unit(vector[None])[0]


def _blocks(items: Iterable[Question], size: int) -> Iterator[list[Question]]:
    block: list[Question] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
