"""OpenAI's protocol: /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel

from embedforge.serve.answers import (
    OpenAIError,
    array_response,
    documented,
    embedding_headers,
    require_shape,
    shaped,
)
from embedforge.serve.errors import RefusedError
from embedforge.serve.requests import EmbeddingsRequest
from embedforge.serve.service import Service, frame_of


class EmbeddingItem(BaseModel):
    """A vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of the bytes."""
    scale: float | None = None
    """Of int8: what the numbers are to be multiplied by; cosines need no scale."""


class Usage(BaseModel):
    """Tokens, template and special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's answer, and which texts were cut."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage
    truncated: list[int]


class ModelItem(BaseModel):
    """A name under which the model answers."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The names of the model."""

    object: Literal["list"]
    data: list[ModelItem]


def _require_model(service: Service, name: str | None, param: str) -> None:
    if name is not None and name not in service.names:
        raise RefusedError(
            404 if param == "model" else 400,
            f"{param} is '{name}', and this server has '{service.name}'",
            "model_not_found",
            param=param,
        )


async def _texts(service: Service, request: EmbeddingsRequest) -> list[str]:
    """Return the texts of a request, decoded where they came as token ids."""
    given: Any = request.input
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], str):
        return list(given)
    if request.tokenizer is None:
        raise RefusedError(
            400,
            "input holds token ids, and only this model's own mean anything here: say so with "
            f"tokenizer='{service.name}', or send texts (LangChain: check_embedding_ctx_length=False)",
            "token_ids_without_tokenizer",
            param="tokenizer",
        )
    _require_model(service, request.tokenizer, "tokenizer")
    return await service.texts_of_ids([given] if isinstance(given[0], int) else given)


def openai_routes(service: Service) -> APIRouter:
    """Return the routes of OpenAI's protocol."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=documented(OpenAIError))

    @router.post("/embeddings", response_model=EmbeddingsResponse)
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        """Embed texts."""
        _require_model(service, body.model, "model")
        require_shape(service, body.dimensions, body.precision)
        texts = await _texts(service, body)
        frame = frame_of(service.contract, body.input_type, body.instruction)
        embedded = await service.embed(texts, frame, truncate=body.truncate, gone=request.is_disconnected)
        numbers, scale = shaped(service, embedded, body.dimensions, body.precision)
        return array_response(
            {
                "object": "list",
                "data": _items(numbers, scale, as_bytes=body.encoding_format == "base64"),
                "model": service.name,
                "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
                "truncated": embedded.truncated,
            },
            embedding_headers(service, embedded),
        )

    @router.get("/models", response_model=ModelList)
    async def models() -> Any:
        """List the names that `model` may have; they all mean the one model."""
        items = [
            {"id": name, "object": "model", "created": 0, "owned_by": "embedforge"} for name in service.names
        ]
        return {"object": "list", "data": items}

    return router


def _items(numbers: NDArray[Any], scale: NDArray[Any] | None, *, as_bytes: bool) -> list[dict[str, Any]]:
    items = []
    for index, vector in enumerate(numbers):
        item = {
            "object": "embedding",
            "index": index,
            "embedding": _base64(vector) if as_bytes else vector,
        }
        items.append(item if scale is None else item | {"scale": scale[index]})
    return items


def _base64(vector: NDArray[Any]) -> str:
    """Return a vector's bytes in its own type, little endian."""
    little = vector.astype(vector.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(little.tobytes()).decode()
