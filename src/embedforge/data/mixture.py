"""Several sources of Examples laid out into steps, by random access: step 1,000,000 costs what step 0 costs.

A step is a function of the data, the settings, the seed and its index alone. A resumed run therefore
continues exactly, and every rank of a distributed run can work out the whole step by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from operator import attrgetter
from typing import get_args

from embedforge.data.example import Example
from embedforge.data.order import Batches, Plan, rows_per_epoch, visits
from embedforge.data.step import Draw, Step, build_step
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.text.same import stable_hash


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
    texts get used, as in SimLM's loader (whose window moves by one position an epoch).
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
                rows_per_epoch(size, self.weights[name])
                for name, size in zip(self.examples, sizes, strict=True)
            ),
            batch_queries=batch_queries,
            batches=batches,
        )
        self.plan.require_that_a_batch_fits()

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
        return build_step(index, [self._draw(*visit) for visit in visits(self.plan, index)])

    def _draw(self, source: int, row: int, visit: int) -> Draw:
        """Return the Example in a row, with the texts that this visit to it uses."""
        plan, name = self.plan, self.plan.names[source]
        example = self.examples[name][row]
        positive = (stable_hash(plan.seed, "positive", name, row) + visit) % len(example.positives)
        total = len(example.negatives)
        window = min(self.negatives, total)
        negatives = tuple((visit * window + step) % total for step in range(window))
        return Draw(example, positive, negatives)


def fingerprint(examples: Sequence[Example]) -> str:
    """Return 32 hexadecimal digits of a hash of the Examples, every field of them, in order."""
    digest = hashlib.blake2b(digest_size=16)
    every_field = attrgetter(*(field.name for field in fields(Example) if field.name != "score"))
    for example in examples:
        digest.update(json.dumps(every_field(example)).encode("ascii"))
        if example.score is not None:  # so that data without scores keeps the hash it always had
            digest.update(repr(example.score).encode("ascii"))
    return digest.hexdigest()


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
