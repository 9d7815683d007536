from __future__ import annotations

import contextlib
import copy
import itertools
import logging

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, GPT2Model

from embedforge.errors import EmbedforgeError
from embedforge.objectives import gradcache
from embedforge.objectives.contrastive import candidate_mask, info_nce
from embedforge.objectives.gradcache import backward, backward_with_retry
from embedforge.text.batching import micro_batches

QUERIES, TEXTS = 4, 12


class Embedder(torch.nn.Module):
    """A tiny decoder and mean pooling; the dropout is the decoder's own and one before the pool.

    GPT-2, for it computes in float64 throughout: RMSNorm and rotary positions of the families after it go
    through float32, whose sums depend on the shape of a batch where the processor has no AVX-512.
    """

    def __init__(self, dropout=0.0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=64,
            n_positions=64,
            n_embd=32,
            n_inner=48,
            n_layer=2,
            n_head=4,
            attn_pdrop=dropout,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
        self.decoder = GPT2Model(config).to(dtype)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, input_ids, attention_mask, pooling_mask):
        states = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        weights = pooling_mask.unsqueeze(-1).to(states.dtype)
        return torch.nn.functional.normalize((self.dropout(states) * weights).sum(1) / weights.sum(1), dim=-1)


def make_texts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 64, (3 + 2 * i % 11,), generator=generator) for i in range(TEXTS)]


def pad(texts):
    width = max(map(len, texts))
    ids = torch.stack([torch.nn.functional.pad(text, (0, width - len(text))) for text in texts])
    mask = torch.stack([(torch.arange(width) < len(text)).long() for text in texts])
    return {"input_ids": ids, "attention_mask": mask, "pooling_mask": mask}


def loss(embeddings):
    queries, documents = embeddings[:QUERIES], embeddings[QUERIES:]
    owner = [0, 0, 1, 1, 2, 2, 3, 3]
    mask = candidate_mask(owner, [True, False] * QUERIES, [True, True, True, False], "all")
    return info_nce(queries, documents, torch.arange(0, 8, 2), mask, 0.05).mean()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def plain(model):
    """The gradient as everyone understands it: one batch, one backward."""
    value = loss(model(**pad(make_texts())))
    value.backward()
    expected = gradients(model)
    model.zero_grad()
    return value.detach(), expected


def cut(budget, rows=range(TEXTS)):
    """Micro-batches of the texts `rows` and their rows in the step."""
    texts = [make_texts()[row] for row in rows]
    cuts = micro_batches([len(text) for text in texts], budget)
    return [pad([texts[i] for i in batch]) for batch in cuts], [[rows[i] for i in batch] for batch in cuts]


