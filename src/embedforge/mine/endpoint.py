"""A teacher behind HTTP: any server that speaks OpenAI's /v1/embeddings (vLLM, llama.cpp, TEI, clouds)."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from embedforge.endpoint import (
    KEY_VARIABLE,
    NO_KEY,
    error_words,
    key_from_environment,
    require_address,
    split_address,
)
from embedforge.errors import EmbedforgeError, missing_extra
from embedforge.mine.embedder import Prompts
from embedforge.ranking import Floats

TEXTS_PER_REQUEST = 64
CHARACTERS_PER_REQUEST = 200_000
"""Clouds take some 300,000 tokens a request; no script has more than about one token a character."""
REQUESTS_AT_ONCE = 4
RETRIES = 6
TIMEOUT = 120.0
"""Seconds to wait for an answer."""


def split_name(name: str) -> tuple[str, str]:
    """Return an endpoint's address and model.

    Raises:
        EmbedforgeError: there is no model in the name, no address, or one with a password, which would be
            written to mine.json and the audit page.
    """
    url, model = split_address(name)
    require_address(url, "--teacher", "http://localhost:8000/v1#MODEL")
    if not model:
        raise EmbedforgeError(f"--teacher {name}: add the model's name after '#': {name.rstrip('/#')}#MODEL")
    return url, model


class EndpointTeacher:
    """A model behind `URL#MODEL`; vectors are scaled to unit length.

    A request that fails by time-out, connection, rate limit (429) or the server's fault (5xx) is sent again
    up to six times, later each time, as the answer's Retry-After asks.

    Args:
        name: the address up to and with /v1, `#`, and the model's name there.
        prompts: put before texts on this side; the endpoint gets plain text.
        key_variable: the environment variable with the key; a server that asks for none needs none.

    Raises:
        EmbedforgeError: a name without a model, or no `openai` package.
    """

    def __init__(self, name: str, prompts: Prompts, *, key_variable: str = KEY_VARIABLE) -> None:
        url, model = split_name(name)
        prompts.check()
        try:
            import openai
        except ImportError:
            raise missing_extra("openai", "synthesize", f"the teacher {name}") from None
        self.name, self._model, self._prompts = name, model, prompts
        self._errors = openai
        self._key_variable = key_variable
        self._secret = key_from_environment(None if key_variable == KEY_VARIABLE else key_variable)
        key = self._secret.key or NO_KEY
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=TIMEOUT)
        self.identity: dict[str, Any] = {
            "teacher": name,
            "query prompt": prompts.query,
            "document prompt": prompts.document,
        }

    def queries(self, texts: Sequence[str], instructions: Sequence[str]) -> Floats:
        """Embed queries, with the prompt given."""
        return self._embed(self._prompts.query_texts(texts, instructions))

    def documents(self, texts: Sequence[str]) -> Floats:
        """Embed documents, with the prompt given."""
        return self._embed(self._prompts.document_texts(texts))

    def _embed(self, texts: Sequence[str]) -> Floats:
        blocks = _map_in_threads(self._request, list(_batches(texts)))
        if len(widths := {vectors.shape[1] for vectors in blocks}) > 1:
            raise EmbedforgeError(
                f"{self.name}: gave vectors of {' and of '.join(map(str, sorted(widths)))} dimensions"
            )
        return np.concatenate(blocks)

    def _request(self, texts: list[str]) -> Floats:
        try:
            answer = self._client.embeddings.create(model=self._model, input=texts, encoding_format="float")
            return _vectors_of(answer, len(texts))
        except self._errors.OpenAIError as error:
            refused = getattr(error, "status_code", None) in (401, 403)
            key = f"The key is read from ${self._key_variable}. " if refused else ""
            raise EmbedforgeError(
                f"{self.name}: {type(error).__name__}: {self._words(error)}. {key}"
                "What is embedded so far is kept: run again to go on"
            ) from None  # The cause would repeat what was taken out.
        except (ValueError, TypeError, AttributeError) as error:
            raise EmbedforgeError(
                f"{self.name}: the answer is not one of /v1/embeddings for {len(texts)} texts: "
                f"{self._secret.cleaned(str(error))}"
            ) from None

    def _words(self, error: Exception) -> str:
        """Return what the endpoint, or the connection to it, says, without the key."""
        said = str(error.__cause__ or error)
        if isinstance(error, self._errors.APIStatusError):
            said = f"{error.status_code}: {error_words(error.body) or error.response.reason_phrase}"
        return self._secret.cleaned(said).rstrip(".")


def _map_in_threads(request: Callable[[list[str]], Floats], batches: Sequence[list[str]]) -> list[Floats]:
    """Call `request` for each batch, a few at a time.

    An error or Ctrl-C ends it at once: nothing more is sent, and nobody waits for what is under way, which
    may take minutes. An executor's threads would be waited for, at the latest by the interpreter.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Floats | BaseException]] = SimpleQueue()
    for index in range(len(batches)):
        waiting.put(index)

    def work() -> None:
        with contextlib.suppress(Empty):
            while True:
                index = waiting.get_nowait()
                try:
                    done.put((index, request(batches[index])))
                except BaseException as error:
                    done.put((index, error))

    for _ in range(min(REQUESTS_AT_ONCE, len(batches))):
        Thread(target=work, daemon=True).start()
    results: dict[int, Floats] = {}
    try:
        while len(results) < len(batches):
            index, result = done.get()
            if isinstance(result, BaseException):
                raise result
            results[index] = result
    finally:
        with contextlib.suppress(Empty):
            while True:
                waiting.get_nowait()
    return [results[index] for index in range(len(batches))]


def _vectors_of(answer: Any, count: int) -> Floats:
    items = getattr(answer, "data", None)
    if not isinstance(items, list):
        raise ValueError(f"it has no 'data'; it begins {str(answer)!r:.60}")
    if len(items) != count:
        raise ValueError(f"it holds {len(items)} vectors")
    vectors = {item.index: _numbers(item.embedding) for item in items}
    if vectors.keys() != set(range(count)):
        raise ValueError(f"its vectors are numbered {[item.index for item in items]!r:.40}, not from 0 on")
    matrix = np.array([vectors[index] for index in range(count)], dtype=np.float32)
    if matrix.ndim != 2 or not matrix.shape[1] or not np.isfinite(matrix).all():
        raise ValueError(f"its vectors have shape {matrix.shape}, or are not finite")
    return np.asarray(matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12))


def _numbers(embedding: Any) -> Any:
    """Return a vector's numbers; some servers send base64 of float32 whatever they are asked for."""
    if not isinstance(embedding, str):
        return embedding
    return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Cut texts into requests by number and by characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == TEXTS_PER_REQUEST or size + len(text) > CHARACTERS_PER_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch
