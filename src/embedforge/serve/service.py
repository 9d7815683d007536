"""A model that all requests share: texts in, vectors out, under the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedforge.encode import encode_rendered
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import embedding_model, load
from embedforge.runtime import fast_bfloat16, pick_device, require_finite
from embedforge.serve.errors import RefusedError
from embedforge.serve.metrics import Metrics
from embedforge.serve.queue import BatchQueue, QueueFullError, TooLargeError
from embedforge.serve.settings import Limits
from embedforge.text.contract import Contract
from embedforge.text.render import Rendered

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedforge.serve.requests import InputType

_WARM_TOKENS = 512
"""Of the first batch on a CPU; on CUDA it is a whole one, so that memory is known to suffice."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the texts of a request, and the instruction that is in it."""

    prefix: str
    suffix: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a request's texts have become."""

    vectors: np.ndarray
    """[texts, dim] float32, as the contract says."""
    tokens: int
    truncated: tuple[int, ...]
    """Places of the texts that were cut."""
    instruction: str


def frame_of(contract: Contract, input_type: InputType | None, instruction: str | None) -> Frame:
    """Return what a request's texts stand in.

    Texts are documents unless `input_type` or an instruction says otherwise: an instruction belongs to
    queries, and to the documents of symmetric tasks, which are then rendered like queries.
    """
    if input_type == "query" or (input_type is None and instruction is not None):
        applied = contract.default_instruction if instruction is None else instruction
        return Frame(contract.query_prefix(instruction), contract.query_suffix(instruction), applied.strip())
    given = instruction or ""
    return Frame(contract.document_prefix(given), contract.document_suffix(given), given.strip())


