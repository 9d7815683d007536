"""What every request passes first: key, size, the contract that the client expects, room; and the clock."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from embedforge.serve.errors import RefusedError
from embedforge.serve.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/health"})
"""Served without a key: the page asks for it, and a load balancer has none."""
EMBEDDING_PATHS = frozenset({"/v1/embeddings", "/embed"})
"""Whose requests all wait in the queue: where it is full, they need not be read."""
CONTRACT_HEADER = "embedforge-contract"


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        paths: of its routes; metrics know no others.
        fingerprint: of the contract that is served.
        metrics: told of each answer.
        api_key: None lets everybody in.
        body_bytes: of a request.
        require_room: raises the refusal of a full queue.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        paths: Iterable[str],
        fingerprint: str,
        metrics: Metrics,
        api_key: str | None,
        body_bytes: int,
        require_room: Callable[[], None],
    ) -> None:
        self.app = app
        self.paths = frozenset(paths)
        self.fingerprint = fingerprint
        self.metrics = metrics
        self.expected = None if api_key is None else f"Bearer {api_key}".encode()
        self.body_bytes = body_bytes
        self.require_room = require_room

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, self._limited(receive), watched)
        except RefusedError as error:
            await error.response(scope["path"])(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.answered(path, status, time.perf_counter() - start)

    def _check(self, scope: MutableMapping[str, Any]) -> None:
        headers = dict(scope["headers"])
        if self.expected is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                raise RefusedError(
                    401,
                    "this server wants its key: send the header 'Authorization: Bearer KEY' "
                    "(api_key of the client)",
                    "invalid_api_key",
                )
        wanted = headers.get(CONTRACT_HEADER.encode(), b"").decode("latin-1")
        if wanted and wanted != self.fingerprint:
            raise RefusedError(
                412,
                f"the client expects the contract {wanted:.64}, and this server has {self.fingerprint}: "
                "its vectors are another model's",
                "other_contract",
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.body_bytes:
            raise self._too_large()
        if scope["path"] in EMBEDDING_PATHS and scope["method"] == "POST":
            self.require_room()

    def _limited(self, receive: Receive) -> Receive:
        """Count the bytes of a body as they come; its announced length may be absent or a lie."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, f"the request is larger than {self.body_bytes} bytes; send it in parts", "body_too_large"
        )
