"""What makes two texts equal, in any script, and which texts curation compares."""

from __future__ import annotations

import random
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedforge.curate.decontaminate import Evaluation, decontaminate
from embedforge.curate.duplicates import drop_exact_duplicates, drop_near_duplicates
from embedforge.curate.evaluation_texts import EvaluationTask
from embedforge.data.example import Example
from embedforge.text.near import Shingler, earlier_twins, near_duplicates
from embedforge.text.same import leak_key, word_key
from embedforge.text.words import words_of

WORDS = [f"word{i}" for i in range(400)]


def text_of(seed: int, words: int = 30) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Où est le café ?", unicodedata.normalize("NFD", "où est le CAFÉ")),
        ("Straße", "STRASSE"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("in\u00adter\u200bnal\ufeff", "internal"),
        ("ﬁne", "fine"),
        ("don’t “quote”", "don't 'quote'"),
        ("card_arrival", "card arrival"),
        ("**bold** `code` | _em_", "bold code em"),
        ("❤️ é", "❤ é"),
    ],
)
def test_one_text_written_in_two_ways(left: str, right: str) -> None:
    assert leak_key(left) == leak_key(right)
    assert word_key(left) == word_key(right)
    assert near_duplicates([left], [right]) == [True]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("राम की किताब", "राम का कताब"),  # vowel signs are no letters for `re`
        ("مُدَرِّس", "مَدْرَسَة"),
        ("நீ", "ந"),
        ("é", "e"),
        ("東京", "京東"),
        ("𠀀", "𠀁"),
    ],
)
def test_two_texts_that_differ_in_their_marks(left: str, right: str) -> None:
    assert leak_key(left) != leak_key(right)
    examples = [Example(left, ("a",)), Example(right, ("a",))]
    assert drop_exact_duplicates(examples, unit="query").kept == examples
    assert drop_near_duplicates(examples, unit="query").kept == examples
    assert near_duplicates([left], [right]) == [False]
    evaluation = Evaluation([EvaluationTask("t", "f", lambda: iter([left]), lambda _: iter(()))])
    assert decontaminate([Example(right, ("a",))], evaluation).dropped == []


def test_symbols_count_among_duplicates() -> None:
    queries = [
        "What is C++?",
        "What is C#?",
        "What is C?",
        "1 + 1",
        "1 = 1",
        "5 %",
        "$5",
        "5",
        "ok 😀",
        "ok 😡",
    ]
    examples = [Example(query, ("a",)) for query in queries]
    assert drop_exact_duplicates(examples, unit="query").kept == examples
    assert drop_near_duplicates(examples, unit="query").kept == examples
    assert leak_key("What is C++?") == leak_key("What is C#")


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_takes_a_short_cut_to_the_same_words(text: str) -> None:
    assert words_of(text) == words_of(f"{text} é")[:-1]
    if words_of(text):
        assert word_key(text).split() == word_key(f"{text} é").split()[:-1]


def test_a_near_duplicate_is_found_behind_many_answers_to_one_question() -> None:
    question = "what are the symptoms of it and when do they come"
    rows = [Example(question, (text_of(number),)) for number in range(600)]
    late = Example(question, (text_of(0) + " indeed",))
    kept, dropped = drop_near_duplicates([*rows, late])
    assert kept == rows
    assert dropped[0].example is late


@pytest.mark.parametrize("shared", ["query", "document"])
def test_pairs_that_share_one_half_only_are_hardly_compared(shared: str) -> None:
    """A template of questions, or a label under thousands of texts: not every one with every other."""
    texts = [text_of(number) for number in range(1500)]
    same_text = ["what are the symptoms of it and when do they come"] * len(texts)
    queries, documents = (same_text, texts) if shared == "query" else (texts, same_text)
    asked = 0

    def same(late: int, early: int) -> bool:
        nonlocal asked
        asked += 1
        return False

    earlier_twins(queries, [(text,) for text in documents], same, Shingler())
    assert asked < len(texts)


def test_details_of_a_report_are_short_whatever_the_text() -> None:
    long = " ".join(f"{'x' * 1000}{number}" for number in range(40))
    evaluation = Evaluation([EvaluationTask("t", "f", lambda: iter([long]), lambda _: iter(()))])
    (dropped,) = decontaminate([Example(f"before {long}", ("a",))], evaluation).dropped
    assert len(dropped.detail) < 200
    (twin,) = drop_exact_duplicates([Example(long, (long,))] * 2).dropped
    assert len(twin.detail) < 400


def test_curation_needs_no_torch() -> None:
    code = "import sys, embedforge.curate.run, embedforge.curate.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
