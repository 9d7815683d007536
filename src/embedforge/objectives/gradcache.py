"""GradCache: the gradient of a loss over all embeddings of a step, in the memory of one micro-batch.

A contrastive loss couples every text of a step to every other, so the step cannot simply be cut into
pieces whose gradients add up. Its gradient can be computed in two passes (Gao et al. 2021, "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup"): embed all texts without a graph, take the
gradient of the loss with respect to the embeddings alone, then embed each micro-batch again and
back-propagate its rows of that gradient. The result is the plain gradient, for every size of micro-batch
and every number of ranks; random numbers (dropout) are replayed so that both passes see one model.

Over ranks the texts of a step are shared out in any way. Every rank sees all embeddings and computes the
same loss, and keeps the gradient of its own rows: the ranks' parameter gradients add up to the plain one.
DDP and FSDP average them instead, so each rank's part is multiplied by the number of ranks.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from embedforge.errors import EmbedforgeError
from embedforge.runtime import empty_cache, halved_budget, out_of_memory

TokenBatch = dict[str, Tensor]
T = TypeVar("T")
logger = logging.getLogger(__name__)


def backward(
    embed: Callable[[TokenBatch], Tensor],
    batches: Sequence[TokenBatch],
    rows: Sequence[Sequence[int]],
    loss: Callable[[Tensor], Tensor],
    *,
    scale: float = 1.0,
    accumulate: Callable[[Tensor], object] = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    filler: TokenBatch | None = None,
    one_pass: bool = False,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of `loss(all embeddings of the step)` to the parameters behind `embed`.

    Where `torch.distributed` is initialised, every rank calls this with its own texts, and `embed` goes
    through the DDP or FSDP wrapper. All ranks make the same number of calls of `embed`, whatever their
    share, so that collectives inside a forward cannot dead-lock. With one micro-batch per rank the texts
    are embedded once, as in plain training.

    Args:
        embed: a token batch of n texts to their embeddings [n, D]. It enters autocast by itself.
        batches: this rank's micro-batches; none on a rank without texts.
        rows: per micro-batch, the rows of its texts in the step's matrix. Over all ranks they are
            0..N-1, each once.
        loss: all embeddings [N, D], float32 (float64 where `embed` gives float64), to a scalar. It gets a
            leaf and may not touch parameters. It is called on every rank and must give the same there.
        scale: factor of the gradient.
        accumulate: back-propagates a scalar, for example `accelerator.backward`.
        no_sync: context for all micro-batches of the second pass but the last, for example the wrapper's
            `no_sync`. FSDP holds whole gradients inside it: leave it out where memory is scarce.
        filler: a small batch that a rank embeds, with gradient zero, when it has fewer micro-batches than
            others; by default a text of its own. A rank without texts must be given one.
        one_pass: hold the graphs of all micro-batches instead of embedding twice: plain training, a third
            faster, in the memory of the whole step. On several ranks it has no effect, since DDP expects
            one backward pass a forward pass.

    Returns:
        The loss and all embeddings [N, D], both detached. Not-a-number is passed through.

    Raises:
        MemoryError: a rank ran out of memory, and all ranks raise it; on one rank, also the device's own
            error. Gradients are then incomplete; `backward_with_retry` takes it from there.
        EmbedforgeError: rows that do not fit, a rank without texts and filler, or a rank out of memory
            while it exchanges gradients with the others.
    """
    ranks = _every_rank([list(own) for own in rows])
    texts = _count_rows(ranks)
    own = [row for batch in rows for row in batch]
    calls = max(len(of_rank) for of_rank in ranks)
    work = [*zip(batches, map(len, rows), strict=True)]
    work = [(_filler(batches, filler), 0)] * (calls - len(work)) + work

    held = calls == 1 or (one_pass and len(ranks) == 1)
    states, parts = [], []
    with _all_or_none(), torch.set_grad_enabled(held):
        for batch, count in work:
            states.append(_random_state())
            parts.append(_widen(embed(batch))[:count])
    embeddings = _gather(torch.cat([part.detach() for part in parts]), own, texts)
    with _all_or_none():
        value, gradient = _gradient(loss, embeddings)
    shares = (gradient[own] * (scale * len(ranks))).split([count for _, count in work])
    if held:
        with _no_way_back():
            accumulate(
                torch.stack([(part * share).sum() for part, share in zip(parts, shares, strict=True)]).sum()
            )
    else:
        replays = [
            functools.partial(_replay, embed, batch, share, state, accumulate)
            for (batch, _), share, state in zip(work, shares, states, strict=True)
        ]
        _second_pass(replays, no_sync)
    return value, embeddings


