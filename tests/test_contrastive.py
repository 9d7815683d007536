from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from embedforge.errors import EmbedforgeError
from embedforge.objectives.contrastive import candidate_mask, info_nce

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "infonce_golden.json").read_text())["cases"]
MODES = {
    "no_inbatch": "none",
    "inbatch_pos": "positives",
    "inbatch_pos_own_neg": "positives",
    "inbatch_pos_all_neg": "all",
}


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "infonce_golden.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_goldens(golden, name):
    case = CASES[name]
    inputs = [golden[f"{case['set']}.{part}"].clone() for part in "qpn"]
    if case["sim"] == "dot":
        inputs = [torch.nn.functional.normalize(x, dim=-1) for x in inputs]
    leaves = q, p, n = [x.requires_grad_() for x in inputs]
    with_negatives = case["variant"] != "inbatch_pos"
    rows = len(q)
    documents = torch.cat([p, n.flatten(0, 1)]) if with_negatives else p
    owner = np.concatenate([np.arange(rows), np.repeat(np.arange(rows), n.shape[1])])[: len(documents)]
    mask = candidate_mask(owner, np.arange(len(documents)) < rows, [True] * rows, MODES[case["variant"]])
    if case["sim"] == "cos":
        q, documents = (torch.nn.functional.normalize(x, dim=-1) for x in (q, documents))

    per_query = info_nce(q, documents, torch.arange(rows), mask, case["temperature"])
    per_query.mean().backward()

    torch.testing.assert_close(per_query, golden[f"{name}.per_query"], rtol=0, atol=1e-12)
    assert per_query.mean().item() == pytest.approx(case["loss"], abs=1e-12)
    for leaf, part in zip(leaves, "qpn", strict=True):
        grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(grad, golden[f"{name}.grad_{part}"], rtol=0, atol=1e-11)


def test_positive_is_always_in_the_denominator_and_alone_costs_nothing():
    q, d = torch.randn(2, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    loss = info_nce(q, d, torch.tensor([0, 2]), torch.zeros(2, 3, dtype=torch.bool), 0.01)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert not q.grad.any()
    assert not d.grad.any()


def test_extreme_logits_stay_finite():
    q = torch.tensor([[1.0, 0.0]], requires_grad=True)
    d = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    loss = info_nce(q, d, torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool), 1e-4)
    loss.sum().backward()
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(q.grad).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_vectors_are_compared_in_float32(autocast):
    q, d = torch.randn(4, 64).bfloat16(), torch.randn(9, 64).bfloat16()
    mask = torch.ones(4, 9, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        low = info_nce(q, d, torch.arange(4), mask, 0.02)
    assert low.dtype == torch.float32
    exact = info_nce(q.double(), d.double(), torch.arange(4), mask, 0.02)
    torch.testing.assert_close(low.double(), exact, rtol=1e-6, atol=1e-4)


OWNER = [0, 0, 1, 1, 2, 2]
POSITIVE = [True, False] * 3


def test_shards_do_not_share_candidates():
    mask = candidate_mask(OWNER, POSITIVE, [True] * 3, "all", shard=[0, 0, 1])
    assert mask.int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def candidates(**keys):
    names = ["p0", "n0", "p1", "n1", "p2", "n2"]
    mask = candidate_mask(OWNER, POSITIVE, [True] * 3, "all", **({"document_keys": names} | keys))
    return ["".join(row) for row in np.where(mask.numpy(), "#", ".")]


def test_false_negatives():
    assert candidates() == ["######"] * 3
    # A known positive that was not drawn for query 0 arrives as a negative of row 2.
    assert candidates(positive_keys=[["p0", "n2"], ["p1"], ["p2"]]) == ["#####.", "######", "######"]
    # The query's own hard negative is one of its positives.
    assert candidates(positive_keys=[["n0"], [], []]) == ["#.####", "######", "######"]
    # Rows 0 and 1 have the same positive (same id, other text).
    same = [("text a", "id7"), ("n0",), ("text b", "id7"), ("n1",), ("p2",), ("n2",)]
    assert candidates(document_keys=same) == ["##.###", ".#####", "######"]
    # A document is the query's own text; a positive equal to the query (SimCSE) stays.
    assert candidates(query_keys=["n2", "p1", "q"]) == ["#####.", "######", "######"]
    # Rows 0 and 1 ask the same query: neither's positive is the other's negative.
    assert candidates(query_keys=[["q"], ["q"], ["r"]]) == ["##.###", ".#####", "######"]


def test_a_repeated_negative_keeps_its_columns():
    twice = ["p0", "n", "p1", "n", "p2", "n2"]
    assert candidates(document_keys=twice) == ["######"] * 3


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_mask_against_the_rule_written_as_loops(data):
    rows = data.draw(st.integers(1, 5))
    counts = data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    owner = [q for q, n in enumerate(counts) for _ in range(n + 1)]
    positive = [i == 0 for n in counts for i in range(n + 1)]
    allowed = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    shard = data.draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    mode = data.draw(st.sampled_from(["none", "positives", "all"]))
    keys = [{data.draw(st.integers(0, 6))} for _ in owner]
    known = [{data.draw(st.integers(0, 6))} for _ in range(rows)]
    mask = candidate_mask(
        owner, positive, allowed, mode, document_keys=keys, positive_keys=known, shard=shard
    )
    for q in range(rows):
        own_keys = next(k for k, o, p in zip(keys, owner, positive, strict=True) if o == q and p)
        for m, o in enumerate(owner):
            in_batch = allowed[q] and allowed[o] and shard[q] == shard[o] and mode != "none"
            in_batch = in_batch and (positive[m] or mode == "all")
            false_negative = bool(keys[m] & (own_keys | known[q]))
            expected = (o == q and positive[m]) or ((o == q or in_batch) and not false_negative)
            assert bool(mask[q, m]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((OWNER, POSITIVE, [True] * 3, "some"), "mode 'some'"),
        ((OWNER, [True] * 6, [True] * 3, "all"), "query 0 has 2 positives"),
        ((OWNER, [False] * 6, [True] * 3, "all"), "query 0 has 0 positives"),
        ((OWNER, POSITIVE, [True] * 2, "all"), "there are 2 queries"),
        ((OWNER, POSITIVE[:-1], [True] * 3, "all"), "shapes"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(EmbedforgeError, match=message):
        candidate_mask(*arguments)
