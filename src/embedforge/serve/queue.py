"""Texts of many requests become batches: a queue by tokens, and the one thread that runs the model.

There is no waiting for a batch to fill. While the model works on one batch the next one gathers, so batches
are as large as the load makes them, and a lone text is embedded at once.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from embedforge.text.render import Rendered

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60
"""Seconds; what Retry-After says at most."""
_NEW = 0.2
"""Share of the newest batch in the measured speed."""

Embed = Callable[[Sequence[Rendered]], np.ndarray]
"""Rendered texts to vectors, [texts, dim] float32, in their order."""


class QueueFullError(Exception):
    """The queue has no room for a request now; `retry_after` seconds later it may have."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"no room in the queue for {retry_after} s")
        self.retry_after = retry_after


class TooLargeError(Exception):
    """A request has more tokens than the queue ever holds."""


class Observer(Protocol):
    """Who is told what the queue does (metrics)."""

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Texts went through the model."""

    def waited(self, seconds: float) -> None:
        """A request's first text has left the queue."""


class _Job:
    """A request's texts, longest first, and the vectors that it has so far."""

    def __init__(self, rows: Sequence[Rendered]) -> None:
        self.rows = rows
        self.lengths = [len(row.input_ids) for row in rows]
        self.tokens = sum(self.lengths)
        self.left = sorted(range(len(rows)), key=lambda row: self.lengths[row])
        self.missing = len(rows)
        self.vectors: np.ndarray | None = None
        self.future: Future[np.ndarray] = Future()
        self.arrived = time.monotonic()

    def put(self, row: int, vector: np.ndarray) -> None:
        if self.vectors is None:
            self.vectors = np.empty((len(self.rows), len(vector)), dtype=np.float32)
        self.vectors[row] = vector
        self.missing -= 1


class BatchQueue:
    """Embeds what is submitted, in batches made of all requests that wait.

    Requests take turns: each gives a batch its share of tokens, so a single text does not stand behind a
    request of thousands. A request is accepted whole or refused whole, be it one text or many.

    Args:
        embed: runs the model, in the queue's own thread.
        tokens_per_batch: about so many tokens are handed to `embed` at a time.
        queue_tokens: tokens of all requests that are accepted and not answered yet.
        observer: told of batches and waiting.
    """

    def __init__(
        self, embed: Embed, tokens_per_batch: int, queue_tokens: int, observer: Observer | None = None
    ) -> None:
        self.tokens_per_batch = tokens_per_batch
        self.queue_tokens = queue_tokens
        self._embed = embed
        self._observer = observer
        self._jobs: deque[_Job] = deque()
        self._tokens = 0
        self._speed = 0.0
        self._usual = 1.0
        """Tokens of a text, in the mean of the newest batches."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="embedforge-model", daemon=True)
        self._thread.start()

    @property
    def tokens(self) -> int:
        """Tokens that are accepted and not embedded yet."""
        return self._tokens

    def require_room(self) -> None:
        """Raise QueueFullError where no text of usual length fits: it need not be read."""
        if self._tokens and self._tokens + self._usual > self.queue_tokens:
            raise QueueFullError(self._retry_after(math.ceil(self._usual)))

    def submit(self, rows: Sequence[Rendered]) -> Future[np.ndarray]:
        """Accept a request; its future holds the vectors, [texts, dim] float32. Cancel it to give it up.

        Raises:
            QueueFullError: there is no room now.
            TooLargeError: there is never room for so much.
        """
        job = _Job(rows)
        if job.tokens > self.queue_tokens:
            raise TooLargeError(
                f"the request has {job.tokens} tokens and the queue holds {self.queue_tokens}; "
                "send it in parts"
            )
        with self._changed:
            if self._closed or self._tokens + job.tokens > self.queue_tokens:
                raise QueueFullError(self._retry_after(job.tokens))
            self._tokens += job.tokens
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Embed what was accepted, then end; nothing is accepted any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _retry_after(self, tokens: int) -> int:
        """Seconds until so many tokens have room, as far as the speed so far tells; 1 to 60."""
        over = self._tokens + tokens - self.queue_tokens
        seconds = over / self._speed if self._speed else 1.0
        return min(LONGEST_WAIT, max(1, math.ceil(seconds)))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                taken = self._take()
            if taken:
                self._embed_jobs(taken)

    def _take(self) -> dict[_Job, list[int]]:
        """Return the rows of the next batch, each job's share of them; a job with more goes to the end."""
        share = max(1, self.tokens_per_batch // len(self._jobs))
        taken: dict[_Job, list[int]] = {}
        total = 0
        for _ in range(len(self._jobs)):
            job = self._jobs.popleft()
            if job.future.cancelled():
                self._forget(job)
                continue
            if self._observer and len(job.left) == len(job.rows):
                self._observer.waited(time.monotonic() - job.arrived)
            rows, own = [], 0
            while job.left and own < share:
                rows.append(job.left.pop())
                own += job.lengths[rows[-1]]
            taken[job] = rows
            total += own
            if job.left:
                self._jobs.append(job)
            if total >= self.tokens_per_batch:
                break
        return taken

    def _embed_jobs(self, taken: dict[_Job, list[int]]) -> None:
        """Embed a batch and give each job its vectors; where that fails, find out whose fault it is."""
        rows = [job.rows[row] for job, own in taken.items() for row in own]
        start = time.monotonic()
        try:
            vectors = iter(self._embed(rows))
        except Exception as error:  # whatever it is, those who wait must hear of it
            if len(taken) > 1:
                for job, own in taken.items():
                    self._embed_jobs({job: own})
                return
            logger.exception("a batch of %d texts failed", len(rows))
            (job,) = taken
            job.left.clear()
            self._finish(job, error)
            return
        tokens = sum(len(row.input_ids) for row in rows)
        self._measure(len(rows), tokens, time.monotonic() - start)
        for job, own in taken.items():
            for row in own:
                job.put(row, next(vectors))
            if not job.missing:
                self._finish(job)

    def _measure(self, texts: int, tokens: int, seconds: float) -> None:
        speed, length = tokens / max(seconds, 1e-6), tokens / texts
        if self._speed:
            speed, length = (1 - _NEW) * self._speed + _NEW * speed, (1 - _NEW) * self._usual + _NEW * length
        self._speed, self._usual = speed, length
        if self._observer:
            self._observer.batch(texts, tokens, seconds)

    def _finish(self, job: _Job, error: Exception | None = None) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
            self._forget(job)
        if not job.future.set_running_or_notify_cancel():
            return
        if error is not None:
            job.future.set_exception(error)
        elif job.vectors is not None:
            job.future.set_result(job.vectors)

    def _forget(self, job: _Job) -> None:
        self._tokens -= job.tokens
