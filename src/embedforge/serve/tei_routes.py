"""The protocol of text-embeddings-inference (TEI): /embed, /info, /health; and /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from embedforge import __version__
from embedforge.serve.answers import (
    TEIError,
    array_response,
    documented,
    embedding_headers,
    require_shape,
    shaped,
)
from embedforge.serve.errors import RefusedError
from embedforge.serve.metrics import CONTENT_TYPE_LATEST
from embedforge.serve.requests import EmbedRequest
from embedforge.serve.searching import IndexFacts, Searcher
from embedforge.serve.service import Service, frame_of


class Info(BaseModel):
    """TEI's words for a server, and below them the embedding contract's."""

    model_id: str
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    max_queue_tokens: int
    auto_truncate: bool
    version: str
    fingerprint: str
    """Of the contract; equal wherever vectors may be compared."""
    pooling: str
    dimensions: int
    normalize: bool
    attention: str
    default_instruction: str
    """Before a query unless the request has another."""
    query_template: str
    document_template: str
    index: IndexFacts | None


def info_of(service: Service, searcher: Searcher | None) -> Info:
    """Return what is served."""
    contract = service.contract
    return Info(
        model_id=service.name,
        model_dtype=str(next(service.model.parameters()).dtype).removeprefix("torch."),
        model_type={"embedding": {"pooling": contract.pooling}},
        max_input_length=contract.max_tokens,
        max_batch_tokens=service.limits.tokens_per_batch,
        max_client_batch_size=service.limits.texts,
        max_queue_tokens=service.limits.queue_tokens,
        auto_truncate=False,
        version=__version__,
        fingerprint=service.fingerprint,
        pooling=contract.pooling,
        dimensions=service.dim,
        normalize=contract.normalize,
        attention=contract.attention,
        default_instruction=contract.default_instruction,
        query_template=contract.query_template,
        document_template=contract.document_template,
        index=None if searcher is None else searcher.facts(),
    )


def tei_routes(service: Service, searcher: Searcher | None) -> APIRouter:
    """Return the routes of TEI's protocol."""
    router = APIRouter(tags=["TEI"], responses=documented(TEIError))

    @router.post("/embed", response_model=list[list[float]])
    async def embed(body: EmbedRequest, request: Request) -> Response:
        """Embed texts; a single one also gives a list of one vector."""
        require_shape(service, body.dimensions, body.precision)
        if body.normalize is False and service.contract.normalize:
            raise RefusedError(
                400,
                f"normalize is false, and the contract of '{service.name}' makes vectors of unit length; "
                "leave it out",
                "normalized_by_contract",
            )
        if body.prompt_name and body.input_type and body.prompt_name != body.input_type:
            raise RefusedError(400, "prompt_name and input_type differ; give one of them", "two_input_types")
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        frame = frame_of(service.contract, body.input_type or body.prompt_name, body.instruction)
        embedded = await service.embed(texts, frame, truncate=body.truncate, gone=request.is_disconnected)
        dimensions = body.dimensions or (service.dim if body.normalize else None)
        numbers, _ = shaped(service, embedded, dimensions, body.precision)
        return array_response(numbers, embedding_headers(service, embedded))

    @router.get("/info", response_model=Info)
    async def info() -> Any:
        """Say what is served, and under which contract."""
        return info_of(service, searcher)

    @router.get("/health", response_class=Response)
    async def health() -> Response:
        """Answer 200 once the model is warm; before that no connection is accepted."""
        return Response()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
