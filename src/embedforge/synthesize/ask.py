"""Requests asked once: known answers come from the journal, new ones go there before they are used."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any

from embedforge.synthesize.budget import Budget
from embedforge.synthesize.client import Dialect, Endpoint, EndpointError, Reply, adapt
from embedforge.synthesize.journal import REFUSED, UNCONFIRMED, Journal
from embedforge.synthesize.plan import Request, Sampling

FAILURES_IN_A_ROW = 10
"""Requests given up one after the other, with no answer in between, after which a run stops."""
POLITE = 0.1
"""Share of a try that a refusal counts for which says when to come back: a busy endpoint is no broken one."""
LONGEST_WAIT = 600.0
"""An endpoint that asks for more seconds of patience stops the run."""
SILENCE = 10.0
"""Seconds without an answer after which the user is told of tries that fail."""


@dataclasses.dataclass(frozen=True, slots=True)
class Patience:
    """How often a request is sent again, and the waits between: each twice the one before, with jitter."""

    retries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def wait(self, tries: float) -> float:
        """Return the seconds before the next try, after `tries` failed ones; drawn, to spread them."""
        return min(self.longest_wait, self.first_wait * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)


class Stop:
    """Why a run ends early; whoever is waiting wakes up."""

    def __init__(self) -> None:
        self.reason = ""
        self.is_error = self.is_budget = False
        self.interrupt: KeyboardInterrupt | None = None
        self.failure = ""
        """Why the last request was given up, whether the run ends for it or not."""
        self._event = asyncio.Event()

    def set(
        self,
        reason: str,
        *,
        is_error: bool = False,
        interrupt: KeyboardInterrupt | None = None,
        is_budget: bool = False,
    ) -> None:
        """Ask for the end; the first reason counts."""
        if not self.reason:
            self.reason = reason
            self.is_error, self.interrupt, self.is_budget = is_error, interrupt, is_budget
            self._event.set()

    async def sleep(self, seconds: float) -> None:
        """Wait, but not longer than until the end is asked for."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._event.wait(), seconds)
            except TimeoutError:
                return


