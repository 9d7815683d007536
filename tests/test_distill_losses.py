"""The losses of distillation, the regulariser and the ridge regression, against their formulas as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from embedforge.errors import EmbedforgeError
from embedforge.objectives.distill import Ridge, relational_losses, target_losses
from embedforge.objectives.spread_out import spread_out


def vectors(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(float(a) ** 2 for a in one) * sum(float(b) ** 2 for b in other))


@pytest.mark.parametrize(("loss", "factor"), [("cosine", 1), ("mse", 2)])
def test_a_text_against_its_target(loss: str, factor: int) -> None:
    student, teacher = vectors(5, 7, 0), vectors(5, 7, 1)
    expected = [factor * (1 - cosine(one, other)) for one, other in zip(student, teacher, strict=True)]
    assert target_losses(student, teacher, loss).tolist() == pytest.approx(expected, abs=1e-12)


def test_similarities_against_the_teachers() -> None:
    student, teacher = vectors(5, 7, 0), vectors(5, 3, 1)
    squared, divergence = [], []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        ours = [cosine(student[i], student[j]) for j in others]
        theirs = [cosine(teacher[i], teacher[j]) for j in others]
        squared.append(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / 4)
        q = [math.exp(a / 0.2) / sum(math.exp(b / 0.2) for b in ours) for a in ours]
        p = [math.exp(a / 0.2) / sum(math.exp(b / 0.2) for b in theirs) for a in theirs]
        divergence.append(sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    assert relational_losses(student, teacher, "mse", 1.0).tolist() == pytest.approx(squared, abs=1e-12)
    assert relational_losses(student, teacher, "kl", 0.2).tolist() == pytest.approx(divergence, abs=1e-12)


@pytest.mark.parametrize("loss", ["mse", "kl"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_texts_leave_a_finite_gradient(loss: str, rows: int) -> None:
    student = vectors(rows, 4, 0).float().requires_grad_()
    total = relational_losses(student, vectors(rows, 3, 1).float(), loss, 0.01).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


def test_bfloat16_vectors_are_compared_in_float32() -> None:
    student, teacher = vectors(4, 64, 0).bfloat16(), vectors(4, 64, 1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = relational_losses(student, teacher, "mse", 1.0)
    assert low.dtype == torch.float32
    torch.testing.assert_close(
        low.double(), relational_losses(student.double(), teacher.double(), "mse", 1.0), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("stretch", [0.0, 3.0])
def test_spread_out_is_its_formula(stretch: float) -> None:
    """With a common direction (stretch) the mean square is above 1 / D, without it about there."""
    points = vectors(6, 4, 0)
    points[:, 0] += stretch
    apart = ~torch.eye(6, dtype=torch.bool)
    apart[1, 2] = apart[2, 1] = False
    pairs = [(i, j) for i in range(6) for j in range(6) if apart[i, j]]
    cosines = [cosine(points[i], points[j]) for i, j in pairs]
    mean, square = sum(cosines) / len(pairs), sum(c * c for c in cosines) / len(pairs)
    expected = mean**2 + max(0.0, square - 1 / 4)
    assert float(spread_out(points, apart)) == pytest.approx(expected, abs=1e-12)


def test_spread_out_of_texts_that_all_match_is_nothing() -> None:
    points = vectors(3, 4, 0).requires_grad_()
    value = spread_out(points, torch.zeros(3, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0.0
    assert not points.grad.any()


def test_ridge_is_the_closed_form_whatever_the_batches() -> None:
    x, y = vectors(40, 5, 0) + 3, vectors(40, 2, 1)
    xc, yc = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    penalty = 0.1 * np.diag(xc.T @ xc).mean() * np.eye(5)
    expected = np.linalg.solve(xc.T @ xc + penalty, xc.T @ yc).T
    for size in (1, 7, 40):
        ridge = Ridge()
        for start in range(0, 40, size):
            ridge.add(x[start : start + size], y[start : start + size])
        weight, bias = ridge.solve(0.1)
        np.testing.assert_allclose(weight.numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(
            bias.numpy(), (y.mean(0).numpy() - expected @ x.mean(0).numpy()), atol=1e-5
        )


def test_ridge_does_not_depend_on_the_scale_of_what_it_is_given() -> None:
    x, y = vectors(40, 5, 0), vectors(40, 2, 1)
    found = []
    for scale in (1.0, 1000.0):
        ridge = Ridge()
        ridge.add(x * scale, y)
        weight, bias = ridge.solve(0.5)
        found.append((x * scale).float() @ weight.T + bias)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_ridge_refuses_nothing_and_what_is_not_finite() -> None:
    with pytest.raises(EmbedforgeError, match="no text has a target"):
        Ridge().solve(0.1)
    ridge = Ridge()
    ridge.add(torch.full((2, 3), torch.nan), torch.ones(2, 2))
    with pytest.raises(EmbedforgeError, match="not finite"):
        ridge.solve(0.1)
