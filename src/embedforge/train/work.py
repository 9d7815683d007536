"""What one optimisation step of a stage does: its texts, its loss, its gradient. One class an objective.

The Trainer asks a `Work` for step i and gets the figures to log; optimizer, checkpoints, ranks and
everything else is the same for all objectives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from embedforge.objectives.gradcache import backward_with_retry
from embedforge.recipe import Stage
from embedforge.runtime import bfloat16_autocast

if TYPE_CHECKING:
    from embedforge.train.teacher import Teaching


@dataclass(frozen=True)
class StageContext:
    """Where a stage is trained, and how its gradients reach the parameters."""

    device: torch.device
    rank: int
    world: int
    autocast: bool
    """Matrix products in bfloat16."""
    accumulate: Callable[[Tensor], object]
    """Back-propagates a scalar: `accelerator.backward`."""
    no_sync: Callable[[nn.Module], AbstractContextManager[Any]]
    """Context of all backward passes of a step but the last, in which ranks exchange no gradients."""

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch on the stage's device."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return bfloat16_autocast(self.device, self.autocast)


@dataclass(frozen=True)
class StepFigures:
    """What is known of a step once its gradient stands in the parameters."""

    loss: Tensor
    """Scalar."""
    losses: Sequence[float]
    """One a row: of a query, of a text, or the mean over the predicted tokens of a chunk."""
    sources: Sequence[str]
    """The name of each row's source."""
    text: Callable[[int], str]
    """The text of a row, for messages."""
    tokens: int
    """Real tokens of this rank."""
    padded_tokens: int
    """Tokens it computed, padding included."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Of a sum: the mean loss of each term by its kind, without its weight."""


class Work(ABC):
    """A stage's objective on its data."""

    def __init__(self, module: nn.Module, stage: Stage, seed: int) -> None:
        """Take what is trained.

        Args:
            module: what the Trainer wraps for several ranks, and whose parameters it trains.
            stage: of the recipe.
            seed: of the stage; a step's random numbers come from it and the step's number alone.
        """
        self.module, self.stage, self.seed = module, stage, seed
        self.tokens_per_micro_batch = stage.tokens_per_micro_batch
        self.context: StageContext

    def prepare(self, teaching: Teaching, folder: Path, resuming: bool) -> None:  # noqa: B027
        """Do what takes a while before the first step; `folder` is the stage's own.

        `resuming` says that the weights of a checkpoint will follow.
        """

    def begin(self, context: StageContext) -> None:
        """Get ready, once the Trainer has put the module in its place; refuse what cannot be learned from."""
        self.context = context

    @abstractmethod
    def step(self, model: nn.Module, number: int) -> StepFigures:
        """Leave the gradient of step `number`, counted from 0, in the parameters.

        `model` is `module` in the wrapper of the ranks.
        """

    def finish(self) -> None:  # noqa: B027
        """Take from the model what belongs to the stage alone, after its last step."""

    def seed_dropout(self, number: int) -> None:
        """Seed torch's generators for a step; other numbers on every rank."""
        seed = mix_seeds(self.seed, number, self.context.rank)
        torch.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)

    def within_memory(
        self, attempt: Callable[[int], Any], longest: int, zero_grad: Callable[[], object]
    ) -> Any:
        """Return `attempt(tokens per micro-batch)`; where memory does not suffice, with half as many."""
        result, self.tokens_per_micro_batch = backward_with_retry(
            attempt, self.tokens_per_micro_batch, longest=longest, zero_grad=zero_grad
        )
        return result


def mix_seeds(*numbers: int) -> int:
    """Return one 63-bit seed out of several numbers."""
    state = np.random.SeedSequence([abs(number) for number in numbers]).generate_state(1, np.uint64)
    return int(state[0] >> 1)
