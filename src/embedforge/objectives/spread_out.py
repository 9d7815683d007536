"""The global orthogonal regulariser: non-matching vectors are to be as orthogonal as random ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def spread_out(vectors: Tensor, apart: Tensor) -> Tensor:
    """Return M1**2 + max(0, M2 - 1/D), of the mean M1 and the mean square M2 of the pairs' cosines.

    Cosines of points drawn evenly from the sphere have the mean 0 and the mean square 1/D (Zhang et al.
    2017, arXiv 1708.06320, equations 4 to 6).

    Args:
        vectors: [N, D], any floating dtype; compared in float32, or in float64 for float64 vectors.
        apart: bool [N, N], True for pairs of texts that do not match. The diagonal must be False.

    Returns:
        A scalar; 0 where there is no such pair.
    """
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    unit = functional.normalize(vectors.to(dtype), dim=-1)
    with torch.autocast(vectors.device.type, enabled=False):
        cosines = (unit @ unit.T).masked_fill(~apart, 0.0)
    pairs = apart.sum().clamp_min(1)
    mean, mean_square = cosines.sum() / pairs, cosines.square().sum() / pairs
    return mean.square() + (mean_square - 1 / vectors.shape[1]).clamp_min(0.0) * apart.any()
