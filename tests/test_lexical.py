"""BM25's words: English, identifiers, and scripts that put no space between words."""

from __future__ import annotations

import pytest

from embedforge.lexical import Bm25, words, words_and_identifiers


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