class Service:
    """A model in memory with its queue.

    Args:
        st: what `embedforge.load` gives; on its device.
        name: under which it is served.
        limits: see `Limits`.
        path: folder or hub id that it was loaded from, which is another name for it.
    """

    def __init__(
        self, st: SentenceTransformer, name: str, limits: Limits | None = None, *, path: str = ""
    ) -> None:
        self.st = st
        self.model = embedding_model(st).eval()
        self.contract = self.model.contract
        self.name = name
        self.names = tuple(dict.fromkeys(filter(None, (name, path))))
        self.fingerprint = self.contract.fingerprint
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self._budget = self.limits.tokens_per_batch
        self._bfloat16 = fast_bfloat16(self.model.device)
        self._renderer = ThreadPoolExecutor(1, "embedforge-tokens")
        self.queue = BatchQueue(self._embed, self._budget, self.limits.queue_tokens, self.metrics)
        self.metrics.watch_queue(lambda: self.queue.tokens)

    @classmethod
    def load(
        cls,
        model: str | Path,
        limits: Limits | None = None,
        *,
        name: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Service:
        """Load a model, check its goldens, and run it once, so that the first request finds it warm.

        Raises:
            EmbedforgeError: see `embedforge.load`; a model without a contract.
        """
        st = load(model, device=str(pick_device(device)), dtype=dtype)
        short = name or Path(str(model)).resolve().name
        service = cls(st, short, limits, path=str(model))
        service.warm()
        return service

    @property
    def dim(self) -> int:
        """Numbers of a whole vector."""
        return self.model.dim

    def warm(self) -> None:
        """Run the model: kernels are chosen, memory is taken, and the queue learns its speed."""
        (row,) = self.model.renderer.render(["a warm start " * self.contract.max_tokens])
        on_cpu = self.model.device.type == "cpu"
        tokens = min(_WARM_TOKENS, self._budget) if on_cpu else self._budget
        self.queue.submit(
            [row] * max(1, min(tokens, self.limits.queue_tokens) // len(row.input_ids))
        ).result()

    async def embed(
        self,
        texts: Sequence[str],
        frame: Frame,
        *,
        truncate: bool,
        gone: Callable[[], Any] | None = None,
    ) -> Embedded:
        """Embed texts in batches with those of other requests.

        Args:
            texts: at least one.
            frame: what stands around each.
            truncate: cut those that are too long.
            gone: awaited now and then; true where nobody waits for the answer any more.

        Raises:
            RefusedError: the queue is full, a text is too long, not valid Unicode, its vector not finite, or
                nobody waits.
        """
        if len(texts) > self.limits.texts:
            raise RefusedError(
                413, f"{len(texts)} texts in one request, at most {self.limits.texts}; send them in parts",
                "too_many_texts",
            )  # fmt: skip
        rows = await self._render(texts, frame)
        truncated = tuple(place for place, row in enumerate(rows) if row.cut)
        if truncated and not truncate:
            raise self._too_long(truncated, rows)
        try:
            future = asyncio.wrap_future(self.queue.submit(rows))
        except QueueFullError as error:
            raise _overloaded(error) from None
        except TooLargeError as error:
            raise RefusedError(413, str(error), "request_too_large") from None
        vectors = await _result(future, gone)
        try:
            require_finite(vectors, texts)
        except EmbedforgeError as error:
            raise RefusedError(422, str(error), "not_finite", param="input") from None
        self.metrics.truncated.inc(len(truncated))
        tokens = sum(len(row.input_ids) for row in rows)
        return Embedded(vectors, tokens, truncated, frame.instruction)

    def require_room(self) -> None:
        """Refuse a request whose body has not been read yet, where the queue is full.

        Raises:
            RefusedError: 429; under many times the load this costs a fraction of reading and checking it.
        """
        try:
            self.queue.require_room()
        except QueueFullError as error:
            raise _overloaded(error) from None

    async def texts_of_ids(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts that token ids stand for.

        Raises:
            RefusedError: ids that this model's tokenizer does not make of their text, which is what another
                model's ids look like.
        """
        return await asyncio.get_running_loop().run_in_executor(self._renderer, self._decode, ids)

    def close(self) -> None:
        """Finish what was accepted."""
        self.queue.close()
        self._renderer.shutdown()

    async def _render(self, texts: Sequence[str], frame: Frame) -> list[Rendered]:
        def render() -> list[Rendered]:
            return self.model.renderer.render(texts, frame.prefix, suffix=frame.suffix)

        self.require_room()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._renderer, render)
        except EmbedforgeError as error:
            raise RefusedError(400, str(error), "invalid_text", param="input") from None

    def _embed(self, rows: Sequence[Rendered]) -> np.ndarray:
        vectors, self._budget = encode_rendered(self.model, rows, self._budget, bfloat16=self._bfloat16)
        return vectors

    def _decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        tokenizer = self.model.tokenizer
        texts = []
        for place, row in enumerate(ids):
            bare = _without_ends(list(row), self.contract, tokenizer)
            known = max(bare, default=0) < len(tokenizer)
            text = tokenizer.decode(bare, clean_up_tokenization_spaces=False) if known else ""
            again = tokenizer(text, add_special_tokens=False)["input_ids"]
            if not known or again != bare:
                raise RefusedError(
                    400,
                    f"input {place}: the tokenizer of '{self.name}' does not make these token ids of their "
                    "text, so another model's made them, or a text was cut inside a word. Send the text "
                    "itself (LangChain: check_embedding_ctx_length=False)",
                    "foreign_token_ids",
                    param="input",
                )
            texts.append(text)
        return texts

    def _too_long(self, places: Sequence[int], rows: Sequence[Rendered]) -> RefusedError:
        first = rows[places[0]]
        more = f", and {len(places) - 1} more" if len(places) > 1 else ""
        return RefusedError(
            400,
            f"text {places[0]} is {first.cut} tokens too long{more}: the model reads "
            f"{self.contract.max_tokens} with the instruction. Shorten it, or ask for truncate=true",
            "context_length_exceeded",
            param="input",
        )


def _without_ends(ids: list[int], contract: Contract, tokenizer: Any) -> list[int]:
    """Drop the BOS and EOS that the contract adds anyway."""
    if contract.add_bos and ids[:1] == [tokenizer.bos_token_id]:
        ids = ids[1:]
    if contract.add_eos and ids[-1:] == [tokenizer.eos_token_id]:
        ids = ids[:-1]
    return ids


def _overloaded(error: QueueFullError) -> RefusedError:
    return RefusedError(
        429,
        f"the queue is full; try again in {error.retry_after} s",
        "overloaded",
        retry_after=error.retry_after,
    )


async def _result(future: asyncio.Future[np.ndarray], gone: Callable[[], Any] | None) -> np.ndarray:
    """Wait for vectors; where the client has left, give them up."""
    while True:
        done, _ = await asyncio.wait({future}, timeout=1.0)
        if done:
            break
        if gone is not None and await gone():
            future.cancel()
            raise RefusedError(499, "the client has closed the connection", "client_closed")
    try:
        return future.result()
    except EmbedforgeError as error:
        raise RefusedError(507, str(error), "out_of_memory") from None
