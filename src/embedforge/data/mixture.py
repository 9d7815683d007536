"""Several sources of Examples laid out into steps, by random access: step 1,000,000 costs what step 0 costs.

A step is a function of the data, the settings, the seed and its index alone. A resumed run therefore
continues exactly, and every rank of a distributed run can work out the whole step by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from embedforge.data.example import Example
from embedforge.data.step import Draw, Step, build_step, stable_hash
from embedforge.errors import EmbedforgeError, did_you_mean

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


class Mixture:
    """An endless, random-access sequence of steps over several sources.

    **Epoch.** Of a source with n Examples and weight w, an epoch holds round(n * w) rows: floor(w) whole
    passes, and for the rest a random part of the Examples, chosen anew each epoch. Weight 0.5 is half of
    them, weight 2 each of them twice. Within a pass no Example repeats.

    **Batches.** "blended" shuffles the rows of all sources together; what does not fill the last step of
    an epoch is left out, other rows each epoch. "homogeneous" cuts each source's rows into steps of
    their own, leaves out a last short one, and shuffles the steps of all sources.

    **Draws.** An Example gives one positive, starting at a random one and moving to the next at each
    visit, and up to `negatives` negatives: a window over its list that starts at the list's head (mined
    lists begin with the hardest), begins at each visit where the last one ended, and wraps. So all its
    texts get used, as in SimLM's loader (whose window moves by one place an epoch).
    """

    def __init__(
        self,
        examples_by_source: Mapping[str, Sequence[Example]],
        *,
        weights: Mapping[str, float] | None = None,
        seed: int,
        batch_queries: int,
        negatives: int,
        batches: Batches = "blended",
    ) -> None:
        """Check the settings against the data.

        Args:
            examples_by_source: the Examples of each source, by its name.
            weights: by source name, above 0; 1 where absent.
            seed: any integer.
            batch_queries: queries a step, over all ranks.
            negatives: hard negatives a query, fewer where an Example has fewer.
            batches: see above.

        Raises:
            EmbedforgeError: a source too small for a batch, or a setting that makes no sense.
        """
        self.examples = {name: examples_by_source[name] for name in examples_by_source}
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in self.examples}
        self.negatives = negatives
        _check_settings(self.weights, weights or {}, batch_queries, negatives, batches)
        for name, examples in self.examples.items():
            _check_examples(name, examples)
        sizes = tuple(len(examples) for examples in self.examples.values())
        self.plan = Plan(
            seed=seed,
            names=tuple(self.examples),
            sizes=sizes,
            counts=tuple(
                max(1, math.floor(size * self.weights[name] + 0.5))
                for name, size in zip(self.examples, sizes, strict=True)
            ),
            batch_queries=batch_queries,
            batches=batches,
        )
        _check_batch_fits(self.plan)
        self._starts = _starts(self.plan)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row of an epoch has been used."""
        return self.plan.steps_per_epoch

    def __len__(self) -> int:
        return self.steps_per_epoch

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of a hash of the names and the whole content of the sources, in order."""
        digest = hashlib.blake2b(digest_size=16)
        for name, examples in self.examples.items():
            digest.update(f"{stable_hash(name)} {fingerprint(examples)}\n".encode())
        return digest.hexdigest()

    def step(self, index: int) -> Step:
        """Return step `index`, counted from 0 without end; epochs follow one another."""
        if index < 0:
            raise IndexError(f"steps count from 0, asked for step {index}")
        epoch, place = divmod(index, self.steps_per_epoch)
        batch = self.plan.batch_queries
        slots = _epoch_order(self.plan, epoch)[place * batch : (place + 1) * batch]
        return build_step(index, [self._draw(int(slot), epoch) for slot in slots])

    def _draw(self, slot: int, epoch: int) -> Draw:
        """Return the Example in a slot, with the texts that this visit to it uses."""
        plan = self.plan
        place = int(np.searchsorted(self._starts, slot, side="right")) - 1
        name = plan.names[place]
        repetition, row = divmod(slot - int(self._starts[place]), plan.sizes[place])
        visit = epoch * plan.passes[place] + repetition
        example = self.examples[name][row]
        positive = (stable_hash(plan.seed, "positive", name, row) + visit) % len(example.positives)
        total = len(example.negatives)
        window = min(self.negatives, total)
        negatives = tuple((visit * window + step) % total for step in range(window))
        return Draw(example, positive, negatives)


def fingerprint(examples: Sequence[Example]) -> str:
    """Return 32 hexadecimal digits of a hash of the Examples, every field of them, in order."""
    digest = hashlib.blake2b(digest_size=16)
    every_field = attrgetter(*(field.name for field in fields(Example)))
    for example in examples:
        digest.update(json.dumps(every_field(example)).encode("ascii"))
    return digest.hexdigest()


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


def _check_settings(
    known: Mapping[str, float], weights: Mapping[str, float], batch_queries: int, negatives: int, batches: str
) -> None:
    if not known:
        raise EmbedforgeError("a mixture needs at least one source")
    for name in weights:
        if name not in known:
            raise EmbedforgeError(
                f"a weight is given for '{name}', the sources are {', '.join(known)}."
                + did_you_mean(name, known)
            )
        if not 0 < weights[name] < math.inf:
            raise EmbedforgeError(f"the weight of source '{name}' is {weights[name]}; it must be above 0")
    if batch_queries < 1 or negatives < 0:
        raise EmbedforgeError(
            f"batch_queries {batch_queries} must be at least 1, negatives {negatives} at least 0"
        )
    if batches not in get_args(Batches):
        raise EmbedforgeError(
            f"batches '{batches}': it is 'blended' or 'homogeneous'."
            + did_you_mean(batches, get_args(Batches))
        )


def _check_examples(name: str, examples: Sequence[Example]) -> None:
    if not examples:
        raise EmbedforgeError(f"source '{name}' has no Example")
    for row, example in enumerate(examples):
        if not example.positives:
            raise EmbedforgeError(
                f"source '{name}', Example {row}: no positive for the query {example.query!r:.60}"
            )
        for ids, texts in (
            (example.positive_ids, example.positives),
            (example.negative_ids, example.negatives),
        ):
            if ids and len(ids) != len(texts):
                raise EmbedforgeError(
                    f"source '{name}', Example {row}: {len(ids)} ids for {len(texts)} texts; give all or none"
                )


def _check_batch_fits(plan: Plan) -> None:
    way_out = "lower batch_queries, raise the weight or add data"
    if plan.batches == "homogeneous":
        for name, count in zip(plan.names, plan.counts, strict=True):
            if count < plan.batch_queries:
                raise EmbedforgeError(
                    f"source '{name}' gives {count} rows an epoch, a step of one source takes "
                    f"{plan.batch_queries}: {way_out}, or use batches: blended"
                )
    elif sum(plan.counts) < plan.batch_queries:
        raise EmbedforgeError(
            f"the sources give {sum(plan.counts)} rows an epoch, a step takes {plan.batch_queries}: {way_out}"
        )