def assert_equal_gradients(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("budget", [1, 13, 26, 40, 80, 1000])
def test_gradient_is_the_plain_one_for_every_budget(budget):
    model = Embedder()
    value, expected = plain(model)
    batches, rows = cut(budget)
    found, embeddings = backward(lambda batch: model(**batch), batches, rows, loss)
    assert_equal_gradients(gradients(model), expected)
    torch.testing.assert_close(found, value, rtol=0, atol=1e-12)
    assert not found.requires_grad
    assert not embeddings.requires_grad
    torch.testing.assert_close(loss(embeddings), value, rtol=0, atol=1e-12)


def test_dropout_is_replayed():
    """Both passes draw the same masks: the gradient is that of one graph over all micro-batches."""
    model = Embedder(dropout=0.3)
    batches, rows = cut(26)
    assert len(batches) > 2
    torch.manual_seed(7)
    everything = torch.cat([model(**batch) for batch in batches])
    everything = everything[torch.tensor([*itertools.chain(*rows)]).argsort()]
    loss(everything).backward()
    expected, after = gradients(model), torch.get_rng_state()
    model.zero_grad()
    torch.manual_seed(7)
    backward(lambda batch: model(**batch), batches, rows, loss)
    assert_equal_gradients(gradients(model), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_scale_and_accumulate():
    model = Embedder()
    _, expected = plain(model)
    batches, rows = cut(26)
    seen = []

    def accumulate(surrogate):
        seen.append(surrogate)
        surrogate.backward()

    backward(lambda batch: model(**batch), batches, rows, loss, scale=0.5, accumulate=accumulate)
    assert_equal_gradients(gradients(model), {name: grad / 2 for name, grad in expected.items()})
    assert len(seen) == len(batches)


def test_gradients_add_to_those_already_there():
    model = Embedder()
    _, expected = plain(model)
    batches, rows = cut(26)
    for _ in range(2):
        backward(lambda batch: model(**batch), batches, rows, loss)
    assert_equal_gradients(gradients(model), {name: grad * 2 for name, grad in expected.items()}, 1e-11)


@pytest.mark.parametrize("around", [False, True])
def test_under_autocast_the_loss_sees_float32(around):
    """Also with one autocast around everything, whose cache of cast weights must not lose the graph."""
    model = Embedder(dtype=torch.float32)
    _, expected = plain(model)
    seen = []

    def watched(embeddings):
        seen.append(embeddings.dtype)
        return loss(embeddings)

    def autocast(enabled):
        return torch.autocast("cpu", torch.bfloat16) if enabled else contextlib.nullcontext()

    def embed(batch):
        with autocast(not around):
            return model(**batch)

    with autocast(around):
        backward(embed, *cut(26), watched)
    assert seen == [torch.float32]
    for name, gradient in gradients(model).items():
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.97, name


def test_nan_is_passed_through():
    model = Embedder()
    value, _ = backward(lambda batch: model(**batch), *cut(26), lambda all_: loss(all_) * torch.nan)
    assert value.isnan()
    assert all(gradient.isnan().any() for name, gradient in gradients(model).items() if "proj" in name)


@pytest.mark.parametrize("rows", [[0, 0], [1, 2], [0, 2]])
def test_rows_that_do_not_fit(rows):
    with pytest.raises(EmbedforgeError, match="each once"):
        backward(lambda batch: Embedder()(**batch), [pad(make_texts()[:2])], [rows], loss)


def test_a_step_without_texts():
    with pytest.raises(EmbedforgeError, match="each once"):
        backward(lambda batch: Embedder()(**batch), [], [], loss)


# Micro-batches


@given(st.lists(st.integers(1, 600), max_size=200), st.integers(1, 20_000))
def test_micro_batches_keep_the_budget(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, width in zip(batches, longest, strict=True):
        assert len(batch) * width <= budget or len(batch) == 1


@pytest.mark.parametrize("queries", [32, 128])
@pytest.mark.parametrize("cap", [256, 512])
@pytest.mark.parametrize("budget", [4096, 8192, 16_384])
def test_little_padding_at_realistic_lengths(queries, cap, budget):
    """Short queries, and seven negatives and a positive each of skewed length, cut at the token limit."""
    random = np.random.default_rng(0)
    short = random.lognormal(np.log(40), 0.4, queries).clip(8, 128)
    long = random.lognormal(np.log(130), 0.7, 8 * queries).clip(10, cap)
    lengths = np.concatenate([short, long]).astype(int).tolist()
    batches = micro_batches(lengths, budget)
    computed = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert sum(lengths) / computed > 0.85
    assert len(batches) < sum(lengths) / budget * 1.2 + 6


# Out of memory


def retry(model, budget, limit, *, fail_in_second_pass=False):
    """Run a step with an embed that fails above `limit` tokens; return what worked and the budgets tried."""
    tried = []

    def step(tokens):
        tried.append(tokens)

        def embed(batch):
            torch.rand(1)  # an attempt uses up random numbers
            second = torch.is_grad_enabled()
            if batch["input_ids"].numel() > limit and (second or not fail_in_second_pass):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return model(**batch)

        return backward(embed, *cut(tokens), loss)

    longest = max(map(len, make_texts()))
    return backward_with_retry(step, budget, longest=longest, zero_grad=model.zero_grad), tried


@pytest.mark.parametrize("fail_in_second_pass", [False, True])
def test_out_of_memory_halves_the_budget_and_repeats_the_step(caplog, fail_in_second_pass):
    model = Embedder(dropout=0.2)
    torch.manual_seed(3)
    (_, budget), _ = retry(model, 26, limit=1000)
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    with caplog.at_level(logging.WARNING):
        (_, budget), tried = retry(model, 104, limit=26, fail_in_second_pass=fail_in_second_pass)
    assert (budget, tried) == (26, [104, 52, 26])
    assert_equal_gradients(gradients(model), expected, 0)
    assert "repeating the step with 26" in caplog.text


def test_out_of_memory_with_one_text_says_what_to_lower():
    with pytest.raises(EmbedforgeError, match="document_max_tokens"):
        retry(Embedder(), 104, limit=3)


def test_other_errors_are_not_retried():
    def step(budget):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        backward_with_retry(step, 8, longest=1, zero_grad=lambda: None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("HIP out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_memory(error, expected):
    assert gradcache.out_of_memory(error) is expected


# Ranks

PARTITIONS = {
    "even": ([0, 3, 4, 7, 8, 11], [1, 2, 5, 6, 9, 10]),
    "uneven": ([0], [*range(1, TEXTS)]),
    "one rank without texts": ([*range(TEXTS)], []),
}


def rank_main(rank, rendezvous, results):
    """Every case on this rank; rank 0 stores the gradients, to be compared with those of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model = DistributedDataParallel(Embedder())
    found = {}
    for name, partition in PARTITIONS.items():
        for budget in (26, 1000):
            model.zero_grad()
            batches, rows = cut(budget, partition[rank])
            filler = pad(make_texts()[:1])
            value, _ = backward(
                lambda batch: model(**batch), batches, rows, loss, no_sync=model.no_sync, filler=filler
            )
            found[name, budget] = value, copy.deepcopy(gradients(model.module))
    found["out of memory"] = ranks_out_of_memory(model, rank)
    found["sharded"] = sharded_parameters(rank)
    torch.save(found, f"{results}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


def ranks_out_of_memory(model, rank):
    """Rank 1 alone runs out of memory, in the second pass; both repeat the step."""

    def step(tokens):
        def embed(batch):
            if rank == 1 and torch.is_grad_enabled() and batch["input_ids"].numel() > 26:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(**batch)

        return backward(embed, *cut(tokens, PARTITIONS["even"][rank]), loss, no_sync=model.no_sync)

    model.zero_grad()
    (value, _), budget = backward_with_retry(step, 52, longest=13, zero_grad=model.zero_grad)
    assert budget == 26
    return value, copy.deepcopy(gradients(model.module))


def sharded_parameters(rank):
    """FSDP, whose every forward is a collective: ranks with one and with several micro-batches."""
    model = Embedder()
    mesh = init_device_mesh("cpu", (2,))
    for part in (*model.decoder.h, model):
        fully_shard(part, mesh=mesh)
    value, _ = backward(lambda batch: model(**batch), *cut(26, PARTITIONS["uneven"][rank]), loss)
    return value, {name: gradient.full_tensor() for name, gradient in gradients(model).items()}


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, (str(folder / "rendezvous"), str(folder / "results")), nprocs=2)
    return [torch.load(folder / f"results.{rank}", weights_only=True) for rank in range(2)]


RANK_CASES = [*itertools.product(PARTITIONS, (26, 1000)), "out of memory", "sharded"]


@pytest.mark.parametrize("case", RANK_CASES, ids=str)
def test_gradient_is_the_plain_one_on_two_ranks(by_rank, case):
    value, expected = plain(Embedder())
    for found in by_rank:
        rank_value, rank_gradients = found[case]
        torch.testing.assert_close(rank_value, value, rtol=0, atol=1e-12)
        assert_equal_gradients(rank_gradients, expected)
