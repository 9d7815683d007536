"""BM25's words: English, identifiers, and scripts that put no space between words."""

from __future__ import annotations

import numpy as np
import pytest

from embedforge import lexical
from embedforge.errors import EmbedforgeError
from embedforge.lexical import Bm25, Collection, QueryTerms, words, words_and_identifiers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("東京都", ["東京", "京都"]),
        ("猫", ["猫"]),
        ("我爱北京。你呢？", ["我爱", "爱北", "北京", "你呢"]),
        ("日本語のテキスト", ["日本", "本語", "語の", "のテ", "テキ", "キス", "スト"]),
        ("ラーメン・カレー", ["ラー", "ーメ", "メン", "カレ", "レー"]),
        ("한국어 공부", ["한국", "국어", "공부"]),
        ("時々、人々〆切", ["時々", "人々", "々〆", "〆切"]),
        ("𠮷野家", ["𠮷野", "野家"]),
    ],
)
def test_cjk_runs_become_pairs_of_characters(text: str, expected: list[str]) -> None:
    assert words(text) == expected
    assert words_and_identifiers(text) == expected


def test_cjk_and_other_words_do_not_stick_together() -> None:
    assert words("GPUで学習する Python3.11") == ["gpu", "で学", "学習", "習す", "する", "python3", "11"]
    assert words_and_identifiers("readLines東京都") == ["readlines", "read", "lines", "東京", "京都"]


def test_other_scripts_keep_their_words() -> None:
    assert words("Übung café, Привет שלום a the") == ["übung", "café", "привет", "שלום"]


def test_bm25_ranks_chinese_and_japanese_documents_by_shared_words() -> None:
    documents = [
        "北京大学是中国的一所著名大学。",
        "今天天气很好，我们去公园散步。",
        "東京タワーは日本の有名な建物です。",
        "猫が好きです。",
    ]
    bm25 = Bm25(documents)
    best, scores = bm25.search(["中国的大学", "公园天气", "日本の建物", "猫が好き"], 1)
    assert best[:, 0].tolist() == [0, 1, 2, 3]
    assert (scores > 0).all()


# --- part by part ------------------------------------------------------------------------------------

POEM = (
    "the sea the sea the open sea",
    "open the window, sailor",
    "",
    "a sailor of the sea sings, sings and sings",
    "nothing in common",
    "window to the sea",
    "sea sea sea",
)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_give_the_scores_of_the_whole(size: int):
    queries = ["open sea", "sea sea sailor", "unknown", "the", "Sings window"]
    terms = QueryTerms(queries)
    parts = [terms.postings(POEM[start : start + size]) for start in range(0, len(POEM), size)]
    collection = Collection.of(parts)
    found = np.zeros((len(queries), len(POEM)), dtype=np.float32)
    for number, part in enumerate(parts):
        for query, scores in terms.scores(part, collection, range(len(queries))):
            found[query, number * size : number * size + size] = scores
    whole = Bm25(POEM)
    np.testing.assert_allclose(found, [whole.scores(query) for query in queries], rtol=1e-5)


def test_parts_split_identifiers_too():
    terms = QueryTerms(["read lines"], "identifiers")
    assert set(terms.numbers) == {"read", "lines"}
    assert len(terms.postings(["readLines()", "other"]).rows) == 2


def test_words_are_needed_on_both_sides():
    with pytest.raises(EmbedforgeError, match="no word to search for in 2 queries"):
        QueryTerms(["the", "?"])
    with pytest.raises(EmbedforgeError, match="no word to index in 1 documents"):
        Collection.of([QueryTerms(["sea"]).postings(["!"])])


def test_an_accent_does_not_end_a_word_however_it_is_encoded() -> None:
    assert (
        words("creme bru\u0302le\u0301e") == words("creme br\u00fbl\u00e9e") == ["creme", "br\u00fbl\u00e9e"]
    )


def test_stop_words_are_those_of_bm25s() -> None:
    from bm25s.stopwords import STOPWORDS_EN

    assert set(STOPWORDS_EN) == lexical._STOPWORDS
