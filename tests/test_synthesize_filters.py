"""What `synthesize` drops of what was answered."""

from __future__ import annotations

import pytest

from embedforge.synthesize.duplicates import Duplicates
from embedforge.synthesize.filters import (
    Draft,
    copied,
    longest_run,
    useless_negative,
    word_count,
    wrong_length,
)
from embedforge.synthesize.groups import groups
from embedforge.text.same import word_key


def draft(group: str = "short-long", **texts: str) -> Draft:
    words = " ".join(f"word{n}" for n in range(40))
    return Draft(groups()[group], "task", **{"query": "some question", "positive": words, **texts})


def test_words_and_normal_forms():
    assert word_key("  Ｅl NIÑO, ok! ") == "el niño ok"
    assert word_key("...") == "..."
    assert word_count("東京は hot today") == 5
    assert longest_run(["a", "b", "a", "b", "c"], ["x", "a", "b", "c", "a"]) == 3
    assert longest_run([], ["a"]) == longest_run(["a"], []) == 0


def test_lengths():
    assert wrong_length(draft()) == ""
    assert "positive has 3 words, fewer than 20" in wrong_length(draft(positive="far too short"))
    assert "query has 0 words" in wrong_length(draft(query="?!"))
    assert "query has 200 words" in wrong_length(draft(query="word " * 200))
    assert "negative" in wrong_length(draft(negative="short"))
    assert wrong_length(draft(negative="")) == ""


@pytest.mark.parametrize(
    ("group", "query", "positive", "is_copied"),
    [
        (
            "short-long",
            "how to repair an old bicycle",
            "Learn how to repair an old bicycle, it is easy.",
            True,
        ),
        ("short-long", "How to REPAIR an old-bicycle?", "learn how to repair an old bicycle", True),
        ("short-long", "repair bicycle", "how to repair bicycle wheels in winter", False),
        ("short-long", "what is the best way to repair a bike", "the best way is to walk", False),
        ("short-short", "he said that all good things end, and left", "all good things end", False),
        (
            "short-short",
            "he said that all good things come to an end",
            "all good things come to an end",
            True,
        ),
        ("short-long", "東京の天気はどうですか", "今日、東京の天気はどうですかと聞かれた", True),
        ("long-short", "I loved this positive and lovely film", "positive", True),
        ("long-short", "I loved this positively lovely film", "positive", False),
        ("sts", "a man is eating an apple outside", "a man is eating an apple outside now", False),
    ],
)
def test_copies(group, query, positive, is_copied):
    assert bool(copied(draft(group, query=query, positive=positive))) == is_copied


def test_negatives_that_are_none():
    assert "the positive" in useless_negative(draft(positive="A b, c.", negative="a B c"))
    assert "the query" in useless_negative(draft(query="A b", negative="a b!"))
    assert useless_negative(draft(negative="other")) == ""


def test_languages_are_judged_only_when_certain():
    pytest.importorskip("py3langid", reason="the extra 'synthesize' is not installed")
    from embedforge.synthesize.languages import Detector

    detector = Detector()
    german = "Der Fluss ist an dieser Stelle so tief, dass man nicht hindurchgehen kann."
    assert detector.is_other(german, "en") == "de"
    assert detector.is_other(german, "de") == ""
    assert detector.is_other("Guten Tag", "en") == ""  # too short to tell
    assert detector.is_other(german, "yi") == ""  # a language that the detector does not know
    assert detector.is_other("Pojąć to było mu trudno, a jednak starał się ze wszystkich sił.", "cs") == "pl"
    norwegian = "Elven er så dyp på dette stedet at man ikke kan gå gjennom den uten å svømme."
    assert detector.is_other(norwegian, "da") == ""  # close enough to be mistaken
    assert (
        detector.is_other(
            "for i in range(10): print(x[i] + y[i] * 3.5) # noqa: E501, def f(x): return x", "en"
        )
        == ""
    )


def test_duplicates():
    seen = Duplicates()
    query = "how does a heat pump work when it is colder outside than inside"
    assert seen.check(draft(query=query)) == ("", "")
    assert seen.check(draft(query=f"{query.upper()}?"))[0] == "exact duplicate"
    assert seen.check(draft(query=f"so {query}"))[0] == "near duplicate"
    assert seen.check(draft(query="how does a heat pump cool a house in summer"))[0] == ""
    assert seen.check(draft("sts", query=query))[0] == ""  # another group
    review = "the film was long and dull and I fell asleep"
    for label, reason in (("negative", ""), ("films", ""), ("Films!", "exact duplicate")):
        assert seen.check(draft("long-short", query=review, positive=label))[0] == reason


def test_symbols_and_vowel_signs_tell_texts_apart():
    for one, other in [("C++ is hard", "C# is hard"), ("5 > 3", "5 < 3"), ("राम का घर", "राम की घर")]:
        assert word_key(one) != word_key(other)
        assert useless_negative(draft("sts", positive=one, negative=other)) == ""
    assert word_key("cafe\u0301") == word_key("Café")


def test_words_are_counted_in_any_script():
    assert word_count("राम का घर बहुत बड़ा है") == 6
    assert word_count("مُحَمَّد في البيت") == 3
    assert word_count("สวัสดีครับ") == 7
    assert word_count("ក្រុមហ៊ុន") == 5
