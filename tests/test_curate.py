"""The steps of a curation, each a function from Examples to what stays and what goes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedforge.curate.consistency import (
    drop_inconsistent,
    ranks_by_bm25,
    ranks_by_vectors,
    sample_passages,
)
from embedforge.curate.duplicates import drop_exact_duplicates, drop_near_duplicates
from embedforge.curate.language import Guess, detector, drop_languages
from embedforge.curate.lengths import Limits, drop_lengths, measure_of, parse_limits
from embedforge.curate.outcome import Fault, judge_texts
from embedforge.curate.teacher import ModelTeacher
from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import load
from embedforge.text.near import NgramHasher
from embedforge.text.same import leak_key
from embedforge.text.words import words_of

WORDS = [f"word{i}" for i in range(400)]


def text_of(seed: int, words: int = 30) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def example(query: str, *positives: str, negatives: tuple[str, ...] = (), **more) -> Example:
    return Example(query, positives or ("a passage",), negatives, **more)


# --- a verdict on a text ---------------------------------------------------------------------------


def bad(text: str, part: str) -> Fault | None:
    return Fault("bad") if "bad" in text else None


def test_a_bad_query_drops_its_example_and_a_bad_document_only_itself() -> None:
    rows = [
        example("bad", "good"),
        example("q", "bad 1", "good", "bad 2", negatives=("n", "bad 3")),
        example("q2", "bad", "bad"),
        example("q3", "fine"),
    ]
    kept, dropped = judge_texts(rows, bad)
    assert [item.query for item in kept] == ["q", "q3"]
    assert (kept[0].positives, kept[0].negatives) == (("good",), ("n",))
    assert [(item.part, item.text) for item in dropped] == [
        ("example", "bad"),
        ("positive", "bad 1"),
        ("positive", "bad 2"),
        ("negative", "bad 3"),
        ("example", "bad"),
    ]
    assert kept[1] is rows[3]


def test_ids_go_with_their_documents() -> None:
    row = Example("q", ("a", "bad"), ("bad", "c"), positive_ids=("1", "2"), negative_ids=("3", "4"))
    (kept,), _ = judge_texts([row], bad)
    assert (kept.positive_ids, kept.negative_ids) == (("1",), ("4",))


# --- lengths ---------------------------------------------------------------------------------------


def test_limits_are_read_and_hold_their_ends() -> None:
    assert [parse_limits(text, "--x") for text in ("2:4", ":4", "2:")] == [(2, 4), (0, 4), (2, None)]
    assert [n in Limits(2, 4) for n in (1, 2, 4, 5)] == [False, True, True, False]
    for wrong in ("3", "a:b", "4:2", "1:2:3", "-1:2"):
        with pytest.raises(EmbedforgeError, match="--x"):
            parse_limits(wrong, "--x")


def test_lengths_are_judged_in_the_asked_unit() -> None:
    rows = [example("one two", "a b c"), example("one", "a b c"), example("one two", "a", "a b c d e")]
    kept, dropped = drop_lengths(rows, Limits(2, 3), Limits(2, 4), measure_of("words"))
    assert kept == rows[:1]
    assert [(item.reason, item.detail) for item in dropped] == [
        ("query too short", "1 words"),
        ("document too short", "1 words"),
    ]
    kept, _ = drop_lengths(rows, Limits(4), Limits(), measure_of("characters"), "characters")
    assert len(kept) == 2


def test_tokens_are_those_of_the_tokenizer(tiny_base: Path, tiny_tokenizer) -> None:
    measure = measure_of("tokens", str(tiny_base))
    text = "how deep is the river? 東京"
    assert measure(text) == len(tiny_tokenizer(text, add_special_tokens=False).input_ids)


# --- languages -------------------------------------------------------------------------------------

ENGLISH = "How deep is the river at the old bridge in the middle of the town?"
GERMAN = "Wie tief ist der Fluss an der alten Brücke in der Mitte der Stadt?"
CHINESE = "这座城市的老桥下面的河水有多深呢？有人知道这个问题的答案吗？"


def test_texts_in_other_languages_go() -> None:
    pytest.importorskip("py3langid", reason="the language filter needs py3langid")
    rows = [
        example(ENGLISH, ENGLISH),
        example(GERMAN, ENGLISH),
        example(ENGLISH, CHINESE),
        example("KLM 4711", "Emma"),
    ]
    kept, dropped = drop_languages(rows, ("en",), detector(("en",)))
    assert kept == [rows[0], rows[3]]
    assert [item.reason for item in dropped] == ["query in another language", "document in another language"]
    assert [item.detail.partition(",")[0] for item in dropped] == ["de", "zh"]
    assert drop_languages(rows, ("de", "en", "zh"), detector(("de", "en", "zh"))).dropped == []


def test_what_the_detector_is_not_sure_of_stays() -> None:
    rows = [example(GERMAN, ENGLISH)]
    for probability, left in ((0.6, 1), (0.95, 0)):
        kept, _ = drop_languages(rows, ("en",), lambda text, p=probability: Guess("de", p))
        assert len(kept) == left


def test_an_unknown_language_gets_a_suggestion() -> None:
    pytest.importorskip("py3langid", reason="the language filter needs py3langid")
    with pytest.raises(EmbedforgeError, match=r"--languages: 'eng' is no ISO 639-1 code.*Did you mean 'en'"):
        detector(("eng",))


# --- duplicates ------------------------------------------------------------------------------------


def test_the_first_of_equal_pairs_stays() -> None:
    rows = [
        example("What is it?", "A river.", "B"),
        example("what  is IT", "b", "a river"),
        example("What is it?", "a river"),
        example("Who is it?", "A river.", "B"),
    ]
    kept, dropped = drop_exact_duplicates(rows)
    assert kept == [rows[0], rows[2], rows[3]]
    assert "What is it?" in dropped[0].detail
    assert drop_exact_duplicates(rows, unit="query").kept == [rows[0], rows[3]]


def test_near_pairs_need_a_near_query_and_a_near_positive() -> None:
    question, passage, other = text_of(1), text_of(2), text_of(3)
    near = question.rsplit(" ", 1)[0] + " another"
    rows = [
        example(question, passage),
        example(near, passage + " more"),  # both are near
        example(near, other),  # the answer is another one
        example(other, passage),  # the question is another one
    ]
    kept, dropped = drop_near_duplicates(rows)
    assert kept == [rows[0], rows[2], rows[3]]
    assert dropped[0].example is rows[1]
    assert drop_near_duplicates(rows, unit="query").kept == [rows[0], rows[3]]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_near_duplicates_are_those_of_the_quadratic_comparison() -> None:
    draw = random.Random(0)
    texts: list[str] = []
    for number in range(60):
        words = text_of(number, 40).split()
        for changed in (0, 1, 3, 8):
            copy = list(words)
            for place in draw.sample(range(40), changed):
                copy[place] = f"new{draw.random()}"
            texts.append(" ".join(copy))
    draw.shuffle(texts)
    sets = {text: shingles(text) for text in texts}
    kept: list[str] = []
    for text in texts:
        own = sets[text]
        if all(len(own & sets[other]) < 0.7 * len(own | sets[other]) for other in kept):
            kept.append(text)
    found = drop_near_duplicates([example(text) for text in texts], threshold=0.7, unit="query").kept
    missed = len({item.query for item in found} ^ set(kept))
    assert len(kept) < 200
    assert missed <= 2  # at 0.7 a pair is missed with a probability of about 1 %


def test_texts_without_words_repeat_nothing() -> None:
    rows = [example("!!!", "?"), example("???", "!"), example("", "")]
    assert drop_near_duplicates(rows).kept == rows


# --- consistency -----------------------------------------------------------------------------------


class Table:
    """A teacher whose vectors stand in a table."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def queries(self, examples):
        return self.documents([item.query for item in examples])

    def documents(self, texts):
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


