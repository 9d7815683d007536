from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.mine import KeepRule
from embedforge.mine.candidates import NOTHING, fuse
from embedforge.mine.corpus import Passage, build_corpus
from embedforge.mine.keep import choose, keep
from embedforge.mine.pipeline import Selection, mined_examples
from mining_for_tests import mine_documents

SCORE = st.floats(-1, 1, width=32)
SCORES = st.lists(SCORE, min_size=1, max_size=20).map(lambda values: np.array(sorted(values, reverse=True)))
POSITIVE_AWARE = st.sampled_from([KeepRule("margin"), KeepRule("percentage"), KeepRule("percentage", 0.5)])


# --- the rules ---------------------------------------------------------------------------------------


def test_the_rules_on_the_papers_example():
    scores = np.array([0.9, 0.77, 0.75, 0.69, 0.1])
    positive = 0.8
    assert keep(KeepRule("top_k"), scores, positive).tolist() == [True] * 5
    assert keep(KeepRule("shifted", 2), scores, positive).tolist() == [False, False, True, True, True]
    assert keep(KeepRule("absolute"), scores, positive).tolist() == [False, False, False, True, True]
    assert keep(KeepRule("margin", 0.04), scores, positive).tolist() == [False, False, True, True, True]
    assert keep(KeepRule("percentage"), scores, positive).tolist() == [False, False, True, True, True]


@given(POSITIVE_AWARE, SCORES, SCORE)
def test_nothing_at_or_above_the_positive_survives_whatever_its_sign(rule, scores, positive):
    kept = scores[keep(rule, scores, positive)]
    assert (kept < positive).all()


@given(SCORES, st.floats(0.01, 1))
def test_percentage_is_the_papers_product_for_positive_scores(scores, positive):
    limit = positive - (1 - 0.95) * abs(positive)
    assert limit == pytest.approx(0.95 * positive)
    np.testing.assert_array_equal(keep(KeepRule("percentage"), scores, positive), scores < limit)


@given(POSITIVE_AWARE, SCORES, SCORE, SCORE)
def test_a_better_positive_never_loses_a_survivor(rule, scores, one, other):
    low, high = sorted([one, other])
    assert (keep(rule, scores, low) <= keep(rule, scores, high)).all()


@given(st.integers(0, 12), st.integers(1, 12))
def test_shifted_counts_ranks_from_one_with_ties(shift, count):
    assert keep(KeepRule("shifted", shift), np.zeros(count), 0.0).sum() == max(0, count - shift)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "percent"},
        {"kind": "shifted", "value": -1},
        {"value": float("nan")},
        {"value": 95},
        {"value": -0.1},
        {"kind": "margin", "value": -0.05},
        {"sample_from": 0},
        {"keep_first": True},
        {"kind": "top_k", "value": 0.5},
    ],
)
def test_a_rule_without_sense_is_refused(arguments):
    with pytest.raises(EmbedforgeError):
        KeepRule(**arguments)


# --- choosing ----------------------------------------------------------------------------------------


def test_the_best_are_chosen_without_sampling():
    assert choose(KeepRule(), np.array([0.5, 0.4, 0.3]), 2, np.random.default_rng(0)).tolist() == [0, 1]


@given(st.integers(0, 30), st.integers(0, 8), st.integers(1, 12), st.booleans(), st.integers(0, 99))
def test_a_draw_stays_in_its_pool_without_repeats(survivors, n, pool, first, seed):
    rule = KeepRule(sample_from=pool, keep_first=first)
    chosen = choose(rule, np.linspace(1, 0, survivors), n, np.random.default_rng(seed)).tolist()
    assert len(set(chosen)) == len(chosen) == min(n, pool, survivors)
    assert chosen == sorted(chosen)
    assert all(place < min(pool, survivors) for place in chosen)
    assert not first or not chosen or chosen[0] == 0


def test_draws_follow_the_softmax_of_the_scores():
    scores = np.log([0.6, 0.3, 0.1])
    random = np.random.default_rng(0)
    counts = np.bincount(
        [choose(KeepRule(sample_from=3), scores, 1, random)[0] for _ in range(4000)], minlength=3
    )
    np.testing.assert_allclose(counts / 4000, [0.6, 0.3, 0.1], atol=0.03)


# --- candidates --------------------------------------------------------------------------------------


def test_fusion_prefers_agreement_and_keeps_every_document_once():
    one = np.array([[4, 2, 7, NOTHING]])
    two = np.array([[5, 2, NOTHING]])
    assert fuse([one, two]).tolist() == [[2, 4, 5, 7]]
    assert fuse([one]).tolist() == [[4, 2, 7]]
    assert fuse([np.array([[NOTHING, NOTHING], [3, NOTHING]])]).tolist() == [[NOTHING], [3]]


# --- mining ------------------------------------------------------------------------------------------

