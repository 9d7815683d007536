"""A student's vectors against a teacher's: text by text, by a batch's similarities, and in closed form."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from embedforge.errors import EmbedforgeError


def target_losses(student: Tensor, teacher: Tensor, loss: Literal["cosine", "mse"]) -> Tensor:
    """Return how far each text's vector is from its target.

    Both are scaled to unit length, so that "mse", the squared distance (LEAF, arXiv 2509.12539), is twice
    "cosine", which is 1 - cosine (jina-v5, arXiv 2602.15547).

    Args:
        student: [N, T], any floating dtype; compared in float32, or in float64 for float64 vectors.
        teacher: [N, T].
        loss: which.

    Returns:
        [N], float32 or float64.
    """
    student, teacher = _unit(student), _unit(teacher)
    if loss == "mse":
        return (student - teacher).square().sum(dim=1)
    return 1 - (student * teacher).sum(dim=1)


def relational_losses(
    student: Tensor, teacher: Tensor, loss: Literal["mse", "kl"], temperature: float
) -> Tensor:
    """Return how far each text's similarities to the others of the batch are from the teacher's.

    Student and teacher may differ in width, for only cosines are compared. "mse" is the mean squared
    difference over the other texts; "kl" the Kullback-Leibler divergence from the teacher's softmax over
    them to the student's, at one temperature for both.

    Args:
        student: [N, D], any floating dtype; compared in float32, or in float64 for float64 vectors.
        teacher: [N, T].
        loss: which.
        temperature: of "kl".

    Returns:
        [N], float32 or float64; zeros for a single text, which has no others.
    """
    texts = len(student)
    student, teacher = _unit(student), _unit(teacher)
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = student @ student.T, teacher @ teacher.T
    itself = torch.eye(texts, dtype=torch.bool, device=student.device)
    if texts < 2:
        return student.sum(dim=1) * 0
    if loss == "mse":
        return (ours - theirs).masked_fill(itself, 0.0).square().sum(dim=1) / (texts - 1)
    # A finite number in place of -inf: 0 * -inf would be NaN in the sum below.
    lowest = torch.finfo(ours.dtype).min
    ours, theirs = (
        (part / temperature).masked_fill(itself, lowest).log_softmax(dim=1) for part in (ours, theirs)
    )
    return (theirs.exp() * (theirs - ours).masked_fill(itself, 0.0)).sum(dim=1)


class Ridge:
    """Ridge regression with an intercept, from sums alone: memory does not grow with the texts.

    >>> ridge = Ridge()
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> ridge.add(x, 3 * x + 1)
    >>> [part.tolist() for part in ridge.solve(1e-9)]
    [[[3.0]], [1.0]]
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sums: list[Tensor] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take in some rows: [n, D] and [n, T]; summed in float64 on the CPU."""
        x, y = inputs.double().cpu(), targets.double().cpu()
        sums = [x.sum(dim=0), y.sum(dim=0), x.T @ x, x.T @ y]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self.rows else sums
        self.rows += len(x)

    def solve(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return weight [T, D] and bias [T], float32, of the map inputs @ weight.T + bias.

        Args:
            strength: lambda, as a share of the mean variance of the inputs, so that it does not depend on
                their scale or number.

        Raises:
            EmbedforgeError: there are no rows, or they are not finite.
        """
        if not self.rows:
            raise EmbedforgeError("there is nothing to fit a map to: no text has a target")
        x, y, xx, xy = self._sums
        centred = xx - torch.outer(x, x) / self.rows
        crossed = xy - torch.outer(x, y) / self.rows
        penalty = strength * centred.diagonal().mean().clamp_min(1e-12)
        eye = torch.eye(len(x), dtype=torch.float64)
        if not bool(torch.isfinite(centred).all() and torch.isfinite(crossed).all()):
            raise EmbedforgeError("the vectors to fit a map to are not finite (NaN or infinity)")
        weight = torch.linalg.solve(centred + penalty * eye, crossed)
        bias = (y - x @ weight) / self.rows
        return weight.T.float().contiguous(), bias.float()


def _unit(vectors: Tensor) -> Tensor:
    """Scale to unit length, in float32 or float64."""
    return functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
