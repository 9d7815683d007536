"""A teacher behind HTTP: any server that speaks OpenAI's /v1/embeddings (vLLM, llama.cpp, TEI, clouds)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

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
KEY_VARIABLE = "OPENAI_API_KEY"


def is_endpoint(name: str) -> bool:
    """Say whether a teacher's name is that of an endpoint."""
    return name.startswith(("http://", "https://"))


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
        url, _, model = name.partition("#")
        if not model:
            raise EmbedforgeError(
                f"--teacher {name}: add the model's name after '#': {name.rstrip('/')}#MODEL"
            )
        prompts.check()
        try:
            import openai
        except ImportError:
            raise missing_extra("openai", "synthesize", f"the teacher {name}") from None
        self.name, self._model, self._prompts = name, model, prompts
        self._errors = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=url, api_key=os.environ.get(key_variable) or "none", max_retries=RETRIES, timeout=TIMEOUT
        )
        self._key_variable = key_variable
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
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return np.concatenate(list(pool.map(self._request, _batches(texts))))

    def _request(self, texts: list[str]) -> Floats:
        try:
            answer = self._client.embeddings.create(model=self._model, input=texts, encoding_format="float")
            vectors = _vectors_of(answer, len(texts))
        except self._errors as error:
            raise EmbedforgeError(
                f"{self.name}: {type(error).__name__}: {error}. The key is read from ${self._key_variable}; "
                "what is embedded so far is kept: run again to go on"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise EmbedforgeError(
                f"{self.name}: the answer is not one of /v1/embeddings for {len(texts)} texts: {error}"
            ) from error
        return vectors


def _vectors_of(answer: Any, count: int) -> Floats:
    items = sorted(answer.data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(count)):
        raise ValueError(f"it holds vectors number {[item.index for item in items]!r:.80}")
    vectors = np.array([item.embedding for item in items], dtype=np.float32)
    if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
        raise ValueError(f"its vectors have shape {vectors.shape}, or are not finite")
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


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
