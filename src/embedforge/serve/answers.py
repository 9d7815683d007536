"""What answers to embedding requests have in common: their headers, and their documentation."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray
from pydantic import BaseModel

from embedforge.quantize import Precision, cut_dimensions, quantize
from embedforge.serve.errors import RefusedError
from embedforge.serve.guard import CONTRACT_HEADER
from embedforge.serve.service import Embedded, Service


def embedding_headers(service: Service, embedded: Embedded) -> dict[str, str]:
    """Return how the vectors were made; an instruction is percent-encoded, since headers are ASCII."""
    return {
        CONTRACT_HEADER: service.fingerprint,
        "embedforge-pooling": service.contract.pooling,
        "embedforge-instruction": quote(embedded.instruction, safe=" ,.;:?!'()/-"),
        "embedforge-truncated": str(len(embedded.truncated)),
    }


def require_shape(service: Service, dimensions: int | None, precision: Precision) -> None:
    """Refuse, before anything is computed, vectors that there are not.

    Raises:
        RefusedError: more dimensions than the model has, or bits that do not fill bytes.
    """
    if dimensions is not None and dimensions > service.dim:
        raise RefusedError(
            400,
            f"dimensions is {dimensions}, and '{service.name}' has {service.dim}",
            "too_many_dimensions",
            param="dimensions",
        )
    if precision == "binary" and (dimensions or service.dim) % 8:
        raise RefusedError(
            400,
            f"binary puts 8 numbers into a byte; {dimensions or service.dim} dimensions are no multiple of 8",
            "dimensions_not_bytes",
            param="dimensions",
        )


def shaped(
    service: Service, embedded: Embedded, dimensions: int | None, precision: Precision
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the vectors as they were asked for, [texts, dimensions], and the scales of int8, [texts]."""
    vectors = embedded.vectors if dimensions is None else cut_dimensions(embedded.vectors, dimensions)
    numbers, scale = quantize(vectors, precision)
    return np.ascontiguousarray(numbers), scale


def array_response(body: Any, headers: dict[str, str]) -> Response:
    """Answer with JSON that holds NumPy arrays; float32 numbers keep the shortest digits that tell them."""
    return Response(
        orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type="application/json"
    )


class OpenAIErrorBody(BaseModel):
    """What OpenAI says of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error under /v1/."""

    error: OpenAIErrorBody


class TEIError(BaseModel):
    """An error elsewhere."""

    error: str
    error_type: str


_STATUSES = {
    400: "The request cannot be read, or a text is too long, not valid, or of foreign token ids.",
    401: "The key is missing or wrong.",
    404: "There is no such model, or no index.",
    405: "Another method is wanted.",
    412: "The client expects another contract.",
    413: "Too many texts, tokens or bytes for one request.",
    429: "The queue is full; Retry-After says for how long.",
    500: "The server failed.",
    507: "A text does not fit in memory.",
}


def documented(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route, for the OpenAPI page."""
    return {status: {"description": text, "model": model} for status, text in _STATUSES.items()}
