"""How many steps fit the time that is left."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from embedforge.recipe import Recipe, Stage

TRAINING_COST = 5.0
"""A trained token against an encoded one: forward, forward again (GradCache), and a backward pass."""
AFTERWARDS = 2.2
"""Encoding with the trained model, comparison and report, against encoding with the untrained one."""
FEWEST_STEPS = 10


@dataclass(frozen=True, slots=True)
class Speed:
    """What encoding the corpus with the untrained decoder has shown."""

    tokens_per_second: float
    query_tokens: float
    """Mean tokens of a query."""
    document_tokens: float
    texts: float
    """Texts encoded."""

    def as_tuple(self) -> tuple[float, ...]:
        """Return the fields in order."""
        return astuple(self)


def step_tokens(stage: Stage, speed: Speed) -> float:
    """Estimate the tokens of one step."""
    query = min(speed.query_tokens, stage.query_max_tokens or math.inf)
    document = min(speed.document_tokens, stage.document_max_tokens or math.inf)
    return stage.batch_queries * (query + (1 + stage.negatives) * document)


def fit_steps(recipe: Recipe, speed: Speed, seconds: float) -> Recipe:
    """Shorten all stages by one factor so that training and what follows take `seconds`."""
    encoding = speed.texts * speed.document_tokens / speed.tokens_per_second
    for_training = max(0.0, seconds - AFTERWARDS * encoding)
    needed = sum(
        stage.steps * step_tokens(stage, speed) * TRAINING_COST / speed.tokens_per_second
        for stage in recipe.stages
    )
    factor = min(1.0, for_training / needed)
    stages = tuple(
        stage.model_copy(
            update={
                "steps": min(stage.steps, max(FEWEST_STEPS, int(stage.steps * factor))),
                "warmup_steps": int(stage.warmup_steps * factor),
            }
        )
        for stage in recipe.stages
    )
    return recipe.model_copy(update={"stages": stages})