def backward_with_retry(
    step: Callable[[int], T], budget: int, *, longest: int, zero_grad: Callable[[], object]
) -> tuple[T, int]:
    """Run `step(tokens_per_micro_batch)`; out of memory, halve the budget and repeat the same step.

    The repetition starts from the same random state and without the gradients of the failed attempt, so
    its result is that of a run that had the smaller budget from the start. Under DDP all ranks repeat
    together; under FSDP, whose ranks wait for each other inside every forward, one that runs out of
    memory there leaves the others to their time-out.

    Args:
        step: makes the micro-batches for a budget and calls `backward`.
        budget: tokens per micro-batch to begin with.
        longest: tokens of the step's longest text, over all ranks. It stands alone at a budget of its own
            length, so that a smaller one cannot save memory.
        zero_grad: clears the gradients of all parameters that `step` adds to.

    Returns:
        What `step` returned, and the budget that worked: the one to begin with at the next step.

    Raises:
        EmbedforgeError: the longest text alone does not fit in memory.
    """
    state = _random_state()
    while True:
        try:
            return step(budget), budget
        except Exception as error:  # the class differs by device and by version of torch
            smaller = halved_budget(
                error,
                budget,
                longest,
                "lower the stage's query_max_tokens and document_max_tokens, its batch_queries or its "
                "negatives, or set training.gradient_checkpointing",
            )
        # Outside the except block: the exception's traceback would keep the failed graph alive.
        logger.warning(
            "out of memory with %d tokens per micro-batch; repeating the step with %d", budget, smaller
        )
        budget = smaller
        zero_grad()
        empty_cache()
        _set_random_state(state)


def _gradient(loss: Callable[[Tensor], Tensor], embeddings: Tensor) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def _second_pass(
    replays: Sequence[Callable[[], None]], no_sync: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Run all replays, the last one with the exchange of gradients; leave the random state as it was."""
    after = _random_state()
    torch.clear_autocast_cache()  # some torch reuse, within one autocast, weights cast without a graph
    try:
        with _all_or_none(), no_sync():
            for replay in replays[:-1]:
                replay()
        with _no_way_back():
            replays[-1]()
    finally:
        _set_random_state(after)


def _replay(
    embed: Callable[[TokenBatch], Tensor],
    batch: TokenBatch,
    gradient: Tensor,
    state: list[Tensor],
    accumulate: Callable[[Tensor], object],
) -> None:
    """Embed once more, with a graph and the random numbers of the first pass, and back-propagate.

    A filler has no rows of the gradient: its empty sum is zero, but connected to the parameters.
    """
    _set_random_state(state)
    with torch.enable_grad():
        surrogate = (_widen(embed(batch))[: len(gradient)] * gradient).sum()
    accumulate(surrogate)


def _widen(embeddings: Tensor) -> Tensor:
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def _filler(batches: Sequence[TokenBatch], filler: TokenBatch | None) -> TokenBatch:
    if filler is None:
        if not batches:
            raise EmbedforgeError(
                "a rank without texts needs a filler to take part in the step; "
                "use at least as many texts a step as there are ranks"
            )
        filler = {name: values[:1] for name, values in batches[-1].items()}
    return filler


def _count_rows(ranks: list[list[list[int]]]) -> int:
    """Return the number of texts in the step, after checking that every row has one owner."""
    rows = sorted(row for of_rank in ranks for batch in of_rank for row in batch)
    if not rows or rows != list(range(len(rows))):
        raise EmbedforgeError(f"the rows of a step's micro-batches are 0..N-1, each once; got {rows!s:.200}")
    return len(rows)


def _every_rank(value: T) -> list[T]:
    """Return every rank's `value`."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _gather(embeddings: Tensor, rows: list[int], texts: int) -> Tensor:
    """Return all ranks' embeddings [N, D] in the order of the step; a sum with zeros moves no bit."""
    everything = embeddings.new_zeros(texts, embeddings.shape[1])
    everything[rows] = embeddings
    if dist.is_initialized():
        dist.all_reduce(everything)
    return everything


@contextlib.contextmanager
def _all_or_none() -> Iterator[None]:
    """Raise MemoryError on every rank where one of them ran out of memory, so that all repeat the step."""
    failure = None
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        failure = error
    if any(_every_rank(failure is not None)):
        raise MemoryError("out of memory, on this rank or another") from failure


@contextlib.contextmanager
def _no_way_back() -> Iterator[None]:
    """Where ranks exchange gradients, one that runs out of memory cannot call the others back."""
    try:
        yield
    except Exception as error:
        if dist.is_initialized() and out_of_memory(error):
            raise EmbedforgeError(
                "out of memory while ranks exchanged gradients, where the step cannot be repeated: "
                "lower the stage's tokens_per_micro_batch"
            ) from error
        raise


def _random_state() -> list[Tensor]:
    """Random state of the CPU and, once it is in use, of the current CUDA device."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