def test_a_rank_counts_the_passages_that_score_higher() -> None:
    vectors = {
        "q": [1.0, 0.0],
        "p": [0.5, 0.0],
        "a": [0.9, 1.0],
        "b": [0.6, 1.0],
        "c": [0.1, 0.0],
        "p2": [0.95, 0],
    }
    rows = [example("q", "p", "p2")]
    ranks = ranks_by_vectors(rows, ["a", "b", "c", "p", "p2"], Table(vectors))
    assert ranks == [[3, 1]]  # p2 stands before p, and does not count: it is a positive of the same query
    kept, dropped = drop_inconsistent(rows, ranks, top_k=2)
    assert kept[0].positives == ("p2",)
    assert (dropped[0].part, dropped[0].detail) == ("positive", "rank 3")
    assert drop_inconsistent(rows, [[3, 4]], top_k=2).dropped[0].part == "example"


@given(st.integers(0, 10_000))
def test_ranks_do_not_depend_on_the_blocks(seed: int) -> None:
    from embedforge.curate import consistency

    draw = np.random.default_rng(seed)
    names = [f"t{i}" for i in range(24)]
    teacher = Table({name: list(draw.normal(size=3)) for name in names})
    rows = [example(names[i], names[i + 1], names[i + 9]) for i in range(12)]
    whole = ranks_by_vectors(rows, names, teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consistency, "EXAMPLES_PER_BLOCK", 5)
        patch.setattr(consistency, "PASSAGES_PER_BLOCK", 7)
        assert ranks_by_vectors(rows, names, teacher) == whole
    for row, places in zip(rows, whole, strict=True):
        scores = {name: float(np.dot(teacher.vectors[row.query], teacher.vectors[name])) for name in names}
        others = [name for name in names if name not in (row.query, *row.positives)]
        for text, rank in zip(row.positives, places, strict=True):
            assert rank == 1 + sum(scores[name] > scores[text] for name in others)


