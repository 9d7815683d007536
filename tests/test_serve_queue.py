"""The queue alone, with a model that is a function: turns, room, failures and the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from embedforge.serve.queue import BatchQueue, QueueFullError, TooLargeError
from embedforge.text.render import Rendered


def text(number: int, tokens: int = 1) -> Rendered:
    return Rendered([number] * tokens, [1] * tokens)


class Model:
    """Gives each text its number as a vector; waits at the gate; remembers its batches."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, rows: Sequence[Rendered]) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(10)
        numbers = [row.input_ids[0] for row in rows]
        self.batches.append(numbers)
        if 13 in numbers:
            raise ValueError("thirteen")
        return np.array(numbers, dtype=np.float32)[:, None]


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.gate.set()


def held(model: Model, tokens_per_batch: int = 4, queue_tokens: int = 100) -> BatchQueue:
    """A queue whose model is busy with one text of one token."""
    queue = BatchQueue(model, tokens_per_batch, queue_tokens)
    queue.submit([text(0)])
    assert model.entered.wait(10)
    return queue


def test_a_single_text_does_not_stand_behind_a_long_request(model: Model):
    queue = held(model)
    many = queue.submit([text(number) for number in range(100, 120)])
    one = queue.submit([text(1)])
    model.gate.set()
    assert one.result(10).tolist() == [[1.0]]
    assert many.result(10).tolist() == [[float(number)] for number in range(100, 120)]
    assert 1 in model.batches[1]
    assert max(map(len, model.batches)) <= 4


def test_waiting_requests_become_one_batch(model: Model):
    queue = held(model, tokens_per_batch=64)
    futures = [queue.submit([text(number)]) for number in range(1, 9)]
    model.gate.set()
    assert [future.result(10)[0, 0] for future in futures] == list(range(1, 9))
    assert [len(batch) for batch in model.batches] == [1, 8]


@pytest.mark.parametrize("texts", [1, 5])
def test_one_text_and_many_are_refused_alike(model: Model, texts: int):
    queue = held(model, queue_tokens=50)
    queue.submit([text(1, 45)])
    with pytest.raises(QueueFullError) as refused:
        queue.submit([text(2, 10 // texts)] * texts)
    assert 1 <= refused.value.retry_after <= 60
    assert queue.tokens == 46
    with pytest.raises(TooLargeError, match="51 tokens and the queue holds 50"):
        queue.submit([text(3, 51)])


def test_room_comes_back_when_requests_are_answered_or_given_up(model: Model):
    queue = held(model, queue_tokens=10)
    given_up = queue.submit([text(1, 9)])
    with pytest.raises(QueueFullError):
        queue.require_room()
    assert given_up.cancel()
    model.gate.set()
    queue.close()
    assert queue.tokens == 0
    assert model.batches == [[0]]


def test_a_text_of_usual_length_that_does_not_fit_is_refused_unread(model: Model):
    model.gate.set()
    queue = held(model, queue_tokens=50)
    queue.submit([text(1, 20)] * 2).result(10)  # the mean of the newest is above 7 now
    model.gate.clear()
    waiting = queue.submit([text(2, 29)])
    queue.require_room()
    queue.submit([text(3, 14)])
    with pytest.raises(QueueFullError):
        queue.require_room()
    model.gate.set()
    waiting.result(10)
    queue.close()
    queue.require_room()


def test_a_text_that_fails_takes_no_other_with_it(model: Model, caplog: pytest.LogCaptureFixture):
    queue = held(model, tokens_per_batch=64)
    good, bad = queue.submit([text(1), text(2)]), queue.submit([text(13)])
    model.gate.set()
    assert good.result(10).tolist() == [[1.0], [2.0]]
    with pytest.raises(ValueError, match="thirteen"):
        bad.result(10)
    assert "failed" in caplog.text
    assert queue.submit([text(4)]).result(10).tolist() == [[4.0]]


def test_what_was_accepted_is_embedded_before_the_end(model: Model):
    queue = held(model)
    futures = [queue.submit([text(number)]) for number in range(20, 50)]
    threading.Timer(0.05, model.gate.set).start()
    queue.close()
    assert [future.result(0)[0, 0] for future in futures] == list(range(20, 50))
    with pytest.raises(QueueFullError):
        queue.submit([text(1)])
