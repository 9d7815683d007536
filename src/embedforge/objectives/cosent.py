"""CoSENT: of any two scored pairs of texts, the higher scored one is to have the higher cosine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def cosent(
    queries: Tensor, documents: Tensor, scores: Tensor, groups: Sequence[str], temperature: float
) -> Tensor:
    """Return log(1 + sum of exp((cos_j - cos_i) / temperature)) over all i, j with score_i > score_j.

    Only the order of the scores counts, and only pairs of one group are ordered, since two sources may score
    on two scales (Su 2022, "CoSENT", kexue.fm/archives/8847; elsewhere a scale, 1 / temperature).

    Args:
        queries: [N, D], any floating dtype; compared in float32, or in float64 for float64 vectors.
        documents: [N, D], one a query.
        scores: [N].
        groups: [N], the source of each pair.
        temperature: above 0.

    Returns:
        A scalar; 0 where no two pairs can be ordered.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    one, other = (functional.normalize(side.to(dtype), dim=-1) for side in (queries, documents))
    cosines = (one * other).sum(dim=1)
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    group = torch.tensor([names[name] for name in groups], device=scores.device)
    ordered = (scores[:, None] > scores[None, :]) & (group[:, None] == group[None, :])
    apart = (cosines[None, :] - cosines[:, None]) / temperature  # [i, j]
    logits = apart.masked_fill(~ordered, float("-inf")).flatten()
    return torch.cat([logits, logits.new_zeros(1)]).logsumexp(dim=0)
