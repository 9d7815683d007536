"""How many steps fit the time that is left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedforge.recipe import Recipe, Stage

TRAINING_COST = 5.2
"""A trained token against an encoded one: forward and backward pass, optimizer, checkpoints."""
AFTERWARDS = 1.7
"""Encoding with the trained model, comparison and report, against encoding with the untrained one."""
RESERVE = 25.0
"""Seconds for imports, loading and saving."""
FEWEST_STEPS = 10


@dataclass(frozen=True)
class Speed:
    """What encoding the corpus with the untrained decoder has shown."""

    seconds: float
    """Time that it took."""
    tokens: float
    """Tokens that were encoded."""
    query_tokens: NDArray[np.int64]
    """Tokens of each query, its instruction included."""
    document_tokens: NDArray[np.int64]


def step_tokens(stage: Stage, speed: Speed) -> float:
    """Estimate the tokens of one step."""
    query = np.minimum(speed.query_tokens, stage.query_max_tokens or math.inf).mean()
    document = np.minimum(speed.document_tokens, stage.document_max_tokens or math.inf).mean()
    return float(stage.batch_queries * (query + (1 + stage.negatives) * document))


def fit_steps(recipe: Recipe, speed: Speed, seconds: float) -> Recipe:
    """Shorten all stages by one factor so that training and what follows take `seconds`."""
    for_training = max(0.0, seconds - AFTERWARDS * speed.seconds - RESERVE)
    tokens = sum(stage.steps * step_tokens(stage, speed) for stage in recipe.stages)
    factor = min(1.0, for_training / (tokens * TRAINING_COST * speed.seconds / speed.tokens))
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
