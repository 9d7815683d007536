"""InfoNCE over any set of candidates, and the rule that says which document is whose candidate.

Three rows with one positive p and one negative n each, of which the last forbids in-batch negatives,
drawn with # for a candidate; p1 is known to answer query 0 as well in the last drawing:

>>> owner, is_positive = [0, 0, 1, 1, 2, 2], [True, False, True, False, True, False]
>>> def draw(mask):
...     print("   p0 n0 p1 n1 p2 n2")
...     for query, row in enumerate(mask.tolist()):
...         print(f"q{query} " + "  ".join("#" if candidate else "." for candidate in row))
>>> draw(candidate_mask(owner, is_positive, [True, True, False], "none"))
   p0 n0 p1 n1 p2 n2
q0 #  #  .  .  .  .
q1 .  .  #  #  .  .
q2 .  .  .  .  #  #
>>> draw(candidate_mask(owner, is_positive, [True, True, False], "positives"))
   p0 n0 p1 n1 p2 n2
q0 #  #  #  .  .  .
q1 #  .  #  #  .  .
q2 .  .  .  .  #  #
>>> draw(candidate_mask(owner, is_positive, [True, True, False], "all"))
   p0 n0 p1 n1 p2 n2
q0 #  #  #  #  .  .
q1 #  #  #  #  .  .
q2 .  .  .  .  #  #
>>> names = [{"a"}, {"b"}, {"c"}, {"d"}, {"e"}, {"f"}]
>>> also_right = [{"a", "c"}, {"c"}, {"e"}]
>>> draw(candidate_mask(owner, is_positive, [True, True, False], "all",
...                     document_keys=names, positive_keys=also_right))
   p0 n0 p1 n1 p2 n2
q0 #  #  .  #  .  .
q1 #  #  #  #  .  .
q2 .  .  .  .  #  #
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from embedforge.errors import EmbedforgeError

Keys = Sequence[str | Collection[Hashable]]
"""Per text, the name or names it goes by (its text or a hash of it, its id): one shared name, one text."""


def info_nce(
    queries: Tensor, documents: Tensor, positive: Tensor, candidates: Tensor, temperature: float
) -> Tensor:
    """Return each query's contrastive loss: the cross-entropy of its positive among its candidates.

    With s = q . d / temperature, the loss is -s(positive) + log sum over candidates of exp(s). This is
    the objective of E5-Mistral (equation 1), LLM2Vec and NV-Embed, which differ in their candidates
    only (`candidate_mask`). Vectors are taken as they are: for cosine similarity the caller normalises.

    A query's positive always stands in its denominator, whatever `candidates` says. A query without
    another candidate has loss 0 and zero gradient.

    Args:
        queries: [Q, D], any floating dtype. Similarities are computed in float32, or in float64 for
            float64 vectors, also under autocast: at temperature 0.02 the 3 digits of bfloat16 would be
            an error of 0.2 in the logits.
        documents: [M, D], all positives and negatives of the step.
        positive: int64 [Q], the column of each query's positive.
        candidates: bool [Q, M], True where the document stands in the query's denominator.
        temperature: above 0.

    Returns:
        [Q], float32 or float64.
    """
    dtype = torch.promote_types(torch.promote_types(queries.dtype, documents.dtype), torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.to(dtype) @ documents.to(dtype).T / temperature
    columns = torch.arange(documents.shape[0], device=positive.device)
    in_denominator = candidates | (columns == positive.unsqueeze(1))
    logits = logits.masked_fill(~in_denominator, -torch.inf)
    return functional.cross_entropy(logits, positive, reduction="none")


def candidate_mask(
    owner: npt.ArrayLike,
    is_positive: npt.ArrayLike,
    in_batch_allowed: npt.ArrayLike,
    mode: Literal["none", "positives", "all"],
    *,
    query_keys: Keys | None = None,
    document_keys: Keys | None = None,
    positive_keys: Keys | None = None,
    shard: npt.ArrayLike | None = None,
) -> Tensor:
    """Return which documents stand in which query's denominator.

    Every query has its own positive and its own hard negatives. In-batch candidates come on top, only
    between two rows that both allow them: mode "positives" adds the positives of other rows (E5-Mistral),
    "all" also their hard negatives (LLM2Vec, MultipleNegativesRankingLoss). A row whose source forbids
    in-batch negatives neither uses other rows' documents nor lends its own. The module's docstring draws it.

    False negatives are left out where `document_keys` are given: a document is no negative of a query,
    not even its own hard negative, if it shares a key with the query's positive, with any of its
    `positive_keys`, with a positive of another row that asks the same query, or with the query itself.

    A document that several rows bring stands in several columns and counts once for each, as in the
    published implementations: a text drawn twice weighs twice.

    Args:
        owner: int [M], the row (query) a document belongs to.
        is_positive: bool [M]; every query owns exactly one positive.
        in_batch_allowed: bool [Q].
        mode: which documents of other rows are candidates.
        query_keys: per query, the keys of its own text.
        document_keys: per document, its keys. Without them nothing counts as a false negative.
        positive_keys: per query, the keys of all its known positives, drawn in this step or not.
        shard: int [Q]; where given, in-batch candidates come from rows with the same number only (the
            ranks of a distributed run that does not share negatives).

    Returns:
        bool [Q, M], on the CPU. The query's own positive is always True.

    Raises:
        EmbedforgeError: unknown mode, lengths that do not fit, or a query without exactly one positive.
    """
    allowed = np.asarray(in_batch_allowed, dtype=bool)
    owners = np.asarray(owner, dtype=np.int64)
    positives = np.asarray(is_positive, dtype=bool)
    _check(owners, positives, len(allowed), mode)
    own = owners == np.arange(len(allowed))[:, None]
    own_positive = own & positives

    others = allowed[:, None] & allowed[owners] & ~own
    if shard is not None:
        shards = np.asarray(shard)
        others &= shards[:, None] == shards[owners]
    if mode == "none":
        others[:] = False
    elif mode == "positives":
        others &= positives

    negatives = (own & ~own_positive) | others
    if document_keys is not None:
        right = _answers(own_positive.argmax(1), document_keys, query_keys, positive_keys)
        negatives &= ~_shares_key(right, document_keys)
    return torch.from_numpy(own_positive | negatives)


def _answers(
    positive: npt.NDArray[np.int64], documents: Keys, queries: Keys | None, positives: Keys | None
) -> list[set[Hashable]]:
    """Per query, the keys of the texts that are no negatives of it."""
    answers = [_names(documents[column]) for column in positive]
    if positives is not None:
        answers = [known | _names(keys) for known, keys in zip(answers, positives, strict=True)]
    if queries is None:
        return answers
    names = [_names(keys) for keys in queries]
    by_query: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
    for known, query in zip(answers, names, strict=True):
        for name in query:
            by_query[name] |= known
    return [
        known.union(query, *(by_query[name] for name in query))
        for known, query in zip(answers, names, strict=True)
    ]


def _shares_key(sets: Sequence[set[Hashable]], documents: Keys) -> npt.NDArray[np.bool_]:
    """Bool [sets, documents]: True where the document has one of the set's keys."""
    columns: defaultdict[Hashable, list[int]] = defaultdict(list)
    for column, keys in enumerate(documents):
        for name in _names(keys):
            columns[name].append(column)
    shared = np.zeros((len(sets), len(documents)), dtype=bool)
    for row, names in enumerate(sets):
        for name in names:
            shared[row, columns.get(name, [])] = True
    return shared


def _names(keys: str | Collection[Hashable]) -> set[Hashable]:
    return {keys} if isinstance(keys, str) else set(keys)


def _check(owners: npt.NDArray[np.int64], positives: npt.NDArray[np.bool_], queries: int, mode: str) -> None:
    if mode not in ("none", "positives", "all"):
        raise EmbedforgeError(f"in-batch mode '{mode}': it is 'none', 'positives' or 'all'")
    if owners.shape != positives.shape or owners.ndim != 1:
        raise EmbedforgeError(
            f"owner and is_positive name the same documents, got shapes {owners.shape} and {positives.shape}"
        )
    if owners.size and not 0 <= owners.min() <= owners.max() < queries:
        raise EmbedforgeError(f"owner {owners.min()}..{owners.max()}: there are {queries} queries")
    counts = np.bincount(owners[positives], minlength=queries)
    if (counts != 1).any():
        query = int((counts != 1).argmax())
        raise EmbedforgeError(
            f"query {query} has {counts[query]} positives in this step; every query needs one"
        )
