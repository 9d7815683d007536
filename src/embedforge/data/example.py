"""The one form of training data: pairs, triples, labels, scores and mined data all become Examples."""

from __future__ import annotations

from dataclasses import dataclass

from embedforge.errors import EmbedforgeError


@dataclass(frozen=True, slots=True)
class Example:
    """A query with the documents that answer it and documents that do not.

    Ids are optional. Where they are given they are as many as the texts they belong to, and two
    texts with one id count as the same document when false negatives are masked.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    instruction: str = ""
    """The task, in words, put before the query by the contract's template; "" for none."""
    source: str = ""
    """The name of the data source, for metrics by source and homogeneous batches."""
    in_batch_negatives: bool = True
    """May documents of other rows be negatives of this query, and may its documents be theirs?"""
    symmetric: bool = False
    """Documents are of the query's kind (STS, clustering): they get the instruction as well."""
    query_id: str = ""
    positive_ids: tuple[str, ...] = ()
    negative_ids: tuple[str, ...] = ()
    score: float | None = None
    """How much the query and its one positive are alike, on the source's scale: what CoSENT learns the order
    of. Such a pair is no answer and no negative; None for all other data."""

    def __post_init__(self) -> None:
        """Refuse a text in place of a list of texts: its letters would be documents."""
        for name in ("positives", "negatives"):
            if isinstance(text := getattr(self, name), str):
                raise EmbedforgeError(
                    f"an Example's {name} are a tuple of texts, not a text: write ({text!r:.60},)"
                )