class Asker:
    """Answers requests from the journal, or else from the endpoint, within the budget.

    Args:
        endpoint: who answers.
        journal: what was answered before; every answer is added.
        sampling: model and sampling settings of all requests.
        budget: when to stop.
        patience: how to repeat.
        stop: set when the budget is spent or the endpoint is of no use.
        pause: seconds from sending a request to sending the next, whoever waits for an answer.
        tell: shows the user a line, where nothing else shows why nothing happens.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        sampling: Sampling,
        budget: Budget,
        patience: Patience,
        stop: Stop,
        pause: float,
        tell: Callable[[str], None],
    ) -> None:
        self._endpoint, self._journal, self._sampling = endpoint, journal, sampling
        self._budget, self._patience, self.stop, self._tell = budget, patience, stop, tell
        self._pause = pause
        self._under_way: dict[str, asyncio.Task[bool]] = {}
        self._given_up: set[str] = set()
        self._unrecorded = 0
        """Requests sent and not yet in the journal."""
        self._failures = 0
        self._unconfirmed: list[dict[str, Any]] = []
        """Refusals since the last answer: the endpoint may refuse everything."""
        self._quiet_until = 0.0
        self._heard = time.monotonic()
        """When the last answer came, or the user was told that none comes."""
        self._one_at_a_time = asyncio.Lock()
        self._dialect, self._is_settled = _known_dialect(journal, endpoint.url, sampling.model)
        self._has_answered = False

    async def ask(self, request: Request) -> bool:
        """Have the request answered; say whether the journal now has an answer, or a refusal for good.

        The same request from several callers is sent once.
        """
        key = request.key(self._sampling)
        if self._journal.get(key) is not None:
            return True
        if key in self._given_up or self.stop.reason:
            return False
        if key not in self._under_way:
            task = asyncio.ensure_future(self._settle_and_send(request, key))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(self._under_way[key])

    async def _settle_and_send(self, request: Request, key: str) -> bool:
        """Send; until an answer shows which dialect the endpoint speaks, one request at a time."""
        if not self._is_settled:
            async with self._one_at_a_time:
                if not self._is_settled:
                    return await self._send(request, key)
        return await self._send(request, key)

    async def _send(self, request: Request, key: str) -> bool:
        """Send until there is an answer, a refusal, or no patience left; record what came of it."""
        dialect, attempts, tries = self._dialect, 0, 0.0
        started = time.monotonic()
        line: dict[str, Any] = {"key": key, "step": request.step, "group": request.group}
        error: EndpointError | None = None
        while await self._may_send():
            attempts += 1
            self._unrecorded += 1
            try:
                reply = await self._endpoint.complete(request, self._sampling, dialect)
            except EndpointError as failure:
                error = failure
                if failure.kind == "refused":
                    adapted = adapt(dialect, failure.message, self._sampling, is_settled=self._is_settled)
                    if adapted is None:
                        break
                    dialect = adapted
                    error = EndpointError("server", failure.message)  # not for good, should we stop here
                    continue
                tries += POLITE if failure.retry_after else 1
                if not failure.is_retried or tries > self._retries(failure):
                    break
                await self._wait(failure, tries)
            else:
                self._record(line | _answer(reply), attempts, started)
                self._settle(dialect)
                return True
        if error is None:
            return False  # nothing was sent
        self._record(line | _failure(error), attempts, started)
        if error.kind == "refused":
            self._unconfirmed.append(line | _failure(error) | {"error": REFUSED, "attempts": 0})
        self._judge(error, key)
        return False

    async def _may_send(self) -> bool:
        """Wait until the endpoint may be asked again; say whether the budget and Ctrl-C let us.

        With a pause, a request that may be sent moves the moment for the next, before anything else runs.
        """
        while not self.stop.reason and (left := self._quiet_until - time.monotonic()) > 0:
            await self.stop.sleep(left)
        if not self.stop.reason and (limit := self._budget.reached(self._journal.spent, self._unrecorded)):
            self.stop.set(limit, is_budget=True)
        if self._pause:
            self._quiet_until = max(self._quiet_until, time.monotonic() + self._pause)
        return not self.stop.reason

    def _retries(self, error: EndpointError) -> int:
        """An endpoint that nobody has reached yet is not there, or is none: find out soon."""
        is_absent = error.kind in ("connection", "broken_answer") and not self._has_answered
        return min(2, self._patience.retries) if is_absent else self._patience.retries

    async def _wait(self, error: EndpointError, tries: float) -> None:
        delay, now = error.retry_after, time.monotonic()
        if now - self._heard >= SILENCE:
            self._tell(f"No answer for {now - self._heard:,.0f} s; {error.message}; asking again")
            self._heard = now
        if delay is not None and delay > LONGEST_WAIT:
            self.stop.set(f"the endpoint asks to wait {delay:,.0f} s ({error.message})")
        elif delay:  # for all requests: each of them would be sent away as well
            self._quiet_until = max(self._quiet_until, time.monotonic() + delay)
        else:
            await self.stop.sleep(self._patience.wait(tries))

    def _settle(self, dialect: Dialect) -> None:
        """Keep the dialect that was answered, and note a change in the journal."""
        self._has_answered, self._failures, self._heard = True, 0, time.monotonic()
        if not self._is_settled or dialect != self._dialect:
            self._dialect, self._is_settled = dialect, True
            server = {"endpoint": self._endpoint.url, "model": self._sampling.model}
            settled = server | dataclasses.asdict(dialect)
            self._journal.append({"kind": "dialect", "dialect": settled, "time": int(time.time())})
        self.confirm()

    def confirm(self) -> None:
        """Record refusals as final: others are answered, so it is for what these prompts say.

        Not before, and not where everything is refused, for a setting or for the endpoint's own: what was
        given up for that is asked again.
        """
        while self._unconfirmed and self._is_settled:
            self._journal.append(self._unconfirmed.pop(0) | {"time": int(time.time())})

    def _record(self, line: dict[str, Any], attempts: int, started: float) -> None:
        seconds = round(time.monotonic() - started, 3)
        self._journal.append(line | {"attempts": attempts, "seconds": seconds, "time": int(time.time())})
        self._unrecorded -= attempts

    def _judge(self, error: EndpointError, key: str) -> None:
        """After a failure, stop the run if it is not this request's fault: the endpoint is of no use."""
        self._given_up.add(key)
        self.stop.failure = error.message
        if self.stop.reason:
            return
        self._failures += 1
        url, model = self._endpoint.url, self._sampling.model
        if error.kind == "not_allowed":
            hint = "is the key in the environment (OPENAI_API_KEY, or --key-variable NAME) the right one?"
            self.stop.set(f"{url} does not let us in ({error.message}); {hint}", is_error=True)
        elif error.kind == "unknown":
            hint = "check the model's name and the path of --endpoint, which often ends in /v1"
            self.stop.set(
                f"{url} does not know model '{model}' or the address ({error.message}); {hint}",
                is_error=True,
            )
        elif error.kind == "connection" and not self._has_answered:
            self.stop.set(f"{url} cannot be reached ({error.message}); is the server running?", is_error=True)
        elif error.kind == "broken_answer" and not self._has_answered:
            hint = "check the address of --endpoint, whose path often ends in /v1"
            self.stop.set(f"{url} answers with {error.message}; {hint}", is_error=True)
        elif self._failures >= FAILURES_IN_A_ROW:
            failed = f"{self._failures} requests in a row failed, the last with: {error.message}"
            self.stop.set(f"{url}: {failed}{self._way_out(error)}", is_error=True)

    def _way_out(self, error: EndpointError) -> str:
        if error.kind != "refused":
            return ""
        limit = self._sampling.max_answer_tokens
        return (
            "; where that is for length, the model has no room for the prompt and --max-answer-tokens "
            f"{limit:,}: give fewer, or serve it with a longer context"
        )


def _known_dialect(journal: Journal, url: str, model: str) -> tuple[Dialect, bool]:
    """Return the dialect of the endpoint and model, and whether the journal tells it."""
    stored = dict(journal.dialect or {})
    if (stored.pop("endpoint", None), stored.pop("model", None)) != (url, model):
        return Dialect(), False
    return Dialect(**stored), True


def _answer(reply: Reply) -> dict[str, Any]:
    return {"kind": "answer", **dataclasses.asdict(reply)}


def _failure(error: EndpointError) -> dict[str, Any]:
    kind = UNCONFIRMED if error.kind == "refused" else error.kind
    return {"kind": "failure", "error": kind, "message": error.message}
