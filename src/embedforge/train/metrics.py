"""Retrieval on a small held-out pool, during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import TrainerCallback
from typing_extensions import override

from embedforge.data.example import Example
from embedforge.encode import encode
from embedforge.model.encoder import EmbeddingModel


class EvaluateCallback(TrainerCallback):
    """Has the Trainer evaluate every so many steps; its own `eval_strategy` insists on a dataset."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.steps == 0:
            control.should_evaluate = True


def held_out_retrieval(
    model: EmbeddingModel, examples: Sequence[Example], *, bfloat16: bool | None = None
) -> dict[str, float]:
    """Rank the pool of all the examples' documents for each query.

    Returns:
        `eval_mrr@10` and `eval_recall@10`: means over the queries, in 0..1; a query counts as answered
        by any of its positives.
    """
    ranks = held_out_ranks(model, examples, bfloat16=bfloat16)
    return {
        "eval_mrr@10": float(reciprocal(ranks).mean()),
        "eval_recall@10": float((ranks <= 10).mean()),
    }


def reciprocal(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return 1 / rank down to the tenth, 0 below."""
    return np.where(ranks <= 10, 1 / ranks, 0.0)


def held_out_ranks(
    model: EmbeddingModel, examples: Sequence[Example], *, bfloat16: bool | None = None
) -> npt.NDArray[np.int64]:
    """Return the rank of each query's best positive among all the examples' documents, from 1: [queries]."""
    pool: dict[str, int] = {}
    for example in examples:
        for text in (*example.positives, *example.negatives):
            pool.setdefault(text, len(pool))
    instructions = {example.instruction for example in examples}
    queries = np.empty((len(examples), 0), dtype=np.float32)
    for instruction in sorted(instructions):
        rows = [row for row, example in enumerate(examples) if example.instruction == instruction]
        vectors = encode(
            model,
            [examples[row].query for row in rows],
            model.contract.query_prefix(instruction),
            suffix=model.contract.query_suffix(instruction),
            bfloat16=bfloat16,
        )
        if not queries.size:
            queries = np.empty((len(examples), vectors.shape[1]), dtype=np.float32)
        queries[rows] = vectors
    documents = encode(
        model,
        list(pool),
        model.contract.document_prefix(),
        suffix=model.contract.document_suffix(),
        bfloat16=bfloat16,
    )
    scores = queries @ documents.T
    return np.array(
        [
            _rank(row, [pool[text] for text in example.positives])
            for row, example in zip(scores, examples, strict=True)
        ]
    )


def _rank(scores: npt.NDArray[np.float32], positives: Sequence[int]) -> int:
    """Return the rank, from 1, of the best positive; other documents with its score come before it.

    Otherwise a model that gives all texts one vector would answer every query.
    """
    others = np.delete(scores, positives)
    return 1 + int((others >= scores[positives].max()).sum())
