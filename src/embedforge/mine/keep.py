"""Which candidates may be negatives: the positive-aware rules of NV-Retriever (arXiv 2407.15831).

Many of a query's nearest documents answer it although nobody has labelled them: judged by a large
language model, 39 % of the naive negatives of NQ. The labelled positive's own score tells how near is
too near.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError

Kind = Literal["top_k", "shifted", "absolute", "margin", "percentage"]

_PAPER_VALUES: dict[Kind, float] = {
    "top_k": 0,
    "shifted": 10,
    "absolute": 0.7,
    "margin": 0.05,
    "percentage": 0.95,
}
_LIMITS: dict[Kind, tuple[float, float]] = {
    "top_k": (-math.inf, math.inf),
    "shifted": (0, math.inf),
    "absolute": (-math.inf, math.inf),
    "margin": (0, math.inf),
    "percentage": (0, 2),  # NV-Retriever's search went to 1.05
}
_MEANINGS: dict[Kind, str] = {
    "top_k": "it has none",
    "shifted": "it is how many of the first candidates to pass over",
    "absolute": "it is the score that a negative stays below",
    "margin": "it is how far below the positive's score a negative stays, 0 or more",
    "percentage": "it is a share of the positive's score: 0.95 for 95 %",
}


@dataclass(frozen=True, slots=True)
class KeepRule:
    """When a candidate n of score s(n) survives beside a positive of score s(p).

    - `top_k`: always.
    - `shifted`: its rank, from 1, is above the value (10).
    - `absolute`: s(n) < value (0.7).
    - `margin`: s(n) < s(p) - value (0.05).
    - `percentage`: s(n) < s(p) - (1 - value) |s(p)| (0.95). For positive scores that is value * s(p), as
      in the paper; for negative ones the paper's product would lie above s(p) and let false negatives in.

    In brackets the best values of the paper, taken when `value` is None.
    """

    kind: Kind = "percentage"
    value: float | None = None
    sample_from: int | None = None
    """Draw the negatives from so many best survivors, by the softmax of their scores (the paper: 10);
    None takes the best."""
    keep_first: bool = False
    """When drawing, always take the best survivor."""

    def __post_init__(self) -> None:
        if self.kind not in _PAPER_VALUES:
            raise EmbedforgeError(f"no keep rule '{self.kind}'; there are {', '.join(_PAPER_VALUES)}")
        lowest, highest = _LIMITS[self.kind]
        if not (math.isfinite(self.threshold) and lowest <= self.threshold <= highest):
            raise EmbedforgeError(
                f"keep rule '{self.kind}' cannot have the value {self.value:g}; {_MEANINGS[self.kind]}"
            )
        if self.sample_from is not None and self.sample_from < 1:
            raise EmbedforgeError(f"sample_from is {self.sample_from}; it must be at least 1, or None")
        if self.keep_first and self.sample_from is None:
            raise EmbedforgeError("keep_first has no effect without sample_from: the best are taken anyway")
        if self.kind == "top_k" and self.value:
            raise EmbedforgeError(f"keep rule 'top_k' keeps all, the value {self.value} has no effect on it")

    @property
    def threshold(self) -> float:
        """The rule's value, the paper's where none was given."""
        return _PAPER_VALUES[self.kind] if self.value is None else self.value


PERCENTAGE = KeepRule()
"""The paper's best rule: below 95 % of the positive's score."""


def keep(
    rule: KeepRule,
    scores: NDArray[Any],
    positive: float | NDArray[Any],
    ranks: NDArray[Any] | None = None,
) -> NDArray[np.bool_]:
    """Say which candidates survive.

    Args:
        rule: the rule; see `KeepRule`.
        scores: [candidates] of one query, in the order of their ranks, positives left out; or
            [queries, candidates].
        positive: the positive's score on the same scale, of several the lowest; or [queries, 1].
        ranks: of the candidates, from 0, of the shape of `scores`; their positions by default.
    """
    if rule.kind == "top_k":
        return np.ones(scores.shape, dtype=bool)
    if rule.kind == "shifted":
        positions = np.broadcast_to(np.arange(scores.shape[-1]), scores.shape) if ranks is None else ranks
        return np.asarray(positions >= rule.threshold)
    if rule.kind == "absolute":
        ceiling: float | NDArray[Any] = rule.threshold
    elif rule.kind == "margin":
        ceiling = positive - rule.threshold
    else:
        ceiling = positive - (1 - rule.threshold) * np.abs(positive)
    return np.asarray(scores < ceiling)


def choose(rule: KeepRule, scores: NDArray[Any], n: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Choose at most `n` of the survivors and return their positions, ascending.

    Args:
        rule: says whether to take the first or to draw.
        scores: [survivors], in the order of their ranks.
        n: how many to choose.
        random: used only where the rule draws.
    """
    if rule.sample_from is None:
        return np.arange(min(n, len(scores)))
    pool = np.asarray(scores[: rule.sample_from], dtype=np.float64)
    # Adding Gumbel noise and taking the n highest is drawing n by softmax, one after another.
    noisy = pool + random.gumbel(size=len(pool))
    if rule.keep_first:
        noisy[:1] = np.inf
    return np.sort(np.argsort(-noisy, kind="stable")[:n])
