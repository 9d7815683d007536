"""Which texts go through a model together: batches of similar length, by a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 0.15
SMALL = 16
"""Micro-batches below a sixteenth of the budget are not cut to save padding: there is little to save."""


def micro_batches(lengths: Sequence[int], tokens_per_micro_batch: int) -> list[list[int]]:
    """Cut texts into micro-batches of similar length; return the texts' indices in each.

    A micro-batch of n texts, the longest of which has m tokens, costs n * m tokens, and that is at most
    the budget; a single longer text stands alone. A micro-batch also ends where another text would take
    its padding above 15 %, unless it is still small. The longest texts come first: if memory does not
    suffice, that shows at once.

    >>> micro_batches([3, 9, 4, 10, 30], tokens_per_micro_batch=20)
    [[4], [3, 1], [2, 0]]
    """
    batches: list[list[int]] = []
    longest = tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        area = (len(batches[-1]) + 1) * longest if batches else 0
        well_filled = tokens + lengths[index] >= (1 - MAX_PADDING) * area
        fits = area <= tokens_per_micro_batch
        if batches and fits and (well_filled or area * SMALL <= tokens_per_micro_batch):
            batches[-1].append(index)
            tokens += lengths[index]
        else:
            batches.append([index])
            longest = tokens = lengths[index]
    return batches
