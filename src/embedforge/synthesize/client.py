"""One request to an OpenAI-compatible endpoint, through the `openai` package, and what can come of it.

The package's own retries are switched off: `ask` repeats requests, so that each is counted, waits are shared
by all requests under way, and Ctrl-C does not have to wait for them.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from embedforge.endpoint import NO_KEY, Secret, error_words, plain, require_address
from embedforge.errors import missing_extra
from embedforge.synthesize.plan import Request, Sampling

if TYPE_CHECKING:
    import openai


ErrorClass = Literal[
    "timeout", "connection", "rate_limit", "server", "broken_answer", "refused", "not_allowed", "unknown"
]
_RETRIED = frozenset({"timeout", "connection", "rate_limit", "server", "broken_answer"})
_CLASS_OF_STATUS: Mapping[int, ErrorClass] = {
    401: "not_allowed",
    402: "not_allowed",
    403: "not_allowed",
    404: "unknown",
    405: "unknown",
    408: "server",
    409: "server",
    429: "rate_limit",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """What an endpoint understands beyond the common core; found out once, by what it refuses."""

    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    sends_seed: bool = True
    sends_top_p: bool = True
    sends_temperature: bool = True


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what it took."""

    text: str
    finish: str
    """Why it ended: "stop", "length" at the limit of tokens, "content_filter" or "refusal"."""
    tokens_in: int
    tokens_out: int
    estimated: bool
    """The endpoint counted no tokens: four bytes count as one."""


class EndpointError(Exception):
    """A request that was not answered."""

    def __init__(self, kind: ErrorClass, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry_after = kind, message, retry_after

    @property
    def is_retried(self) -> bool:
        """Whether the same request may be answered a little later."""
        return self.kind in _RETRIED


class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        url: its address, as `normal_url` returns it.
        secret: whose key is sent as bearer token.
        timeout: seconds that one request may take in all.
    """

    def __init__(self, url: str, secret: Secret, timeout: float) -> None:
        try:
            import openai
        except ImportError:
            raise missing_extra("openai", "synthesize", "synthesize") from None
        self.url, self._secret, self._timeout = url, secret, timeout
        self._errors = openai
        self._client: openai.AsyncOpenAI = openai.AsyncOpenAI(
            base_url=url, api_key=secret.key or NO_KEY, timeout=timeout, max_retries=0
        )

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def complete(self, request: Request, sampling: Sampling, dialect: Dialect) -> Reply:
        """Send one request and return its answer.

        Raises:
            EndpointError: no answer, or one that is not of the protocol.
        """
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.chat.completions.with_raw_response.create(
                    **arguments(request, sampling, dialect)
                )
                body = response.http_response.text
        except (TimeoutError, self._errors.APITimeoutError):
            raise EndpointError("timeout", f"no answer within {self._timeout:g} s") from None
        except self._errors.APIStatusError as error:
            raise self._of_status(error) from None
        except self._errors.APIConnectionError as error:
            raise EndpointError("connection", self._secret.cleaned(str(error.__cause__ or error))) from None
        try:
            return reply_of(body, request.prompt)
        except EndpointError as error:
            raise EndpointError(error.kind, self._secret.cleaned(error.message)) from None

    def _of_status(self, error: openai.APIStatusError) -> EndpointError:
        status = error.status_code
        message = f"{status}: {error_words(error.body) or error.response.reason_phrase}"
        if error.response.history:
            message += f" (the endpoint redirects to {error.response.url}; give that address)"
        message = self._secret.cleaned(message)
        kind = _CLASS_OF_STATUS.get(status, "server" if status >= 500 else "refused")
        if kind == "rate_limit" and error.code == "insufficient_quota":
            kind = "not_allowed"  # Waiting does not help where nothing is left to spend.
        return EndpointError(kind, message, retry_after(error.response.headers, time.time()))


def arguments(request: Request, sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    """Return the arguments of a chat completion in the endpoint's dialect."""
    values: dict[str, Any] = {
        "model": sampling.model,
        "messages": [{"role": "user", "content": request.prompt}],
        dialect.limit: sampling.max_answer_tokens,
    }
    if dialect.sends_temperature:
        values["temperature"] = sampling.temperature
    if dialect.sends_top_p:
        values["top_p"] = sampling.top_p
    if dialect.sends_seed:
        values["seed"] = request.seed
    if dialect.response_format == "json_schema":
        schema = {"name": request.step, "strict": True, "schema": dict(request.schema)}
        values["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif dialect.response_format == "json_object":
        values["response_format"] = {"type": "json_object"}
    return values


def adapt(dialect: Dialect, message: str, sampling: Sampling, *, is_settled: bool) -> Dialect | None:
    """Return what to try after a refusal (status 400, 422), or None where the request itself is at fault.

    A setting that the endpoint's message names is dropped or renamed; top-p and temperature only at 1, where
    nothing is lost. Where it names none, as small servers do, and no request has been answered in this
    dialect, the format of the answer is what servers differ in.
    """
    words = message.lower()
    if "max_completion_tokens" in words and dialect.limit == "max_tokens":
        return replace(dialect, limit="max_completion_tokens")
    if "seed" in words and dialect.sends_seed:
        return replace(dialect, sends_seed=False)
    if "top_p" in words and dialect.sends_top_p and sampling.top_p == 1:
        return replace(dialect, sends_top_p=False)
    if "temperature" in words and dialect.sends_temperature and sampling.temperature == 1:
        return replace(dialect, sends_temperature=False)
    names_format = any(word in words for word in ("response_format", "json_schema", "json_object", "schema"))
    if dialect.response_format != "none" and (names_format or not is_settled):
        to: Literal["json_object", "none"] = (
            "json_object" if dialect.response_format == "json_schema" else "none"
        )
        return replace(dialect, response_format=to)
    return None


def reply_of(body: str, prompt: str) -> Reply:
    """Read a chat completion.

    Raises:
        EndpointError: "broken_answer" where it is cut off or not of the protocol.
    """
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        text = _content(choice["message"].get("content"))
        refusal = choice["message"].get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        words = plain(body)[:_EXCERPT] or "an empty body"
        raise EndpointError("broken_answer", f"no chat completion, but: {words}") from None
    usage = value.get("usage")
    counts = [usage.get(key) if isinstance(usage, dict) else None for key in _USAGE]
    known = all(isinstance(count, int) and count >= 0 for count in counts)
    tokens_in, tokens_out = counts if known else (_estimate(prompt), _estimate(text))
    finish = str(choice.get("finish_reason") or "stop")
    if not text and isinstance(refusal, str) and refusal:
        text, finish = refusal, "refusal"
    return Reply(text, finish, int(tokens_in or 0), int(tokens_out or 0), not known)


_USAGE = ("prompt_tokens", "completion_tokens")
_EXCERPT = 2000


def _content(content: Any) -> str:
    """Return a message's text; some servers send it in parts, thoughts among them."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content or ""


def _estimate(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that an endpoint asks to wait for: `Retry-After`, as seconds or a date, or in ms.

    >>> retry_after({"retry-after": "7"}, 0.0)
    7.0
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "nan")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.timestamp() - now)


def normal_url(url: str) -> str:
    """Return an endpoint's address; one without a path gets the usual /v1.

    >>> normal_url("http://localhost:8000")
    'http://localhost:8000/v1'

    Raises:
        EmbedforgeError: not an http address, or one with a password, which would be written to files.
    """
    require_address(url, "--endpoint", "http://localhost:8000/v1")
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"
