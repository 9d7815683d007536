"""The order in which the rows of several sources stand in steps, by random access and without the rows.

What the rows are, Examples or chunks of text, is not known here: a row is a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from embedforge.errors import EmbedforgeError
from embedforge.text.same import stable_hash

Batches = Literal["blended", "homogeneous"]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides which rows stand in which step."""

    seed: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Examples of each source."""
    counts: tuple[int, ...]
    """Rows of each source in one epoch: size times weight, rounded, at least 1."""
    batch_queries: int
    batches: Batches

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        if self.batches == "homogeneous":
            return sum(count // self.batch_queries for count in self.counts)
        return sum(self.counts) // self.batch_queries

    @property
    def passes(self) -> tuple[int, ...]:
        """How many passes through a source one epoch begins: the rows of a pass differ from one another."""
        return tuple(math.ceil(count / size) for count, size in zip(self.counts, self.sizes, strict=True))

    def require_that_a_batch_fits(self, rows: str = "rows") -> None:
        """Raise EmbedforgeError where the sources, or one of them in homogeneous batches, fill no step."""
        way_out = "lower batch_queries, raise the weight or add data"
        if self.batches == "homogeneous":
            for name, count in zip(self.names, self.counts, strict=True):
                if count < self.batch_queries:
                    raise EmbedforgeError(
                        f"source '{name}' gives {count} {rows} an epoch, a step of one source takes "
                        f"{self.batch_queries}: {way_out}, or use batches: blended"
                    )
        elif sum(self.counts) < self.batch_queries:
            raise EmbedforgeError(
                f"the sources give {sum(self.counts)} {rows} an epoch, a step takes {self.batch_queries}: "
                f"{way_out}"
            )


class Visit(NamedTuple):
    """One row in one step."""

    source: int
    row: int
    number: int
    """How many times the row was visited before, in all epochs."""


def visits(plan: Plan, step: int) -> list[Visit]:
    """Return the rows of a step, counted from 0 without end; epochs follow one another."""
    if step < 0:
        raise IndexError(f"steps count from 0, asked for step {step}")
    epoch, position = divmod(step, plan.steps_per_epoch)
    batch = plan.batch_queries
    slots = _epoch_order(plan, epoch)[position * batch : (position + 1) * batch]
    return [_visit(plan, int(slot), epoch) for slot in slots]


def rows_per_epoch(size: int, weight: float) -> int:
    """Return the rows of a source in one epoch: size times weight, rounded, at least 1."""
    return max(1, math.floor(size * weight + 0.5))


def _visit(plan: Plan, slot: int, epoch: int) -> Visit:
    starts = _starts(plan)
    source = int(np.searchsorted(starts, slot, side="right")) - 1
    repetition, row = divmod(slot - int(starts[source]), plan.sizes[source])
    return Visit(source, row, epoch * plan.passes[source] + repetition)


@lru_cache(maxsize=8)
def _starts(plan: Plan) -> npt.NDArray[np.int64]:
    """Return the first slot of each source. A slot is an Example in one of an epoch's passes."""
    widths = [size * passes for size, passes in zip(plan.sizes, plan.passes, strict=True)]
    return np.cumsum([0, *widths[:-1]])


@lru_cache(maxsize=2)
def _epoch_order(plan: Plan, epoch: int) -> npt.NDArray[np.int64]:
    """Return an epoch's slots [steps * batch] in the order of their use: 8 bytes a row, for two epochs."""
    batch = plan.batch_queries
    by_source = [
        start + _source_slots(plan, source, epoch) for source, start in enumerate(_starts(plan).tolist())
    ]
    if plan.batches == "homogeneous":
        whole = [slots[: len(slots) // batch * batch].reshape(-1, batch) for slots in by_source]
        steps = np.concatenate(whole)
        order = steps[_permutation(len(steps), plan.seed, "steps", epoch)].reshape(-1)
    else:
        rows = np.concatenate(by_source)
        order = rows[_permutation(len(rows), plan.seed, "rows", epoch)][: plan.steps_per_epoch * batch]
    order.flags.writeable = False
    return order


def _source_slots(plan: Plan, source: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return a source's slots [count] in this epoch: pass after pass, each in an order of its own."""
    name, size = plan.names[source], plan.sizes[source]
    passes = [
        number * size + _permutation(size, plan.seed, "source", name, epoch, number)
        for number in range(plan.passes[source])
    ]
    return np.concatenate(passes)[: plan.counts[source]]


def _permutation(size: int, *key: str | int) -> npt.NDArray[np.int64]:
    """Return a random order of range(size). Numpy may change its own shuffles, but not its raw words."""
    return np.argsort(np.random.PCG64(stable_hash(*key)).random_raw(size), kind="stable")
