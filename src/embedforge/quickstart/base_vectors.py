"""The untrained decoder's vectors: where training starts, the teacher of mining, a measure of speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from embedforge.console import progress_bar
from embedforge.encode import encode
from embedforge.files import write_arrays
from embedforge.model.encoder import EmbeddingModel, build
from embedforge.model.pooling import build_pooler
from embedforge.model.trained_base import own_attention
from embedforge.quickstart.budget import Speed
from embedforge.quickstart.compare import BASE_LAST, BASE_MEAN
from embedforge.quickstart.corpus import Corpus
from embedforge.quickstart.examples import Pool, retrieval_pool
from embedforge.recipe import Recipe
from embedforge.runtime import pick_device
from embedforge.text.contract import Contract
from embedforge.text.render import Renderer

POOLINGS = {BASE_LAST: "last", BASE_MEAN: "mean"}


@dataclass(frozen=True)
class BaseVectors:
    """The untrained decoder's vectors of a pool, one matrix for each of its poolings."""

    queries: dict[str, NDArray[np.float32]]
    documents: dict[str, NDArray[np.float32]]


def encode_with_base(
    base: SeveralPoolings,
    names: Sequence[str],
    queries: Sequence[str],
    documents: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> BaseVectors:
    """Encode with the untrained decoder; bare texts, since nothing has taught it instructions."""
    found = [
        np.split(encode(base, texts, progress=progress), len(names), axis=1) for texts in (queries, documents)
    ]
    by_name = [dict(zip(names, parts, strict=True)) for parts in found]
    return BaseVectors(*by_name)


class SeveralPoolings(nn.Module):
    """One pass of a decoder, several poolings: the untrained baselines cost one run instead of two."""

    def __init__(self, model: EmbeddingModel, poolers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model, self.poolers = model, nn.ModuleList(poolers)
        self.renderer, self.contract = model.renderer, model.contract

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pooling_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the unit vectors of all poolings side by side: [texts, poolings * hidden]."""
        states = self.model.token_states(input_ids, attention_mask)
        return torch.cat(
            [functional.normalize(pool(states, pooling_mask), dim=-1) for pool in self.poolers], dim=-1
        )


def base_vectors(
    out: Path, recipe: Recipe, corpus: Corpus, pool: Pool, device: str | None
) -> tuple[BaseVectors, Speed]:
    """Encode the pool, then the training queries, with the untrained decoder, and note how long it took.

    The result is kept in OUT/data/base.npz and read from there the next time.
    """
    train_queries = retrieval_pool(corpus.train).queries
    queries = [*pool.queries.values(), *train_queries.values()]
    documents = list(pool.documents.values())
    path = out / "data" / "base.npz"
    if path.exists():
        return _read(path)
    model = _untrained(recipe).to(pick_device(device))
    poolers = [build_pooler(kind=kind, hidden_size=model.dim) for kind in POOLINGS.values()]
    started = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task(
            "encoding with the untrained decoder", total=len(queries) + len(documents), note=""
        )
        found = encode_with_base(
            SeveralPoolings(model, poolers),
            list(POOLINGS),
            queries,
            documents,
            progress=lambda texts: bar.advance(task, texts),
        )
    seconds = time.monotonic() - started
    counts = _token_counts(Renderer(model.tokenizer, recipe.contract), queries, documents)
    speed = Speed(seconds, float(sum(map(np.sum, counts))), *counts)
    _write(path, found, speed)
    return found, speed


def _untrained(recipe: Recipe) -> EmbeddingModel:
    """Build the recipe's decoder as it is: its own attention, causal for most, and without instruction."""
    return build(
        base=recipe.model.base,
        contract=Contract(
            attention=own_attention(recipe.model.base),
            pooling="mean",
            max_tokens=recipe.contract.max_tokens,
        ),
        pooling={"kind": "mean"},
        attention_implementation=recipe.model.attention_implementation,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def _write(path: Path, vectors: BaseVectors, speed: Speed) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "seconds and tokens": np.array([speed.seconds, speed.tokens]),
        "query tokens": speed.query_tokens,
        "document tokens": speed.document_tokens,
    }
    arrays |= {f"queries {name}": values for name, values in vectors.queries.items()}
    arrays |= {f"documents {name}": values for name, values in vectors.documents.items()}
    write_arrays(path, arrays)


def _read(path: Path) -> tuple[BaseVectors, Speed]:
    with np.load(path) as stored:
        seconds, tokens = stored["seconds and tokens"].tolist()
        speed = Speed(seconds, tokens, stored["query tokens"], stored["document tokens"])
        queries, documents = (
            {name: stored[f"{kind} {name}"] for name in POOLINGS} for kind in ("queries", "documents")
        )
    return BaseVectors(queries, documents), speed


def _token_counts(
    renderer: Renderer, queries: Sequence[str], documents: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the tokens of each text as it is trained on, the queries' instruction included."""
    contract = renderer.contract
    rendered = (renderer.render(queries, contract.query_prefix()), renderer.render(documents))
    first, second = (np.array([len(text.input_ids) for text in texts]) for texts in rendered)
    return first, second
