"""/v1/search, and the page at / that uses it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from embedforge.serve.answers import OpenAIError, documented, embedding_headers
from embedforge.serve.errors import RefusedError, json_response
from embedforge.serve.requests import SearchRequest
from embedforge.serve.searching import Searcher
from embedforge.serve.service import Service


class FoundDocument(BaseModel):
    """A document as the index holds it."""

    id: str
    text: str
    location: str
    metadata: dict[str, str | int | float | bool]


class FoundSnippet(BaseModel):
    """The part of a text that a hit is shown by; `matches` are from and to, in characters of `text`."""

    text: str
    matches: list[tuple[int, int]]
    cut_before: bool
    cut_after: bool


class FoundPlace(BaseModel):
    """A document that is named by another's hit."""

    id: str
    location: str


class FoundHit(BaseModel):
    """A hit with the scores of both sides.

    `also` has the other places of the same text, `more` the further passages of the file that `per_file` left
    out.
    """

    document: FoundDocument
    score: float
    dense: float | None
    lexical: float | None
    fused: float | None
    snippet: FoundSnippet
    also: list[FoundPlace]
    more: list[FoundPlace]


class SearchResponse(BaseModel):
    """Hits, best first."""

    hits: list[FoundHit]
    mode: str
    documents: int
    generation: str
    instruction: str
    truncated: bool
    seconds: float


def search_routes(service: Service, searcher: Searcher | None) -> APIRouter:
    """Return the routes of search; without an index they say how to get one."""
    router = APIRouter(tags=["search"])
    page = resources.files("embedforge.serve").joinpath("search.html").read_text(encoding="utf-8")
    policy = _policy(page)

    @router.post("/v1/search", response_model=SearchResponse, responses=documented(OpenAIError))
    async def search(body: SearchRequest, request: Request) -> Response:
        """Search the index by meaning and by words."""
        if searcher is None:
            raise RefusedError(404, "this server has no index; start it with --index FOLDER", "no_index")
        answer, embedded = await searcher.search(body, request.is_disconnected)
        headers = {} if embedded is None else embedding_headers(service, embedded)
        return json_response(answer, headers=headers)

    @router.get("/", include_in_schema=False)
    async def show_page() -> Any:
        return Response(page, headers={"content-security-policy": policy}, media_type="text/html")

    return router


def _policy(page: str) -> str:
    """Return what the page may do: run its own script, style itself, and talk to this server."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
