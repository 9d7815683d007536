"""What a teacher that judges by vectors can do, and what it is called.

A teacher's name says what it is:

| name | teacher |
| --- | --- |
| a folder or a hub id | a model, by its own contract or prompts |
| `http://HOST/v1#MODEL`, `https://…` | an endpoint that speaks OpenAI's /v1/embeddings (`endpoint.py`) |
| `bm25`, `bm25:identifiers` | BM25, over words or also over the parts of identifiers |
| `run:FILE` | a ranking made elsewhere, in TREC's format (`run_file.py`) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from embedforge.errors import EmbedforgeError
from embedforge.ranking import Floats


class Embedder(Protocol):
    """Texts to unit vectors, queries and documents each in their own way."""

    @property
    def name(self) -> str:
        """For messages and the report."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about the vectors, as JSON; equal identities may share vectors."""

    def queries(self, texts: Sequence[str], instructions: Sequence[str]) -> Floats:
        """Embed queries, each with its instruction ("" for none): float32 [texts, dimensions]."""

    def documents(self, texts: Sequence[str]) -> Floats:
        """Embed documents: float32 [texts, dimensions]."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What stands before texts for a teacher without a contract; None leaves that to the model."""

    query: str | None = None
    """May hold `{instruction}`."""
    document: str | None = None

    def check(self) -> None:
        """Refuse braces other than `{instruction}` in the query's prompt, and any in the document's."""
        for option, prompt in (("--query-prompt", self.query), ("--document-prompt", self.document)):
            rest = (prompt or "").replace("{instruction}", "" if option == "--query-prompt" else "{")
            if "{" in rest or "}" in rest:
                raise EmbedforgeError(
                    f"{option} '{prompt}': a query's prompt may hold {{instruction}}, no other braces; "
                    "a document's prompt none"
                )

    def query_texts(self, texts: Sequence[str], instructions: Sequence[str]) -> list[str]:
        """Put the prompt before each query."""
        prompt = self.query or ""
        return [
            prompt.replace("{instruction}", instruction) + text
            for text, instruction in zip(texts, instructions, strict=True)
        ]

    def document_texts(self, texts: Sequence[str]) -> list[str]:
        """Put the prompt before each document."""
        return [(self.document or "") + text for text in texts]