def test_passages_that_differ_in_symbols_are_passages_of_their_own() -> None:
    texts = ["What is C++?", "What is C#?", "What is C?", "what is *c*"]
    rows = [example(f"q{number}", text) for number, text in enumerate(texts)]
    passages = sample_passages(rows, 10, seed=0)
    assert passages[:2] == texts[:2]
    assert len(passages) == 3  # the last two are one
    vectors = {"q0": [1.0, 0.0], texts[0]: [0.1, 0.0], texts[1]: [0.9, 0.0], texts[3]: [0.5, 0.0]}
    assert ranks_by_vectors(rows[:1], passages, Table(vectors)) == [[3]]


def test_bm25_finds_pairs_that_share_words() -> None:
    rows = [example("river nile", "the nile is a long river"), example("bread flour", "court and judge")]
    passages = [item.positives[0] for item in rows] + ["bread is made of flour", "a river in spring"]
    ranks = ranks_by_bm25(rows, passages)
    assert ranks[0] == [1]
    kept, _ = drop_inconsistent(rows, ranks)
    assert kept == rows[:1]


def test_a_model_ranks_as_its_own_vectors_say(model_folder: Path) -> None:
    rows = [
        example(text_of(i, 6), text_of(i + 50, 6), instruction="Find it" if i % 2 else "") for i in range(8)
    ]
    passages = sample_passages(rows, 100, 0)
    ranks = ranks_by_vectors(rows, passages, ModelTeacher(str(model_folder), "cpu"))
    st_model = load(str(model_folder), device="cpu")
    documents = st_model.encode_document(passages)
    for row, (rank,) in zip(rows, ranks, strict=True):
        prompt = f"Instruct: {row.instruction}\nQuery: " if row.instruction else ""
        query = st_model.encode(row.query, prompt=prompt)
        scores = documents @ query
        own = scores[passages.index(row.positives[0])]
        assert abs(rank - 1 - (scores > own + 1e-6).sum()) <= (abs(scores - own) < 1e-4).sum() - 1


def test_passages_are_drawn_by_the_seed() -> None:
    rows = [example(f"q{i}", f"passage {i}", "shared") for i in range(50)]
    assert len(sample_passages(rows, 1000, 0)) == 51
    first, again, other = (sample_passages(rows, 10, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 10


# --- words -----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.integers(1, 4))
def test_equal_ngrams_have_equal_hashes_and_others_do_not(words: list[str], size: int) -> None:
    hashes = NgramHasher(size).hashes(words)
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    assert len(hashes) == len(grams)
    for (left, a), (right, b) in itertools.combinations(zip(grams, hashes, strict=True), 2):
        assert (left == right) == (a == b)


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert words_of("東京 in Japan") == ["東", "京", "in", "japan"]
    assert leak_key("Hello,  WORLD!") == leak_key("hello world")
    assert leak_key(" ?! ") == "?!"
