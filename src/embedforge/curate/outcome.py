"""What a step keeps and what it drops, and how a fault of a text becomes one of its Example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from embedforge.data.example import Example

Part = Literal["query", "positive", "negative"]


class RowText(Example):
    """A text that is no half of a pair: steps judge it as a query, and nothing else of its row."""

    __slots__ = ()


class LabelledText(RowText):
    """A text of a class or cluster; its one positive is the label."""

    __slots__ = ()


class PlainText(RowText):
    """A text alone, for masked next token prediction and SimCSE; its own positive."""

    __slots__ = ()


class Fault(NamedTuple):
    """Why a text cannot stay."""

    reason: str
    """A few words, the same for all texts of one fault: reports count by it."""
    detail: str = ""
    """What about this text."""


class Dropped(NamedTuple):
    """One thing that a step took away."""

    example: Example
    """As it came in."""
    part: Literal["example", "positive", "negative"]
    """The whole Example, or one document of it."""
    text: str
    """The text at fault."""
    reason: str
    detail: str = ""


class Outcome(NamedTuple):
    """What a step leaves, in the order it came, and what it dropped."""

    kept: list[Example]
    dropped: list[Dropped]


def judge_texts(
    examples: Sequence[Example],
    judge: Callable[[str, Part], Fault | None],
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Ask about every text of every Example, and drop what is found at fault.

    A query at fault drops its Example. A positive or negative at fault is taken out of it, and an Example
    whose last positive goes, goes with it. Of a `RowText` only the query is asked about.

    Args:
        examples: in any order.
        judge: the fault of a text that has to go, None for one that stays; told which part it is.
        progress: called with the number of Examples done since the last call.
    """
    kept: list[Example] = []
    dropped: list[Dropped] = []
    for example in examples:
        progress(1)
        fault = judge(example.query, "query")
        if fault is not None:
            dropped.append(Dropped(example, "example", example.query, *fault))
            continue
        if isinstance(example, RowText):
            kept.append(example)
            continue
        positives = [judge(text, "positive") for text in example.positives]
        lost = [(index, fault) for index, fault in enumerate(positives) if fault is not None]
        if len(lost) == len(positives):
            index, fault = lost[0]
            dropped.append(Dropped(example, "example", example.positives[index], *fault))
            continue
        negatives = [judge(text, "negative") for text in example.negatives]
        dropped += [Dropped(example, "positive", example.positives[index], *fault) for index, fault in lost]
        dropped += [
            Dropped(example, "negative", text, *fault)
            for text, fault in zip(example.negatives, negatives, strict=True)
            if fault is not None
        ]
        kept.append(
            without(
                example,
                {index for index, _ in lost},
                {index for index, fault in enumerate(negatives) if fault is not None},
            )
        )
    return Outcome(kept, dropped)


def without(example: Example, positives: set[int], negatives: set[int]) -> Example:
    """Return the Example without the documents at these indices; ids go with their texts."""
    if not positives and not negatives:
        return example
    return replace(
        example,
        positives=_left(example.positives, positives),
        positive_ids=_left(example.positive_ids, positives),
        negatives=_left(example.negatives, negatives),
        negative_ids=_left(example.negative_ids, negatives),
    )


def _left(texts: tuple[str, ...], indices: set[int]) -> tuple[str, ...]:
    return tuple(text for index, text in enumerate(texts) if index not in indices)
