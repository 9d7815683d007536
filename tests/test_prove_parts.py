"""The parts of `prove`: a base's recipe, what is trained on, what fits the time, what the figures mean."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import embedforge
from embedforge.documents import Chunk, Folder, Pair
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.found import Ranked
from embedforge.model.encoder import embedding_model
from embedforge.prove.figures import (
    FEWEST_HALVES,
    alignment,
    clustered,
    figures_of,
    own_half_nearer,
    uniformity,
)
from embedforge.prove.findings import findings
from embedforge.prove.fusion import best_mode, cross_fused, ndcg
from embedforge.prove.held_out import HeldOut, held_out_of
from embedforge.prove.keep import Kept, better_of, keep_model, model_of
from embedforge.prove.plan import (
    FEWEST,
    MOST_EPOCHS,
    Measured,
    Sizes,
    encoding_seconds,
    limited,
    seconds_of_stages,
    shortened,
    sizes_for,
)
from embedforge.prove.recipes import choose_recipe, pick_mask_token, with_sources
from embedforge.prove.systems import (
    ACROSS,
    AS_IT_CAME,
    TRAINED,
    UNTRAINED,
    Encoded,
    as_it_came,
    trained_systems,
    untrained_systems,
)
from embedforge.prove.table import terminal_table
from embedforge.prove.texts import read_texts
from embedforge.prove.training_data import PARTS_FILE, RETRIEVAL_FILE, part_examples, write_training_data
from embedforge.recipe import Recipe, load_recipe
from embedforge.statistics import bootstrap_interval
from embedforge.train.stages import prepare_model

MEASURED = Measured(
    tokens_per_second=10_000.0, query=10.0, passage=100.0, sentence=30.0, tokens_per_character=0.25
)


def folder_of(passages: int, sentences: int = 10_000, pairs: int = 0, train_pairs: int = 9000) -> Folder:
    """Passages of 1,000 characters."""
    chunks = [Chunk("word " * 200, f"f{n}", "", (), "prose", 0) for n in range(passages)]
    held_out = [Chunk("word " * 200, f"h{n}", "", (), "prose", 0) for n in range(passages // 10)]
    asked = [Pair(f"p{n}", f"question {n}", f"answer {n}", "heading", f"h{n}", "", 0) for n in range(pairs)]
    others = [
        Pair(f"t{n}", f"question {n}", f"text {n}", "heading", f"f{n}", "", 0) for n in range(train_pairs)
    ]
    return Folder(chunks, [f"s{n}" for n in range(sentences)], held_out, asked, others, {})


def test_a_small_folder_is_neither_learnt_by_heart_nor_asked_for_larger_batches_than_it_holds() -> None:
    recipe = limited(load_recipe("llm2vec-tiny"), folder_of(10, sentences=40), MEASURED)
    mntp, simcse = recipe.stages
    chunks = 10 * 1000 * 0.25 / 128
    assert mntp.batch_queries <= chunks
    assert mntp.steps * mntp.batch_queries <= MOST_EPOCHS * chunks + mntp.batch_queries
    assert (simcse.batch_queries, simcse.steps) == (40, MOST_EPOCHS)
    retrieval = limited(load_recipe("tiny"), folder_of(10, train_pairs=64), MEASURED).stages[0]
    assert (retrieval.batch_queries, retrieval.steps) == (32, 2 * MOST_EPOCHS)
    assert retrieval.warmup_steps < 2


def test_what_is_compared_and_indexed_depends_on_the_time() -> None:
    folder, recipe = folder_of(30_000, pairs=800), load_recipe("llm2vec-tiny")
    short, long = (sizes_for(recipe, folder, MEASURED, 60 * minutes, systems=4) for minutes in (2, 120))
    assert FEWEST["pairs"] <= short.pairs < long.pairs == 800
    assert FEWEST["distractors"] <= short.distractors < long.distractors == 9000
    assert short.indexed < long.indexed == 33_000


def test_a_machine_that_became_slow_compares_less_but_hides_the_same_tokens() -> None:
    folder, recipe = folder_of(30_000, pairs=800), load_recipe("llm2vec-tiny")
    sizes = sizes_for(recipe, folder, MEASURED, 3600, systems=4)
    slow = replace(MEASURED, tokens_per_second=1000.0)
    assert shortened(sizes, recipe, MEASURED, 3600, systems=2) == sizes
    fewer = shortened(sizes, recipe, slow, 600, systems=2)
    assert fewer.chunks == sizes.chunks
    assert encoding_seconds(recipe, replace(fewer, chunks=0), slow, 2) <= 600
    least = shortened(sizes, recipe, slow, -10, systems=2)
    assert (least.pairs, least.distractors) == (FEWEST["pairs"], FEWEST["distractors"])


def test_stages_share_what_is_left_by_what_they_read() -> None:
    folder, recipe = folder_of(20_000, pairs=200), load_recipe("tiny")
    sizes = Sizes(100, 500, 100, 0, 1000)
    seconds = seconds_of_stages(recipe, sizes, folder, MEASURED, seconds=300, left=250, systems=1)
    after = encoding_seconds(recipe, sizes, MEASURED, 1)
    assert sum(seconds.values()) == pytest.approx(250 - 20 - after)
    assert seconds["retrieval"] > 2 * seconds["generalist"] > 0
    none = seconds_of_stages(recipe, sizes, folder, MEASURED, seconds=300, left=-5, systems=1)
    assert none == {"retrieval": 0.0, "generalist": 0.0}, "the fewest steps, then"


def test_a_cut_of_what_was_encoded_is_a_cut_of_what_was_asked() -> None:
    folder = folder_of(400, pairs=50)
    held_out = held_out_of(folder, Sizes(40, 300, 30, 0, 0), seed=1)
    assert held_out.pairs != folder.pairs[:40], "drawn, not the first"
    smaller = Sizes(10, 20, 5, 0, 0)
    assert held_out.cut(smaller) == held_out_of(folder, smaller, seed=1)
    encoded = encoded_as(np.arange(40.0)[:, None], np.arange(40.0)[:, None])
    assert encoded.cut(smaller).documents.ravel().tolist() == [*range(10)]


def choose(base: str | None, name: str | None = None, overrides: tuple[str, ...] = ()) -> tuple[Recipe, str]:
    said = io.StringIO()
    recipe = choose_recipe(base, name, overrides, seed=3, device="cpu", console=Console(file=said, width=200))
    return recipe, said.getvalue()


def test_the_bundled_decoder_has_its_own_recipe() -> None:
    for base in (None, "embedforge:base"):
        recipe, _ = choose(base)
        assert (recipe.name, recipe.model.base, recipe.seed) == ("llm2vec-tiny", "embedforge:base", 3)
        sources = [stage.mix.sources[0].path for stage in with_sources(recipe, parts=True).stages]
        assert sources == ["texts.jsonl", "sentences.jsonl"]


def test_another_base_gets_the_settings_of_the_paper_within_its_context(tiny_base: Path) -> None:
    recipe, said = choose(str(tiny_base))
    assert recipe.model.adapter is not None
    assert recipe.contract.max_tokens == 256, "the context of this base"
    assert "mask token '_'" in said, "it is said aloud"
    recipe, _ = choose(str(tiny_base), overrides=('stages.mntp.objective.mask_token="eos"',))
    assert recipe.stages[0].objective.mask_token == "eos", "--set has the last word"


def test_a_named_recipe_is_taken_as_it_stands(tiny_base: Path) -> None:
    recipe, _ = choose(str(tiny_base), "llm2vec-tiny")
    assert (recipe.model.base, recipe.model.adapter) == (str(tiny_base), None)
    assert recipe.stages[0].objective.mask_token == "<mask>"


def test_objectives_decide_which_files_are_the_sources() -> None:
    recipe, _ = choose(None, "tiny")
    retrieval, generalist = with_sources(recipe, parts=True).stages
    assert [source.path for source in retrieval.mix.sources] == [RETRIEVAL_FILE]
    assert retrieval.mix.sources[0].instruction == recipe.contract.default_instruction != ""
    assert [source.path for source in generalist.mix.sources] == [RETRIEVAL_FILE, PARTS_FILE]
    assert (generalist.mix.sources[1].symmetric, generalist.mix.sources[1].in_batch_negatives) == (
        True,
        False,
    )
    assert len(with_sources(recipe, parts=False).stages[1].mix.sources) == 1


def pairs_of(*files: str) -> list[Pair]:
    return [
        Pair(f"{file}#{n}", f"query {file} {n}", f"code {file} {n}", "description", f"{file}.py", "", n)
        for file in files
        for n in range(5)
    ]


def test_texts_of_a_part_are_paired_and_contrasted_with_those_of_others() -> None:
    pairs = pairs_of("a", "b", "c", "d")
    examples = part_examples(pairs, seed=0, n_negatives=2)
    assert len(examples) == 20
    for pair, example in zip(pairs, examples, strict=True):
        assert example.query in {pair.query, pair.document}
        assert example.positives[0] != example.query
        texts = [text.split() for text in (example.query, *example.positives, *example.negatives)]
        assert len({form for form, *_ in texts}) == 1, "all queries or all documents"
        own, positive, *negatives = (part for _, part, _ in texts)
        assert own == positive
        assert own not in negatives
        assert len(negatives) == len(set(negatives)) == 2
        assert example.symmetric
        assert not example.in_batch_negatives
    assert examples == part_examples(pairs, seed=0, n_negatives=2)
    assert part_examples(pairs[:5], seed=0) == []


def test_every_question_gets_negatives_that_are_no_answer(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(60)]
    pairs = [
        Pair(str(n), f"{one} {two}", f"{one} and {two} at {three}", "heading", f"{n}.md", "", 0)
        for n, (one, two, three) in enumerate(zip(words[:40], words[1:], words[5:], strict=False))
    ]
    lonely = Pair("x", "nothing shared", "all other terms", "heading", "x.md", "", 0)
    assert write_training_data(tmp_path, [*pairs, lonely], code=False, seed=0) is False, "a pair a file"
    rows = [json.loads(line) for line in (tmp_path / RETRIEVAL_FILE).read_text().splitlines()]
    assert [row["query"] for row in rows] == [pair.query for pair in (*pairs, lonely)]
    assert all(1 <= len(row["negatives"]) <= 4 for row in rows)
    negatives = [[negative["text"] for negative in row["negatives"]] for row in rows]
    assert not any(row["positives"][0]["text"] in texts for row, texts in zip(rows, negatives, strict=True))
    assert pairs[1].document in negatives[0], "it shares a word, and scores below the answer"
    assert len(rows[-1]["negatives"]) == 4, "drawn by chance"
    assert not (tmp_path / "mining").exists()


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        (["_", "<mask>"], "_"),
        (["<mask>"], "<mask>"),
        (["[MASK]"], "[MASK]"),
        ([], "eos"),
    ],
)
def test_the_mask_is_an_underscore_else_made_for_it_else_eos(vocabulary: list[str], expected: str) -> None:
    entries = {name: row for row, name in enumerate(["</s>", "<unk>", *vocabulary])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(entries, unk_token="<unk>")), eos_token="</s>"
    )
    assert pick_mask_token(tokenizer, len(entries)) == expected
    assert pick_mask_token(tokenizer, 2) == "eos", "an entry without a row in the embeddings does not count"


def test_the_decoder_as_it_came_is_causal_and_the_systems_follow_the_stages(tiny_base: Path) -> None:
    recipe = load_recipe("llm2vec-unsup", [f"model.base={tiny_base}"])
    causal = as_it_came(recipe)
    assert (causal.contract.attention, causal.contract.pooling) == ("causal", "weighted_mean")
    assert causal.model.adapter is None
    assert causal.contract.query_prefix() == causal.contract.chat_frame()[0], "no instruction"
    assert names(recipe) == [AS_IT_CAME, UNTRAINED, "after mntp", TRAINED]
    assert names(load_recipe("tiny")) == [AS_IT_CAME, TRAINED]


def names(recipe: Recipe) -> list[str]:
    return [*untrained_systems(recipe, "cpu"), *trained_systems(recipe, Path(), "cpu")]


def test_what_was_read_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(60):
        text = "\n\n".join(
            f"## Part {number} of {row}\n\nIt is the {number * 7 + row}th text, on the matter of {row}. "
            f"It goes on for a while, on {number + row} other things, and then it ends at {row * number}."
            for row in range(8)
        )
        (folder / f"{number}.md").write_text(f"# On {number}\n\n{text}\n", encoding="utf-8")

    def read() -> Folder:
        return read_texts(tmp_path / "data", folder, max_tokens=64, minutes=1.0, seed=0)

    first = read()
    assert read() == first
    (tmp_path / "data" / "pairs.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(
        EmbedforgeError, match=r"pairs\.jsonl: this is not what the run has written.*--restart"
    ):
        read()


# --- figures ---------------------------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def encoded_as(beginnings: np.ndarray, ends: np.ndarray, **settings: Any) -> Encoded:
    rows = len(beginnings)
    return Encoded(
        **{
            "queries": beginnings,
            "answers": ends,
            "distractors": ends[:0],
            "beginnings": beginnings,
            "ends": ends,
            "losses": np.full(rows, 3.0),
            "predictions": np.full(rows, 2, dtype=np.int64),
            **settings,
        }
    )


def test_alignment_is_the_squared_distance_of_unit_vectors() -> None:
    draw = np.random.default_rng(0)
    one, other = unit(draw.normal(size=(5, 8))), unit(draw.normal(size=(5, 8)))
    np.testing.assert_allclose(
        alignment(encoded_as(one, other)), 2 - 2 * (one * other).sum(axis=1), atol=1e-6
    )


def test_the_own_half_is_nearest_where_both_are_one_and_as_near_as_any_where_all_are() -> None:
    corners, point = np.eye(12, dtype=np.float32), np.ones((12, 4), np.float32) / 2
    np.testing.assert_array_equal(own_half_nearer(encoded_as(corners, corners)), 1)
    np.testing.assert_array_equal(own_half_nearer(encoded_as(corners, np.roll(corners, 1, axis=0))), 10 / 22)
    np.testing.assert_array_equal(own_half_nearer(encoded_as(point, point)), 0.5)


def test_uniformity_is_zero_in_one_point_and_falls_as_texts_spread() -> None:
    point = np.ones((40, 4), np.float32) / 2
    np.testing.assert_allclose(uniformity(point, 0), 0, atol=1e-6)
    corners = np.eye(40, dtype=np.float32)
    np.testing.assert_allclose(uniformity(corners, 0), -4, atol=1e-6, err_msg="all at squared distance 2")
    narrow, wide = (unit(np.random.default_rng(0).normal(size=(200, 16)) + shift) for shift in (3.0, 0.0))
    assert uniformity(wide, 0).mean() < uniformity(narrow, 0).mean() < 0


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    pairs = [
        Pair(
            f"p{n}", f"asks for number {n}", f"answers alpha{n}", "cloze" if n % 2 else "heading", "f", "", n
        )
        for n in range(40)
    ]
    return HeldOut(pairs, [], [(f"begin {n}", f"end {n}") for n in range(40)], ["text"])


@pytest.fixture(scope="module")
def systems() -> dict[str, Encoded]:
    """The adapted model finds everything; the others nothing but by chance."""
    draw = np.random.default_rng(0)
    vectors = unit(draw.normal(size=(40, 16)))
    chance = [
        encoded_as(unit(draw.normal(size=(40, 16))), unit(draw.normal(size=(40, 16)))) for _ in range(3)
    ]
    before = [replace(one, losses=np.linspace(8.0, 10.0, 40)) for one in chance[:2]]
    trained = replace(chance[2], losses=np.linspace(5.0, 6.0, 40))
    found = encoded_as(vectors, vectors, losses=np.linspace(6.0, 7.0, 40))
    return {AS_IT_CAME: before[0], UNTRAINED: before[1], "after mntp": trained, TRAINED: found}


def test_questions_are_scored_by_kind_and_paired_with_every_system(
    held_out: HeldOut, systems: dict[str, Encoded]
) -> None:
    figures = figures_of(held_out, systems, after_mntp="after mntp", seed=0)
    assert figures.questions == {"all": 40, "heading": 20, "cloze": 20}
    for kind in ("all", "heading", "cloze"):
        assert figures.retrieval[kind]["ndcg@10"].values[TRAINED].mean == 1.0
    assert figures.retrieval["cloze"]["ndcg@10"].changes[UNTRAINED].n == 20


def test_the_loss_is_a_mean_over_hidden_tokens_with_chunks_resampled(
    held_out: HeldOut, systems: dict[str, Encoded]
) -> None:
    predictions = np.arange(1, 41)
    uneven = {
        name: replace(one, losses=one.losses * predictions, predictions=predictions)
        for name, one in systems.items()
    }
    figures = figures_of(held_out, uneven, after_mntp="after mntp", seed=0)
    assert figures.loss is not None
    losses = uneven[UNTRAINED].losses
    assert figures.loss.values[UNTRAINED].mean == pytest.approx(losses.sum() / predictions.sum())
    tokens = np.repeat(losses / predictions, predictions)
    alone = bootstrap_interval(tokens)
    assert figures.loss.values[UNTRAINED].high - figures.loss.values[UNTRAINED].low > alone.high - alone.low
    assert figures.loss.changes[UNTRAINED].difference < 0 < -figures.loss.changes[TRAINED].difference


def test_the_sentences_say_what_got_better_and_what_did_not(
    held_out: HeldOut, systems: dict[str, Encoded]
) -> None:
    figures = figures_of(held_out, systems, after_mntp="after mntp", seed=0)
    good = {line.text: line.tone for line in findings(figures)}
    assert sum(tone == "good" for tone in good.values()) >= 4
    assert any("raised that loss again, by 0.500" in text for text in good)
    assert any("in the stages after mntp rose" in text for text in good)
    swapped = {**systems, TRAINED: systems[AS_IT_CAME], AS_IT_CAME: systems[TRAINED]}
    bad = findings(figures_of(held_out, swapped, after_mntp=TRAINED, seed=0))
    assert any("Training did not make retrieval better" in line.text for line in bad)
    assert any("fell by" in line.text and line.tone == "bad" for line in bad)


def test_a_folder_without_questions_and_with_few_passages_still_has_a_report(
    systems: dict[str, Encoded],
) -> None:
    nothing = np.empty((0, 0), np.float32)
    few = {
        name: replace(
            one,
            queries=nothing,
            answers=nothing,
            distractors=nothing,
            beginnings=one.beginnings[:3],
            ends=one.ends[:3],
        )
        for name, one in systems.items()
    }
    figures = figures_of(HeldOut([], [], [("a", "b")] * 3, ["text"]), few, seed=0)
    assert FEWEST_HALVES > 3
    assert (figures.retrieval, figures.alignment) == ({}, None)
    assert any("retrieval was not measured" in line.text for line in findings(figures))


def test_passages_are_cut_where_a_sentence_ends_near_the_middle() -> None:
    text = "It is a short one, all told. Here is the second sentence of it. And a third one that ends it."
    chunks = [
        Chunk(text, "a.md", "line 1", (), "prose", 0),
        Chunk("Too short to be cut.", "b.md", "line 1", (), "prose", 0),
    ]
    folder = Folder([], [], chunks, [], [], {})
    (cut,) = held_out_of(folder, Sizes(0, 0, 10, 0, 0), 0).halves
    assert " ".join(cut) == text
    assert cut[0].endswith("of it.") or cut[0].endswith("told.")
    assert math.isclose(len(cut[0]), len(cut[1]), rel_tol=1.0)


def test_answers_are_clustered_by_the_part_they_come_from() -> None:
    pairs = pairs_of("a", "b", "c", "d", "e")
    rows, labels = clustered(HeldOut(pairs, [], [], []))
    assert rows == list(range(25))
    assert labels[:6] == ["a.py"] * 5 + ["b.py"]
    assert clustered(HeldOut(pairs[:5], [], [], [])) == ([], []), "one part"
    centres = np.repeat(np.eye(5, 16), 5, axis=0)
    found = encoded_as(unit(centres + 0.01), unit(centres))
    chance = encoded_as(unit(centres), unit(np.random.default_rng(0).normal(size=(25, 16))))
    figures = figures_of(HeldOut(pairs, [], [], []), {AS_IT_CAME: chance, TRAINED: found}, seed=0)
    assert figures.parts == 5
    assert figures.clustering is not None
    assert figures.clustering.values[TRAINED].mean > 0.95
    assert figures.clustering.changes[AS_IT_CAME].is_real


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        (["Guide > Purpose", "Guide > How to delete a folder"], "How to delete a folder"),
        (["Guide > Purpose", "End"], "Purpose"),
        ([], ""),
    ],
)
def test_the_search_that_is_suggested_has_some_words(queries: list[str], expected: str) -> None:
    pairs = [
        Pair(str(row), query, "text", "heading", "a.md", "a.md", row) for row, query in enumerate(queries)
    ]
    assert HeldOut(pairs, [], [], []).question == expected


def test_the_table_fits_a_terminal_of_80_columns(held_out: HeldOut, systems: dict[str, Encoded]) -> None:
    figures = figures_of(held_out, systems, after_mntp="after mntp", seed=0)
    console = Console(width=80, file=io.StringIO())
    console.print(terminal_table({"systems": list(systems), **figures.as_json()}))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "[" in next(line for line in text.splitlines() if UNTRAINED in line)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("query", "meant", "low", "high"),
    [
        ("what is word{}", 0, 0.5, 0.5),  # both sides are right
        ("same question", 0, 0.5, 0.5),  # words say nothing, and take nothing away
        ("word{} same question", 1, 0.5, 0.5),  # meaning is sure of another, and words lead by more
        ("wrong{}", 0, 0.6, 1),  # words are
    ],
)
def test_an_index_is_searched_with_equal_weights_unless_others_are_better_for_certain(
    query: str, meant: int, low: float, high: float
) -> None:
    random = np.random.default_rng(0)
    pairs = [
        Pair(
            str(n), query.format(n), f"word{n} same question wrong{(n + 1) % 60}", "heading", f"{n}.md", "", n
        )
        for n in range(60)
    ]
    answers = random.standard_normal((60, 8)).astype(np.float32)
    queries = np.roll(answers, meant, axis=0)
    nothing = np.empty((0, 8), np.float32)
    trained = Encoded(queries, answers, nothing, nothing, nothing, np.empty(0), np.empty(0, np.int64))
    mode, share = best_mode(HeldOut(pairs, [], [], []), trained, seed=0)
    if mode != "fused":
        share = float(mode == "dense")
    assert low <= share <= high


def test_the_weight_of_meaning_that_is_reported_was_chosen_by_other_questions() -> None:
    """Meaning is right for the even questions and words for the odd ones; each is ranked by the other's."""
    right = np.arange(40)[:, None]
    wrong = (right + np.arange(1, 13)) % 40
    first = np.concatenate([right, wrong], axis=1)
    last = np.concatenate([wrong, right], axis=1)
    scores = np.tile(np.linspace(2, 1, 13, dtype=np.float32), (40, 1))
    even = np.arange(40)[:, None] % 2 == 0
    meaning = Ranked(np.where(even, first, last), scores)
    words = Ranked(np.where(even, last, first), scores)
    fused = cross_fused(words, meaning, seed=0)
    assert ndcg(fused.indices).max() < 1