DOCUMENTS = {
    "p": "The answer",
    "same": "the  ANSWER",  # the positive again, in another layout
    "other": "Another answer to the question",
    "near": "nearly an answer",
    "far": "something else",
    "far2": "Something  else",
    "query": "What is asked?",
}
COSINES = [0.9, 0.9, 0.88, 0.8, 0.5, 0.5, 1.0]
EXAMPLE = Example(query="what is asked?", positives=("The answer",), positive_ids=("p",))


def on_circle(cosines: list[float]) -> np.ndarray:
    angles = np.arccos(cosines)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def mined(
    *examples: Example, cosines: Sequence[float] = COSINES, bm25: bool = False, **changes
) -> list[Example]:
    queries = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (len(examples), 1))
    selection = Selection(**changes)
    return mine_documents(examples, DOCUMENTS, selection, vectors=(queries, on_circle(cosines)), bm25=bm25)


def test_false_negatives_never_become_negatives():
    (result,) = mined(EXAMPLE)
    # The query itself, the positive and its copy are excluded; "other" is above 95 % of the positive.
    assert result.negative_ids == ("near", "far")
    assert result.negatives == ("nearly an answer", "something else")
    assert replace(result, negatives=(), negative_ids=()) == EXAMPLE


def test_positives_of_the_same_query_in_another_example_are_barred():
    second = Example(query="What is  asked?", positives=("nearly an answer",))
    first, _ = mined(EXAMPLE, second, rule=KeepRule("top_k"))
    assert first.negative_ids == ("other", "far")


def test_the_weakest_positive_sets_the_limit():
    example = Example(query="q", positives=("The answer", "something else"))
    assert mined(example)[0].negatives == ()


def test_own_negatives_stay_and_are_not_repeated():
    with_ids = replace(EXAMPLE, negatives=("nearly an  Answer",), negative_ids=("near",))
    assert mined(with_ids)[0].negative_ids == ("near", "far")
    without_ids = replace(EXAMPLE, negatives=("nearly an answer",))
    (result,) = mined(without_ids)
    assert result.negatives == ("nearly an answer", "something else")
    assert result.negative_ids == ()


def test_the_number_of_negatives_is_a_limit():
    assert mined(EXAMPLE, n_negatives=1)[0].negative_ids == ("near",)


def test_the_teacher_judges_lexical_candidates():
    asks = replace(EXAMPLE, query="another answer something")
    assert "other" in mined(asks, bm25=True, rule=KeepRule("top_k"))[0].negative_ids
    assert "other" not in mined(asks, bm25=True)[0].negative_ids


def test_bm25_alone_judges_by_its_own_scores():
    documents = {"p": "red apple pie", "n": "red car", "x": "blue sky"}
    example = Example(query="red apple pie", positives=("red apple pie.",), positive_ids=("p",))
    (result,) = mine_documents([example], documents, Selection(), bm25=True)
    assert result.negative_ids == ("n",)


def test_negative_scores_are_mined_too():
    cosines = [-0.5, -0.5, -0.51, -0.6, -0.9, -0.9, -1.0]
    assert mined(EXAMPLE, cosines=cosines)[0].negative_ids == ("near", "far")


@pytest.mark.parametrize(
    "copy",
    [
        unicodedata.normalize("NFD", "Crème brûlée is a naïve dessert"),
        "CRÈME  brûlée is a\nnaïve dessert",
        unicodedata.normalize("NFD", "CRÈME BRÛLÉE is a naïve dessert"),
    ],
)
@pytest.mark.parametrize("by_vectors", [True, False])
def test_a_copy_of_the_positive_is_no_negative_however_it_is_encoded(copy: str, by_vectors: bool):
    positive = unicodedata.normalize("NFC", "Crème brûlée is a naïve dessert")
    documents = {"p": positive, "copy": copy, "n": "Rust is a dessert of iron"}
    example = Example("what is a dessert", (positive,), positive_ids=("p",))
    vectors = (np.array([[1.0, 0.0]]), on_circle([0.9, 0.8, 0.5])) if by_vectors else None
    selection = Selection(rule=KeepRule("top_k"))
    (found,) = mine_documents([example], documents, selection, vectors=vectors, bm25=not by_vectors)
    assert found.negative_ids == ("n",)


def test_draws_depend_on_the_seed():
    vectors = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    documents = {str(row): f"text {row}" for row in range(40)}
    examples = [Example(query=f"q{row}", positives=(f"text {row}",)) for row in range(5)]
    one, same, other = (
        mine_documents(
            examples,
            documents,
            Selection(3, rule=KeepRule(sample_from=8), seed=seed),
            vectors=(vectors[:5], vectors),
        )
        for seed in (3, 3, 4)
    )
    assert one == same != other


def test_no_example_gives_none(tmp_path: Path):
    corpus = build_corpus(tmp_path, lambda: [Passage("d", "a text")], "")
    assert list(mined_examples([], corpus, [], Selection(), tmp_path)) == []


def test_a_positive_outside_the_documents_is_named():
    with pytest.raises(EmbedforgeError, match="'missing text' is not among the 7"):
        mined(Example(query="q", positives=("missing text",)))
