"""Sources laid out into steps: random access, weights, purity, what each visit draws, and masking keys."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from embedforge.data.describe import describe, summary
from embedforge.data.example import Example
from embedforge.data.mixture import Mixture, fingerprint
from embedforge.data.step import Draw, build_step
from embedforge.errors import EmbedforgeError
from embedforge.text.same import stable_hash


def source(name: str, size: int, positives: int = 1, negatives: int = 0, **semantics) -> list[Example]:
    return [
        Example(
            query=f"{name} {row}",
            positives=tuple(f"{name} {row} + {place}" for place in range(positives)),
            negatives=tuple(f"{name} {row} - {place}" for place in range(negatives)),
            source=name,
            **semantics,
        )
        for row in range(size)
    ]


def mix(sources: dict, *, seed=0, batch_queries=4, negatives=0, **settings) -> Mixture:
    return Mixture(sources, seed=seed, batch_queries=batch_queries, negatives=negatives, **settings)


def queries(mixture: Mixture, *steps: int) -> list[str]:
    found = [mixture.step(step) for step in steps]
    return [text.text for step in found for text in step.texts[: len(step.positive)]]


def epoch(mixture: Mixture, number: int) -> list[str]:
    return queries(mixture, *range(number * len(mixture), (number + 1) * len(mixture)))


ORDER = [["a 4", "b 0", "b 1"], ["a 1", "a 2", "a 5"], ["a 3", "a 0", "b 2"]]
FAR = ["b 2", "b 0", "a 1", "b 2 + 0", "b 0 + 0", "a 1 + 0", "a 1 - 0", "a 1 - 1"]
HASH = 14816689463489762659


# --- epochs and weights --------------------------------------------------------------------------


@pytest.mark.parametrize("batches", ["blended", "homogeneous"])
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(4, 40), min_size=1, max_size=4), seed=st.integers(-(2**70), 2**70))
def test_an_epoch_has_every_row_at_most_once(batches, sizes, seed):
    sources = {f"s{n}": source(f"s{n}", size) for n, size in enumerate(sizes)}
    mixture = mix(sources, seed=seed, batches=batches)
    assert len(mixture) == (sum(sizes) // 4 if batches == "blended" else sum(size // 4 for size in sizes))
    for number in (0, 1):
        rows = epoch(mixture, number)
        assert len(rows) == len(set(rows)) == 4 * len(mixture)


def test_epochs_differ_and_seeds_differ():
    sources = {"a": source("a", 40)}
    mixture = mix(sources)
    assert sorted(epoch(mixture, 0)) == sorted(epoch(mixture, 1))
    assert epoch(mixture, 0) != epoch(mixture, 1)
    assert epoch(mixture, 0) != epoch(mix(sources, seed=1), 0)


def test_rows_left_out_change_from_epoch_to_epoch():
    mixture = mix({"a": source("a", 7)})
    left_out = [
        next(iter({f"a {n}" for n in range(7)} - set(epoch(mixture, number)))) for number in range(30)
    ]
    assert len(set(left_out)) > 3


def test_weights_multiply_sizes():
    mixture = mix(
        {
            "half": source("half", 100),
            "one": source("one", 100),
            "double": source("double", 100),
            "more": source("more", 100),
        },
        weights={"half": 0.5, "double": 2, "more": 1.25},
        batch_queries=5,
    )
    assert mixture.plan.counts == (50, 100, 200, 125)
    assert len(mixture) == 95
    for number in range(3):
        visits = Counter(epoch(mixture, number))
        by_source = {
            name: sorted(n for text, n in visits.items() if text.split()[0] == name)
            for name in mixture.examples
        }
        assert by_source["half"] == [1] * 50
        assert by_source["one"] == [1] * 100
        assert by_source["double"] == [2] * 100
        assert by_source["more"] == [1] * 75 + [2] * 25


def test_a_half_is_chosen_anew_each_epoch_and_evenly():
    mixture = mix({"a": source("a", 20)}, weights={"a": 0.5}, batch_queries=5)
    visits = Counter(text for number in range(400) for text in epoch(mixture, number))
    assert len(visits) == 20
    assert all(140 < count < 260 for count in visits.values())  # 200 expected, standard deviation 10


def test_blended_steps_mix_sources_in_proportion():
    mixture = mix({"a": source("a", 3000), "b": source("b", 1000)}, batch_queries=40)
    shares = [Counter(mixture.step(step).sources)["b"] / 40 for step in range(len(mixture))]
    assert np.mean(shares) == pytest.approx(0.25)
    assert np.std(shares) == pytest.approx(0.068, abs=0.02)  # of 40 independent draws: sqrt(.25 * .75 / 40)


def test_homogeneous_steps_are_pure_and_shuffled():
    mixture = mix({"a": source("a", 103), "b": source("b", 42)}, batches="homogeneous", batch_queries=10)
    for number in (0, 1):
        names = [mixture.step(number * 14 + step).sources for step in range(14)]
        assert all(len(set(step)) == 1 for step in names)
        order = "".join(step[0] for step in names)
        assert Counter(order) == {"a": 10, "b": 4}
        assert order not in ("aaaaaaaaaabbbb", "bbbbaaaaaaaaaa")


# --- random access -------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", ["blended", "homogeneous"])
def test_a_step_is_a_function_of_its_index(batches):
    sources = {"a": source("a", 50, 3, 10), "b": source("b", 31, 2, 3)}

    def build() -> Mixture:
        return mix(sources, batches=batches, negatives=4, weights={"a": 1.5})

    forward = [build().step(step) for step in range(60)]
    other = build()
    for step in reversed(range(60)):
        assert pickle.dumps(other.step(step)) == pickle.dumps(forward[step])
    assert pickle.loads(pickle.dumps(other)).step(7).texts == forward[7].texts


def test_far_steps_of_a_large_mixture():
    sources = {"a": source("a", 70_000), "b": source("b", 30_000)}
    mixture = mix(sources, batch_queries=128)
    assert len(mixture) == 781
    far = mixture.step(10**6)
    assert len(far.sources) == 128
    assert far.index == 10**6
    assert far.texts == mix(sources, batch_queries=128).step(10**6).texts


def test_the_order_stays_as_it_is():
    """An order once trained on must not change with a new version of numpy, or of this code."""
    mixture = mix({"a": source("a", 6, 2, 3), "b": source("b", 3)}, seed=7, batch_queries=3, negatives=2)
    assert [queries(mixture, step) for step in range(3)] == ORDER
    assert [text.text for text in mixture.step(10**4).texts] == FAR


# --- what a visit draws --------------------------------------------------------------------------


def visits_of(mixture: Mixture, query: str, epochs: int) -> list[list[str]]:
    """The documents drawn for a query, visit by visit."""
    found = []
    for index in range(epochs * len(mixture)):
        step = mixture.step(index)
        documents = step.texts[len(step.positive) :]
        rows = [row for row in range(len(step.positive)) if step.texts[row].text == query]
        found += [[documents[column].text for column in np.flatnonzero(step.owner == row)] for row in rows]
    return found


def test_negatives_are_a_window_that_slides_and_wraps():
    mixture = mix({"a": source("a", 4, negatives=5)}, negatives=2)
    drawn = [[text[-1] for text in documents[1:]] for documents in visits_of(mixture, "a 1", 5)]
    assert drawn == [["0", "1"], ["2", "3"], ["4", "0"], ["1", "2"], ["3", "4"]]


def test_a_source_that_comes_twice_an_epoch_slides_twice():
    mixture = mix({"a": source("a", 4, negatives=4)}, negatives=2, weights={"a": 2})
    drawn = visits_of(mixture, "a 1", 1)
    assert sorted(text[-1] for documents in drawn for text in documents[1:]) == ["0", "1", "2", "3"]


def test_fewer_negatives_than_asked_for_are_each_drawn_once():
    mixture = mix({"a": source("a", 4, negatives=2)}, negatives=7)
    assert all(
        sorted(text[-1] for text in documents[1:]) == ["0", "1"] for documents in visits_of(mixture, "a 1", 3)
    )


def test_positives_take_turns_from_a_random_start():
    mixture = mix({"a": source("a", 40, positives=3)})
    drawn = [documents[0][-1] for documents in visits_of(mixture, "a 1", 6)]
    assert "".join(drawn) in "0120120120"
    first = Counter(visits_of(mixture, f"a {row}", 1)[0][0][-1] for row in range(40))
    assert set(first) == {"0", "1", "2"}


# --- the layout of a step ------------------------------------------------------------------------


def test_layout():
    plain = Example("q0", ("p0", "p1"), ("n0", "n1"), instruction="Find", source="a")
    symmetric = Example(
        "s0", ("s1",), instruction="Same", source="b", symmetric=True, in_batch_negatives=False
    )
    step = build_step(5, [Draw(plain, 1, (1, 0)), Draw(symmetric, 0, ())])
    shown = [(text.text, text.instruction, text.role) for text in step.texts]
    assert shown == [
        ("q0", "Find", "query"),
        ("s0", "Same", "query"),
        ("p1", "", "document"),
        ("n1", "", "document"),
        ("n0", "", "document"),
        ("s1", "Same", "document"),
    ]
    assert step.index == 5
    assert step.owner.tolist() == [0, 0, 0, 1]
    assert step.is_positive.tolist() == [True, False, False, True]
    assert step.positive.tolist() == [0, 3]
    assert step.in_batch_allowed.tolist() == [True, False]
    assert step.sources == ["a", "b"]
    assert {array.dtype for array in (step.owner, step.positive)} == {np.dtype(np.int64)}


def share(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return bool(set(first) & set(second))


def test_keys_join_equal_texts_and_equal_ids_of_one_source():
    with_ids = Example(
        "q",
        ("A  text", "B"),
        ("C",),
        source="s",
        query_id="d1",
        positive_ids=("d1", "d2"),
        negative_ids=("d3",),
    )
    step = build_step(
        0,
        [
            Draw(with_ids, 0, (0,)),
            Draw(Example("q2", ("a TEXT\n",), source="s"), 0, ()),
            Draw(replace(with_ids, query="q3", positives=("other words", "B")), 0, ()),
            Draw(replace(with_ids, query="q4", positives=("yet others", "B"), source="t"), 0, ()),
            Draw(Example("q5", ("q",), source="s"), 0, ()),
        ],
    )
    a, c, same_text, same_id, other_source, as_query = step.document_keys
    assert share(a, same_text)
    assert share(a, same_id)
    assert not share(a, c)
    assert not share(a, other_source)  # an id means something within its source only
    assert share(step.query_keys[0], as_query)
    assert not share(step.query_keys[0], a)  # a query and a document may have one id
    assert set(a) < set(step.positive_keys[0])
    assert len(step.positive_keys[0]) == 4  # two positives, each by text and by id


def test_the_hash_is_the_same_everywhere_and_knows_where_parts_end():
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
    assert stable_hash("text", "embedforge") == HASH


# --- fingerprint ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"query": "x"},
        {"positives": ("a", "b"), "positive_ids": ()},
        {"positives": ("ab",)},
        {"negatives": ()},
        {"instruction": "x"},
        {"source": "x"},
        {"in_batch_negatives": False},
        {"symmetric": True},
        {"query_id": "x"},
        {"positive_ids": ("2",)},
        {"negative_ids": ("2",)},
    ],
)
def test_fingerprint_sees_every_field(change):
    example = Example("q", ("p",), ("n",), positive_ids=("1",))
    assert fingerprint([example]) == fingerprint([replace(example)])
    assert fingerprint([example]) != fingerprint([replace(example, **change)])


def test_fingerprint_is_of_the_data_alone():
    sources = {"a": source("a", 8), "b": source("b", 8)}
    assert mix(sources).fingerprint == mix(sources, seed=3, batch_queries=2).fingerprint
    assert mix(sources).fingerprint != mix({"a": sources["a"], "c": sources["b"]}).fingerprint
    assert fingerprint(sources["a"]) != fingerprint(sources["a"][::-1])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": {}}, "at least one source"),
        ({"sources": {"a": []}}, "source 'a' has no Example"),
        ({"sources": {"a": source("a", 3)}}, "the sources give 3 rows an epoch, a step takes 4"),
        ({"weights": {"smal": 1}}, "Did you mean 'small'"),
        ({"weights": {"small": 0}}, "weight of source 'small' is 0"),
        ({"weights": {"small": float("nan")}}, "weight of source 'small' is nan"),
        ({"batches": "homogenous"}, "Did you mean 'homogeneous'"),
        ({"batches": "homogeneous"}, "source 'small' gives 3 rows an epoch, a step of one source takes 4"),
        ({"batch_queries": 0}, "batch_queries 0"),
        ({"negatives": -1}, "negatives -1"),
        ({"sources": {"a": [Example("q", ())] * 4}}, "source 'a', Example 0: no positive for the query 'q'"),
        ({"sources": {"a": [Example("q", ("a", "b"), positive_ids=("1",))]}}, "1 ids for 2 texts"),
    ],
)
def test_settings_that_make_no_sense(change, words):
    sources = {"large": source("large", 20), "small": source("small", 3)}
    with pytest.raises(EmbedforgeError, match=words):
        mix(**{"sources": sources, **change})


def test_steps_count_from_zero():
    with pytest.raises(IndexError):
        mix({"a": source("a", 8)}).step(-1)


# --- description ---------------------------------------------------------------------------------


def test_summary_and_tree():
    mixture = mix(
        {
            "web": source("web", 30, positives=2, negatives=3, instruction="Find [the] passage"),
            "sts": source("sts", 20, symmetric=True, in_batch_negatives=False),
        },
        weights={"sts": 0.5},
        negatives=2,
    )
    figures = summary(mixture)
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["rows_per_epoch"], figures["steps_per_epoch"]) == (40, 10)
    assert figures["sources"]["web"]["share"] == 0.75
    assert figures["sources"]["web"]["mean_negatives"] == 3
    assert figures["sources"]["sts"]["rows_per_epoch"] == 10
    assert figures["sources"]["sts"]["in_batch_negatives"] is False
    console = Console(width=120)
    with console.capture() as capture:
        console.print(describe(mixture))
    shown = capture.get()
    for part in (
        "40 rows an epoch in 10 blended steps of 4 queries",
        "web: 30 rows, 75.0% of the epoch",
        "Find [the] passage",
        "weight 0.5: 10 rows an epoch",
        "in-batch negatives: no",
        "symmetric: yes",
        "2.0 positives, 3.0 negatives a query",
        "instruction: none",
    ):
        assert part in shown, shown
