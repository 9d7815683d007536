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
from embedforge.text.near import NearIndex, Shingler, earlier_twins, near_duplicates
from embedforge.text.same import layout_key, leak_key, word_key
from embedforge.text.words import words_and_symbols_of, words_of

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
    ("left", "right", "equal"),
    [
        ("na\u00efve  Idea", "nai\u0308ve idea", "layout word leak"),
        ("Straße", "STRASSE", "layout word leak"),
        ("Ｆｕｌｌ width", "full width", "word leak"),
        ("in\u00adternal", "internal", "word leak"),
        ("x²", "x2", "word leak"),
        ("*a*, b!", "a b", "word leak"),
        ("C++?", "C?", "leak"),
        ("5 > 3", "5 < 3", "leak"),
        ("C++", "C#", "leak"),
        ("सेब", "सब", ""),
        ("...", "?!", ""),
        ("", "?!", ""),
        (" ?! ", "?!", "layout word leak"),
        ("", "\n", "layout word leak"),
        ("😀", "😡", ""),
        ("😀!", "😀", "word leak"),
        ("สวัสดี ครับ", "สวัสดีครับ", "word leak"),
    ],
)
def test_what_each_key_takes_for_the_same_text(left: str, right: str, equal: str) -> None:
    keys = {"layout": layout_key, "word": word_key, "leak": leak_key}
    assert [name for name, key in keys.items() if key(left) == key(right)] == equal.split()


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
    assert words_and_symbols_of(text) == words_and_symbols_of(f"{text} é")[:-1]


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


def test_one_after_the_other_finds_what_a_list_finds() -> None:
    texts = [text_of(number, 12) for number in range(200)]
    texts += [f"{texts[number]} indeed" for number in range(0, 200, 7)]
    shingler, index = Shingler(), NearIndex()
    found = []
    for number, text in enumerate(texts):
        (bands,) = shingler.keys([text])
        found.append(any(shingler.similarity(text, texts[i]) >= 0.8 for i in index.candidates(bands)))
        index.add(number, bands)
    assert found == [near_duplicates([text], texts[:number])[0] for number, text in enumerate(texts)]
    assert sum(found) == 29


def test_runs_of_characters_see_a_changed_letter_as_small() -> None:
    one, other = (
        "how do heat pumps work when it is cold outside",
        "how do heat pump work when it is cold outside",
    )
    assert Shingler("characters").similarity(one, other) > 0.8 > Shingler().similarity(one, other)
    assert Shingler("characters").similarity("สวัสดีครับผมชื่อสมชาย", "สวัสดีครับผมชื่อสมชัย") > 0.5
    assert Shingler("characters").similarity("ab", "ab") == 1.0
    assert Shingler("characters").similarity("", "") == 0.0


def test_near_texts_are_found_in_scripts_without_spaces() -> None:
    thai = "ประเทศไทยมีพื้นที่ห้าแสนหนึ่งหมื่นสามพันตารางกิโลเมตรและมีประชากรราวหกสิบหกล้านคน"
    other = "แม่น้ำเจ้าพระยาไหลผ่านกรุงเทพมหานครก่อนจะออกสู่ทะเลที่อ่าวไทยในจังหวัดสมุทรปราการ"
    assert near_duplicates([f"{thai}นะ", other], [thai]) == [True, False]
    evaluation = Evaluation([EvaluationTask("t", "f", lambda: iter([thai]), lambda _: iter(()))])
    assert decontaminate([Example(f"ถาม {thai[:40]} ไหม", ("a",))], evaluation).kept == []
    assert decontaminate([Example(other, ("a",))], evaluation).dropped == []


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
