"""The ASGI application: routes, errors and guard round a service.

    uvicorn --factory my_app:build        # where build() returns create_app(Service.load("model"))

`embedforge serve` runs it under uvicorn; Ray Serve and others take it as it is (docs/serve.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from embedforge import __version__
from embedforge.serve.errors import RefusedError
from embedforge.serve.guard import Guard
from embedforge.serve.openai_routes import openai_routes
from embedforge.serve.requests import explain_request
from embedforge.serve.search_routes import search_routes
from embedforge.serve.searching import Searcher
from embedforge.serve.service import Service
from embedforge.serve.tei_routes import tei_routes


def create_app(service: Service, *, index: str | None = None, api_key: str | None = None) -> FastAPI:
    """Return the application that serves a model.

    Args:
        service: the model, see `Service.load`; it is closed when the application ends.
        index: what /v1/search and the page search: an index folder, a run's folder, or a store's URL.
        api_key: wanted of every request but those of `/` and `/health`.

    Raises:
        EmbedforgeError: no index there, or one of another model.
    """
    searcher = None if index is None else Searcher(service, index)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()
        if searcher is not None:
            searcher.close()

    app = FastAPI(
        title="embedforge",
        version=__version__,
        summary=f"Embeddings of {service.name}",
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from a network
        redoc_url=None,
    )
    for router in (
        openai_routes(service),
        tei_routes(service, searcher),
        search_routes(service, searcher),
    ):
        app.include_router(router)
    _answer_errors(app)
    app.add_middleware(
        Guard,
        paths=["/", *app.openapi()["paths"]],
        fingerprint=service.fingerprint,
        metrics=service.metrics,
        api_key=api_key,
        body_bytes=service.limits.body_bytes,
        require_room=service.require_room,
    )
    return app


def _answer_errors(app: FastAPI) -> None:
    """Answer every error in the words of the protocol that was spoken."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return error.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, field = explain_request(list(error.errors()))
        return RefusedError(400, message, "invalid_request", param=field).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        response = RefusedError(error.status_code, str(error.detail), "http").response(request.url.path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        return RefusedError(500, "the server failed; its log says why", "internal").response(request.url.path)
