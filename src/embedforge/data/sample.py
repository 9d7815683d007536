"""A uniform sample of a stream whose length nobody knows, in the memory of the sample."""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def sampled(items: Iterable[Item], size: int, draw: random.Random) -> list[Item]:
    """Return all items, or a random `size` of more, in their order.

    Li's reservoir (ACM TOMS 20, 1994, algorithm L): most items are passed over without a draw.

    Args:
        items: read once, to their end.
        size: 1 or more.
        draw: decides; the same state and items give the same sample.
    """
    stream = iter(items)
    kept = list(enumerate(itertools.islice(stream, size)))
    if len(kept) < size:
        return [item for _, item in kept]
    position, bound = size - 1, 1.0
    while True:
        bound *= _uniform(draw) ** (1 / size)
        skipped = _skipped(bound, _uniform(draw))
        position += skipped + 1
        for item in itertools.islice(stream, skipped, skipped + 1):
            kept[draw.randrange(size)] = (position, item)
            break
        else:
            return [item for _, item in sorted(kept, key=lambda pair: pair[0])]


def _skipped(bound: float, uniform: float) -> int:
    """Return how many items are passed over: geometric, each one taken with probability `bound`."""
    return min(int(math.log(uniform) / math.log1p(-bound)), sys.maxsize - 1) if 0 < bound < 1 else 0


def _uniform(draw: random.Random) -> float:
    """Return a number above 0 and at most 1."""
    return 1.0 - draw.random()
