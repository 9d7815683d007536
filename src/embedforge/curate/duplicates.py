"""Examples that repeat an earlier one, to the word or nearly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from embedforge.curate.outcome import Dropped, Outcome, RowText
from embedforge.data.example import Example
from embedforge.text.near import Shingler, earlier_twins
from embedforge.text.same import stable_hash, word_key
from embedforge.text.words import shorten

Unit = Literal["pair", "query"]
THRESHOLD = 0.8
_SHOWN = 150


def drop_exact_duplicates(examples: Sequence[Example], *, unit: Unit = "pair") -> Outcome:
    """Keep the first of Examples that are equal in all but case, punctuation and white space.

    Symbols count: a question about C++ is none about C#.

    Args:
        examples: earlier ones win.
        unit: `pair` compares the query and its set of positives, `query` the query alone: then each query
            is asked once, with the positives it had first.
    """
    first: dict[tuple[int, ...], int] = {}
    kept: list[Example] = []
    dropped: list[Dropped] = []
    for row, example in enumerate(examples):
        key: tuple[int, ...] = (stable_hash(word_key(example.query)),)
        if unit == "pair":
            key += tuple(sorted({stable_hash(word_key(text)) for text in example.positives}))
        earlier = first.setdefault(key, row)
        if earlier == row:
            kept.append(example)
        else:
            dropped.append(_repeats(example, examples[earlier], "exact duplicate"))
    return Outcome(kept, dropped)


def drop_near_duplicates(
    examples: Sequence[Example],
    *,
    threshold: float = THRESHOLD,
    unit: Unit = "pair",
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Keep the first of Examples that nearly repeat each other.

    Two texts are near duplicates if the Jaccard similarity of their sets of three-word shingles reaches the
    threshold; texts of three words or fewer only if they have the same words in the same order. MinHash
    finds the candidates, the sets themselves decide. Near pairs need a near query and at least one near
    positive: two questions about one paragraph are no duplicates.

    Args:
        examples: earlier ones win.
        threshold: in (0, 1].
        unit: as in `drop_exact_duplicates`.
        progress: called with the number of Examples done since the last call.
    """
    queries = [example.query for example in examples]
    shingler = Shingler()

    def same(late: int, early: int) -> bool:
        if shingler.similarity(queries[late], queries[early]) < threshold:
            return False
        return unit == "query" or any(
            shingler.similarity(text, other) >= threshold
            for text in examples[late].positives
            for other in examples[early].positives
        )

    documents = [example.positives for example in examples] if unit == "pair" else None
    twins = earlier_twins(queries, documents, same, shingler, progress=progress)
    kept, dropped = [], []
    for example, twin in zip(examples, twins, strict=True):
        if twin is None:
            kept.append(example)
        else:
            dropped.append(_repeats(example, examples[twin], "near duplicate"))
    return Outcome(kept, dropped)


def _repeats(example: Example, earlier: Example, reason: str) -> Dropped:
    detail = f"repeats '{_shown(earlier.query)}'"
    if not isinstance(earlier, RowText):
        detail += f" with '{_shown(earlier.positives[0])}'"
    return Dropped(example, "example", example.query, reason, detail)


def _shown(text: str) -> str:
    return shorten(text, _SHOWN, mark=" …")
