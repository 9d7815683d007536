"""Answers to requests that cannot be served, in the words of the protocol that was spoken."""

from __future__ import annotations

import json
from typing import Any

from fastapi import HTTPException, Response

OPENAI_PATHS = "/v1/"


class RefusedError(HTTPException):
    """A request that is not served: status, what is wrong and the way out.

    An HTTPException, since FastAPI turns any other that comes while a body is read into one of its own.

    Args:
        status: of HTTP.
        message: for people.
        code: for programs, `context_length_exceeded` for example.
        param: the field of the request.
        retry_after: seconds after which it is worth another try.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def response(self, path: str) -> Response:
        """Return the answer, as OpenAI words it under /v1/ and as TEI does elsewhere."""
        body: dict[str, Any]
        if path.startswith(OPENAI_PATHS):
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
            kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
            body = {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        else:
            body = {"error": self.message, "error_type": self.code}
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return json_response(body, self.status, headers)


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON in ASCII, which also carries lone surrogates of texts that were never valid."""
    return Response(json.dumps(body), status, headers, "application/json")
