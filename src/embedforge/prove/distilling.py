"""What a run that distils has beside the others: the teacher, as a system, and its documents searched.

| system | queries of | documents of |
|---|---|---|
| trained | the student | the student |
| teacher | the teacher | the teacher |
| across | the student | the teacher |

`across` is what distillation is for: an index that the teacher has made is searched by the student, which is
small enough to run where the queries are asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from embedforge.documents import Folder
from embedforge.mine.teachers import open_teacher
from embedforge.prove.held_out import HeldOut
from embedforge.prove.systems import ACROSS, TEACHER, TRAINED, Encoded
from embedforge.prove.texts import SENTENCES_FILE, TEXTS_FILE
from embedforge.prove.training_data import QUESTIONS_FILE
from embedforge.recipe import Teacher
from embedforge.train.teacher import TeacherModel

RECIPE = "distill-small"
TEACHER_SHARE = 0.25
"""Of the run's time, for the teacher's vectors of training text."""
FEWEST_TAUGHT = 200
"""Of each file of text, whatever the time."""
SAMPLE = 64
AT_ONCE = 256

Floats = NDArray[np.float32]


def measure_teacher(name: str, folder: Folder, device: str | None, seed: int) -> float:
    """Return the characters that a teacher embeds in a second."""
    texts = [chunk.text for chunk in folder.train]
    drawn = np.random.default_rng(seed).permutation(len(texts))[:SAMPLE]
    teacher = open_teacher(Teacher(model=name), device)
    teacher.documents([texts[drawn[0]]])
    started = time.monotonic()
    teacher.documents([texts[row] for row in drawn])
    characters = sum(len(texts[row]) for row in drawn)
    return float(characters / max(time.monotonic() - started, 1e-6))


def taught_texts(folder: Folder, characters_per_second: float, seconds: float) -> dict[str, int]:
    """Return how many texts of each file of training text the teacher has the time to embed.

    Args:
        folder: what was read.
        characters_per_second: of the teacher.
        seconds: of the whole run.
    """
    lengths = _lengths(folder)
    share = TEACHER_SHARE * seconds * characters_per_second / max(sum(map(sum, lengths.values())), 1)
    return {
        file: min(len(all_of), max(FEWEST_TAUGHT, int(min(1.0, share) * len(all_of))))
        for file, all_of in lengths.items()
    }


def teaching_seconds(folder: Folder, taught: Mapping[str, int], characters_per_second: float) -> float:
    """Return about how long the teacher takes for so many texts of each file."""
    known = {file: lengths for file, lengths in _lengths(folder).items() if lengths}
    characters = sum(taught.get(file, 0) * np.mean(lengths) for file, lengths in known.items())
    return float(characters / characters_per_second)


def _lengths(folder: Folder) -> dict[str, list[int]]:
    return {
        TEXTS_FILE: [len(chunk.text) for chunk in folder.train],
        SENTENCES_FILE: [len(text) for text in folder.sentences],
        QUESTIONS_FILE: [len(pair.query) + len(pair.document) for pair in folder.train_pairs],
    }


def encode_by_teacher(
    teacher: TeacherModel, held_out: HeldOut, instruction: str, progress: Callable[[int], None]
) -> Encoded:
    """Run the teacher over held-out text; vectors are of unit length.

    Args:
        teacher: opened.
        held_out: the texts.
        instruction: what it puts before questions; "" for none.
        progress: called with the number of texts finished since the last call.
    """

    def documents(texts: Sequence[str]) -> Floats:
        parts = []
        for start in range(0, len(texts), AT_ONCE):
            parts.append(teacher.documents(texts[start : start + AT_ONCE]))
            progress(len(parts[-1]))
        return np.concatenate(parts) if parts else queries[:0]

    questions = [pair.query for pair in held_out.pairs] or [""]
    queries = teacher.queries(questions, [instruction] * len(questions))
    progress(len(held_out.pairs))
    return Encoded(
        queries=queries[: len(held_out.pairs)],
        answers=documents([pair.document for pair in held_out.pairs]),
        distractors=documents([pair.document for pair in held_out.distractors]),
        beginnings=documents([beginning for beginning, _ in held_out.halves]),
        ends=documents([end for _, end in held_out.halves]),
        losses=np.empty(0),
        predictions=np.empty(0, dtype=np.int64),
    )


def with_across(encoded: dict[str, Encoded]) -> dict[str, Encoded]:
    """Add the student's questions against the teacher's documents, where their vectors are of one length."""
    student, teacher = encoded[TRAINED], encoded[TEACHER]
    if student.queries.shape[1:] != teacher.queries.shape[1:]:
        return encoded
    return {**encoded, ACROSS: replace(teacher, queries=student.queries)}
