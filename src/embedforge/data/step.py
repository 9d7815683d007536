"""One optimisation step's data: all that is known of it without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from embedforge.data.example import Example
from embedforge.text.same import layout_key, stable_hash

Keys = tuple[tuple[int, ...], ...]
"""Per text, the 64-bit keys it is known by; texts that share one count as the same text."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text to embed, and what decides its prefix."""

    text: str
    instruction: str
    """"" for none. Documents carry one in symmetric data only."""
    role: Literal["query", "document"]


class Draw(NamedTuple):
    """An Example with the positive and the negatives that one step uses of it, as indices in its tuples."""

    example: Example
    positive: int
    negatives: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The texts of a step, Q queries and M documents, and which document belongs to which query.

    The documents of a query stand together: its positive, then its negatives. A column is a document's
    index among the documents.
    """

    index: int
    texts: list[Text]
    """[Q + M], queries first."""
    owner: npt.NDArray[np.int64]
    """[M], the query each document was drawn for."""
    is_positive: npt.NDArray[np.bool_]
    """[M]"""
    positive: npt.NDArray[np.int64]
    """[Q], the column of each query's positive."""
    in_batch_allowed: npt.NDArray[np.bool_]
    """[Q], may the query use other rows' documents and lend its own?"""
    query_keys: Keys
    """[Q], of the query itself."""
    document_keys: Keys
    """[M]"""
    positive_keys: Keys
    """[Q], of all listed positives of the query, drawn in this step or not: none of them is its negative."""
    sources: list[str]
    """[Q], names of the data sources."""
    scores: npt.NDArray[np.float64]
    """[Q], how much a query and its positive are alike; NaN where nobody has said."""


def build_step(index: int, draws: Sequence[Draw]) -> Step:
    """Lay the drawn Examples out as one step."""
    queries: list[Text] = []
    documents: list[Text] = []
    document_keys: list[tuple[int, ...]] = []
    owner: list[int] = []
    positive: list[int] = []
    for row, draw in enumerate(draws):
        example = draw.example
        queries.append(Text(example.query, example.instruction, "query"))
        positive.append(len(documents))
        instruction = example.instruction if example.symmetric else ""
        drawn = [_document(example, "positive", draw.positive)]
        drawn += [_document(example, "negative", negative) for negative in draw.negatives]
        documents += [Text(text, instruction, "document") for text, _ in drawn]
        document_keys += [keys for _, keys in drawn]
        owner += [row] * len(drawn)
    is_positive = np.zeros(len(documents), dtype=bool)
    is_positive[positive] = True
    return Step(
        index=index,
        texts=queries + documents,
        owner=np.array(owner, dtype=np.int64),
        is_positive=is_positive,
        positive=np.array(positive, dtype=np.int64),
        in_batch_allowed=np.array([draw.example.in_batch_negatives for draw in draws], dtype=bool),
        query_keys=tuple(_keys("query", e.source, e.query, e.query_id) for e, _, _ in draws),
        document_keys=tuple(document_keys),
        positive_keys=tuple(_listed(draw.example) for draw in draws),
        sources=[draw.example.source for draw in draws],
        scores=np.array([np.nan if e.score is None else e.score for e, _, _ in draws], dtype=np.float64),
    )


def _document(
    example: Example, kind: Literal["positive", "negative"], index: int
) -> tuple[str, tuple[int, ...]]:
    texts, ids = (
        (example.positives, example.positive_ids)
        if kind == "positive"
        else (example.negatives, example.negative_ids)
    )
    return texts[index], _keys("document", example.source, texts[index], ids[index] if ids else "")


def _listed(example: Example) -> tuple[int, ...]:
    listed = (_document(example, "positive", index)[1] for index in range(len(example.positives)))
    return tuple(dict.fromkeys(key for keys in listed for key in keys))


def _keys(role: str, source: str, text: str, name: str) -> tuple[int, ...]:
    """Return the key of the text and, where there is one, of its id, which counts within its source only."""
    by_text = stable_hash("text", layout_key(text))
    return (by_text, stable_hash(f"{role} id", source, name)) if name else (by_text,)