def test_the_better_of_base_and_result_is_kept(held_out: HeldOut, systems: dict[str, Encoded]) -> None:
    """A training that made nothing better than its base is said to, and the base is the model."""
    assert better_of(held_out, systems, seed=0) == Kept(TRAINED, gained=True)
    swapped = {**systems, TRAINED: systems[AS_IT_CAME], AS_IT_CAME: systems[TRAINED]}
    worse = better_of(held_out, swapped, seed=0)
    assert worse == Kept(AS_IT_CAME, gained=False)
    assert "What training made is in run/model" in worse.verdict
    alike = better_of(held_out, {**systems, TRAINED: systems[AS_IT_CAME]}, seed=0)
    assert alike == Kept(AS_IT_CAME, gained=False)
    student = better_of(held_out, {**swapped, ACROSS: systems[TRAINED]}, seed=0)
    assert student.system == AS_IT_CAME, "no better than its base, in its teacher's vectors neither"
    before = systems[AS_IT_CAME]
    queries = before.queries.copy()
    queries[0] = before.answers[0]
    by_chance = better_of(held_out, {**systems, TRAINED: replace(before, queries=queries)}, seed=0)
    assert by_chance == Kept(TRAINED, gained=False)
    assert "chance may explain" in by_chance.verdict


@pytest.mark.parametrize("system", [TRAINED, AS_IT_CAME])
def test_the_kept_model_loads_and_the_other_stays(
    system: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = choose(str(tiny_base), "tiny", ("contract.max_tokens=96",))
    trained = prepare_model(recipe, "cpu")
    embedforge.save(trained, tmp_path / "run" / "model", recipe.model_dump(mode="json"))
    folder = keep_model(tmp_path, system, recipe)
    assert folder == model_of(tmp_path) == tmp_path / "model"
    model = embedding_model(embedforge.load(folder, "cpu"))
    assert model.contract.pooling == ("latent" if system == TRAINED else "weighted_mean")
    assert (tmp_path / "run" / "model" / "contract.json").exists()
    monkeypatch.setattr("embedforge.prove.keep.save", None)
    assert keep_model(tmp_path, system, recipe) == folder, "made once"
