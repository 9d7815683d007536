"""Teachers' vectors on disk: found by text, nothing asked twice, nothing lost or broken by a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedforge.errors import EmbedforgeError
from embedforge.train import teacher as teachers
from embedforge.train.teacher import Question, Targets, copy_vectors, fill
from embedforge.train.vector_cache import VectorCache


class Numbers:
    """A teacher whose vectors tell role, instruction and text; it may be cut off after some blocks."""

    def __init__(self, blocks: int | None = None, width: int = 3) -> None:
        self.blocks, self.width = blocks, width
        self.asked: list[str] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"teacher": "numbers", "width": self.width}

    def queries(self, texts: Sequence[str], instructions: Sequence[str]) -> np.ndarray:
        return self._vectors(texts, [1 + len(one) for one in instructions])

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors(texts, [0] * len(texts))

    def _vectors(self, texts: Sequence[str], marks: Sequence[int]) -> np.ndarray:
        if self.blocks is not None:
            if not self.blocks:
                raise KeyboardInterrupt
            self.blocks -= 1
        self.asked += texts
        rows = [
            [1.0, mark, len(text), *[0.5] * self.width][: self.width]
            for text, mark in zip(texts, marks, strict=True)
        ]
        return np.array(rows, dtype=np.float32)


def documents(count: int, start: int = 0) -> list[Question]:
    return [Question("document", "", "x" * number) for number in range(start + 1, start + count + 1)]


def keys(questions: Sequence[Question]) -> list[int]:
    return [question.key for question in questions]


def test_a_vector_is_found_by_role_instruction_and_text(tmp_path: Path) -> None:
    questions = [Question("query", "", "a"), Question("query", "do", "a"), Question("document", "", "a")]
    cache = VectorCache.of(tmp_path, Numbers().identity)
    fill(cache, questions, Numbers())
    assert cache.vectors(keys(questions)).tolist() == [[1, 1, 1], [1, 3, 1], [1, 0, 1]]
    assert cache.vectors(keys(questions)[::-1]).tolist() == [[1, 0, 1], [1, 3, 1], [1, 1, 1]]
    assert cache.vectors([]).shape == (0, 3)
    with pytest.raises(EmbedforgeError, match="vectors of 1 of 2 texts are not there"):
        cache.vectors(keys([questions[0], Question("query", "", "b")]))


def test_nothing_is_asked_twice_neither_in_a_run_nor_in_the_next(tmp_path: Path) -> None:
    first, second = Numbers(), Numbers()
    fill(VectorCache.of(tmp_path, first.identity), documents(5) * 2, first)
    cache = VectorCache.of(tmp_path, second.identity)
    fill(cache, documents(8), second)
    assert len(first.asked) == 5
    assert [len(text) for text in second.asked] == [6, 7, 8]
    assert cache.vectors(keys(documents(8)))[:, 2].tolist() == list(range(1, 9))


@pytest.mark.parametrize("torn", ["", "keys.u64", "vectors.f16", "both"])
def test_a_kill_costs_the_block_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str) -> None:
    monkeypatch.setattr(teachers, "TEXTS_AT_ONCE", 4)
    with pytest.raises(KeyboardInterrupt):
        fill(VectorCache.of(tmp_path, Numbers().identity), documents(10), Numbers(blocks=2))
    [folder] = tmp_path.iterdir()
    for name in ("keys.u64", "vectors.f16"):
        if torn in (name, "both"):  # a block of which some bytes came to the disk
            with (folder / name).open("ab") as file:
                file.write(b"\x07" * 13)
    again = Numbers()
    cache = VectorCache.of(tmp_path, again.identity)
    assert len(cache) in (8, 9)
    fill(cache, documents(10), again)
    assert set(map(len, again.asked)) >= {9, 10}
    assert len(again.asked) <= 3
    assert VectorCache(folder).vectors(keys(documents(10)))[:, 2].tolist() == list(range(1, 11))


def test_a_lost_end_of_the_vectors_is_asked_again(tmp_path: Path) -> None:
    """Where a machine went down, either file may be the shorter one."""
    fill(VectorCache.of(tmp_path, Numbers().identity), documents(6), Numbers())
    [folder] = tmp_path.iterdir()
    with (folder / "vectors.f16").open("r+b") as file:
        file.truncate(6 * 2 * 3 - 1)
    again = Numbers()
    cache = VectorCache.of(tmp_path, again.identity)
    fill(cache, documents(6), again)
    assert [len(text) for text in again.asked] == [6]
    assert cache.vectors(keys(documents(6)))[:, 2].tolist() == list(range(1, 7))


def test_another_teacher_has_a_cache_of_its_own(tmp_path: Path) -> None:
    for width in (3, 4):
        teacher = Numbers(width=width)
        cache = VectorCache.of(tmp_path, teacher.identity)
        fill(cache, documents(2), teacher)
        assert len(teacher.asked) == 2
        assert cache.dim == width
    assert len(list(tmp_path.iterdir())) == 2


def test_an_exchanged_or_broken_teacher_is_refused(tmp_path: Path) -> None:
    cache = VectorCache.of(tmp_path, {})
    fill(cache, documents(2), Numbers())
    with pytest.raises(EmbedforgeError, match="vectors of 4 numbers"):
        fill(cache, documents(3), Numbers(width=4))
    with cache.writing(), pytest.raises(EmbedforgeError, match="not finite"):
        cache.append([1], np.array([[1.0, np.inf, 0.0]], dtype=np.float32))
    assert len(VectorCache(cache.folder)) == 2


def test_targets_of_several_teachers_stand_side_by_side(tmp_path: Path) -> None:
    caches = []
    for width in (2, 3):
        caches.append(VectorCache.of(tmp_path, Numbers(width=width).identity))
        fill(caches[-1], documents(4), Numbers(width=width))
    targets = Targets(caches)
    found = targets.of(documents(4))
    assert (targets.dim, found.shape) == (5, (4, 5))
    np.testing.assert_allclose((found[:, :2] ** 2).sum(axis=1), 0.5, atol=1e-6)
    np.testing.assert_allclose((found**2).sum(axis=1), 1, atol=1e-6)


def test_vectors_of_a_file(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "vector": [3, 4]},
        {"text": "a", "vector": [0, 2], "role": "query", "instruction": "do"},
        {"text": "not asked for", "vector": [1, 0]},
    ]
    file = tmp_path / "vectors.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    cache = VectorCache.of(tmp_path / "cache", {"file": "1"})
    questions = [Question("document", "", "a"), Question("query", "", "a"), Question("query", "do", "a")]
    copy_vectors(file, cache, questions)
    np.testing.assert_allclose(cache.vectors(keys(questions)), [[0.6, 0.8], [0.6, 0.8], [0, 1]], atol=1e-3)
    assert len(cache) == 3
    with pytest.raises(
        EmbedforgeError, match=r"vectors\.jsonl: it has no vector of 1 .* query with the instr"
    ):
        copy_vectors(file, cache, [*questions, Question("query", "find", "a")])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "vector": ["x"]}, "line 1: 'vector' must be a list"),
        ({"text": "a", "vector": []}, "line 1: 'vector' must be a list"),
        ({"text": "a"}, "line 1: there is no 'vector'"),
        ({"text": "a", "vector": [1], "role": "passage"}, "line 1: 'role' is query or document"),
    ],
)
def test_a_bad_line_of_a_file_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "vectors.jsonl").write_text(json.dumps(row))
    with pytest.raises(EmbedforgeError, match=message):
        copy_vectors(tmp_path / "vectors.jsonl", VectorCache.of(tmp_path, {}), [Question("query", "", "a")])
