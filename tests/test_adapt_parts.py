"""The parts of adapt: which recipe a base gets, what fits the time, and what the figures mean."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedforge.adapt.figures import FEWEST_HALVES, alignment, figures_of, own_half_nearer, uniformity
from embedforge.adapt.held_out import HeldOut, held_out_of
from embedforge.adapt.plan import FEWEST_STEPS, MOST_EPOCHS, Measured, Sizes, fit
from embedforge.adapt.settings import choose_recipe, pick_mask_token
from embedforge.adapt.systems import ADAPTED, AS_IT_CAME, UNTRAINED, Seen, as_it_came, system_names
from embedforge.adapt.texts import read_texts
from embedforge.adapt.verdicts import verdicts
from rich.console import Console
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from embedforge.documents import Chunk, Folder, Pair
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, load_recipe
from embedforge.statistics import bootstrap_interval

MEASURED = Measured(
    tokens_per_second=10_000.0, query=10.0, passage=100.0, sentence=30.0, tokens_per_character=0.25
)


def folder_of(passages: int, sentences: int = 10_000, pairs: int = 0) -> Folder:
    """Passages of 1,000 characters."""
    chunks = [Chunk("word " * 200, f"f{n}", "", (), "prose", 0) for n in range(passages)]
    asked = [Pair(f"p{n}", f"question {n}", f"answer {n}", "heading", f"f{n}", "", 0) for n in range(pairs)]
    held_out = [Chunk("word " * 200, f"h{n}", "", (), "prose", 0) for n in range(passages // 10)]
    others = [f"another {n}" for n in range(9000)]
    return Folder(chunks, [f"s{n}" for n in range(sentences)], held_out, [], asked, others, {})


def fitted(recipe: Recipe, folder: Folder, minutes: float) -> tuple[Recipe, Sizes]:
    return fit(recipe, folder, MEASURED, seconds=60 * minutes, left=60 * minutes)


def test_more_minutes_give_more_steps_up_to_the_recipe_in_its_proportion() -> None:
    recipe = load_recipe("llm2vec-tiny", ["stages.mntp.steps=400", "stages.simcse.steps=200"])
    steps = [
        [stage.steps for stage in fitted(recipe, folder_of(20_000), minutes)[0].stages]
        for minutes in (3.0, 6.0, 12.0, 1000.0)
    ]
    for mntp, simcse in steps:
        assert mntp == pytest.approx(2 * simcse, abs=1)
    assert steps[0] < steps[1] < steps[2] <= steps[3] == [400, 200]


def test_the_warm_up_is_shortened_with_its_stage() -> None:
    recipe, _ = fitted(load_recipe("llm2vec-tiny"), folder_of(20_000), 4.0)
    for stage in recipe.stages:
        assert stage.warmup_steps < stage.steps / 4


def test_without_time_every_stage_still_has_a_few_steps() -> None:
    recipe, _ = fitted(load_recipe("llm2vec-tiny"), folder_of(20_000), 0.01)
    assert [stage.steps for stage in recipe.stages] == [FEWEST_STEPS] * 2


def test_a_small_folder_is_neither_learnt_by_heart_nor_asked_for_larger_batches_than_it_holds() -> None:
    recipe, _ = fitted(load_recipe("llm2vec-tiny"), folder_of(10, sentences=40), 1000.0)
    mntp, simcse = recipe.stages
    chunks = 10 * 1000 * 0.25 / 128
    assert mntp.batch_queries <= chunks
    assert mntp.steps * mntp.batch_queries <= MOST_EPOCHS * chunks + mntp.batch_queries
    assert (simcse.batch_queries, simcse.steps) == (40, MOST_EPOCHS)


def test_what_is_compared_and_indexed_depends_on_the_time() -> None:
    folder = folder_of(30_000, pairs=800)
    short, long = (fitted(load_recipe("llm2vec-tiny"), folder, minutes)[1] for minutes in (2.0, 60.0))
    assert 100 <= short.pairs < long.pairs == 800
    assert 500 == short.distractors < long.distractors == 9000
    assert short.indexed < long.indexed == 33_000


def choose(base: str | None, name: str | None = None, overrides: tuple[str, ...] = ()) -> tuple[Recipe, str]:
    said = io.StringIO()
    recipe = choose_recipe(base, name, overrides, seed=3, device="cpu", console=Console(file=said, width=200))
    return recipe, said.getvalue()


def test_the_bundled_decoder_has_its_own_recipe() -> None:
    for base in (None, "embedforge:base"):
        recipe, _ = choose(base)
        assert (recipe.name, recipe.model.base, recipe.seed) == ("llm2vec-tiny", "embedforge:base", 3)
        assert [stage.mix.sources[0].path for stage in recipe.stages] == ["texts.jsonl", "sentences.jsonl"]


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


def test_a_recipe_that_needs_pairs_is_refused() -> None:
    with pytest.raises(EmbedforgeError, match=r"'retrieval'.*contrastive needs pairs.*quickstart"):
        choose(None, "tiny")


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


def test_the_decoder_as_it_came_is_causal_and_the_systems_follow_the_stages() -> None:
    recipe = load_recipe("llm2vec-unsup")
    causal = as_it_came(recipe)
    assert (causal.contract.attention, causal.contract.pooling) == ("causal", "weighted_mean")
    assert causal.model.adapter is None
    assert system_names(recipe) == [AS_IT_CAME, UNTRAINED, "after mntp", ADAPTED]


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
    (folder / "0.md").unlink()
    assert read() == first
    (tmp_path / "data" / "pairs.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(EmbedforgeError, match=r"pairs\.jsonl: cannot be read .* run again"):
        read()


# --- figures ---------------------------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def seen_as(beginnings: np.ndarray, ends: np.ndarray, **settings: Any) -> Seen:
    rows = len(beginnings)
    return Seen(
        **{
            "queries": beginnings,
            "documents": ends,
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
    np.testing.assert_allclose(alignment(seen_as(one, other)), 2 - 2 * (one * other).sum(axis=1), atol=1e-6)


def test_the_own_half_is_nearest_where_both_are_one_and_as_near_as_any_where_all_are() -> None:
    corners, point = np.eye(12, dtype=np.float32), np.ones((12, 4), np.float32) / 2
    np.testing.assert_array_equal(own_half_nearer(seen_as(corners, corners)), 1)
    np.testing.assert_array_equal(own_half_nearer(seen_as(corners, np.roll(corners, 1, axis=0))), 10 / 22)
    np.testing.assert_array_equal(own_half_nearer(seen_as(point, point)), 0.5)


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
def systems() -> dict[str, Seen]:
    """The adapted model finds everything; the others nothing but by chance."""
    draw = np.random.default_rng(0)
    vectors = unit(draw.normal(size=(40, 16)))
    chance = [seen_as(unit(draw.normal(size=(40, 16))), unit(draw.normal(size=(40, 16)))) for _ in range(3)]
    before = [replace(one, losses=np.linspace(8.0, 10.0, 40)) for one in chance[:2]]
    trained = replace(chance[2], losses=np.linspace(5.0, 6.0, 40))
    found = seen_as(vectors, vectors, losses=np.linspace(6.0, 7.0, 40))
    return {AS_IT_CAME: before[0], UNTRAINED: before[1], "after mntp": trained, ADAPTED: found}


def test_questions_are_scored_by_kind_and_paired_with_every_system(
    held_out: HeldOut, systems: dict[str, Seen]
) -> None:
    figures = figures_of(held_out, systems, after_mntp="after mntp", seed=0)
    assert figures.questions == {"all": 40, "heading": 20, "cloze": 20}
    for kind in ("all", "heading", "cloze"):
        assert figures.retrieval[kind]["ndcg@10"].values[ADAPTED].mean == 1.0
    assert figures.retrieval["cloze"]["ndcg@10"].changes[UNTRAINED].n == 20


def test_the_loss_is_a_mean_over_hidden_tokens_with_chunks_resampled(
    held_out: HeldOut, systems: dict[str, Seen]
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
    assert figures.loss.changes[UNTRAINED].difference < 0 < -figures.loss.changes[ADAPTED].difference


def test_the_sentences_say_what_got_better_and_what_did_not(
    held_out: HeldOut, systems: dict[str, Seen]
) -> None:
    figures = figures_of(held_out, systems, after_mntp="after mntp", seed=0)
    good = {line.text: line.tone for line in verdicts(figures)}
    assert sum(tone == "good" for tone in good.values()) >= 4
    assert any("raised that loss again, by 0.500" in text for text in good)
    assert any("in the stages after mntp rose" in text for text in good)
    swapped = {**systems, ADAPTED: systems[AS_IT_CAME], AS_IT_CAME: systems[ADAPTED]}
    bad = verdicts(figures_of(held_out, swapped, after_mntp=ADAPTED, seed=0))
    assert any("Training did not make retrieval better" in line.text for line in bad)
    assert any("fell by" in line.text and line.tone == "bad" for line in bad)


def test_a_folder_without_questions_and_with_few_passages_still_has_a_report(
    systems: dict[str, Seen],
) -> None:
    nothing = np.empty((0, 0), np.float32)
    few = {
        name: replace(
            one, queries=nothing, documents=nothing, beginnings=one.beginnings[:3], ends=one.ends[:3]
        )
        for name, one in systems.items()
    }
    figures = figures_of(HeldOut([], [], [("a", "b")] * 3, ["text"]), few, seed=0)
    assert FEWEST_HALVES > 3
    assert (figures.retrieval, figures.alignment) == ({}, None)
    assert any("retrieval was not measured" in line.text for line in verdicts(figures))


def test_passages_are_cut_where_a_sentence_ends_near_the_middle() -> None:
    text = "It is a short one, all told. Here is the second sentence of it. And a third one that ends it."
    chunks = [
        Chunk(text, "a.md", "line 1", (), "prose", 0),
        Chunk("Too short to be cut.", "b.md", "line 1", (), "prose", 0),
    ]
    folder = Folder([], [], chunks, [], [], [], {})
    (cut,) = held_out_of(folder, Sizes(0, 0, 10, 0, 0), 0).halves
    assert " ".join(cut) == text
    assert cut[0].endswith("of it.") or cut[0].endswith("told.")
    assert math.isclose(len(cut[0]), len(cut[1]), rel_tol=1.0)
