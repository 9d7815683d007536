"""The parts of quickstart: the time it plans with, the comparison, and what it prints."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from embedforge.quickstart.budget import (
    AFTERWARDS,
    FEWEST_STEPS,
    RESERVE,
    TRAINING_COST,
    Speed,
    fit_steps,
    step_tokens,
)
from embedforge.quickstart.compare import BASE_LAST, BASE_MEAN, BM25, TRAINED, Comparison, compare
from embedforge.quickstart.examples import Pool
from embedforge.quickstart.page import terminal_table
from embedforge.quickstart.unit import Unit
from embedforge.recipe import Recipe, load_recipe

SPEED = Speed(
    seconds=16.0,
    tokens=160_000.0,
    query_tokens=np.array([20, 40, 60, 400]),
    document_tokens=np.array([50, 90, 130, 500]),
)


def planned_seconds(recipe: Recipe) -> float:
    tokens = sum(stage.steps * step_tokens(stage, SPEED) for stage in recipe.stages)
    return tokens * TRAINING_COST * SPEED.seconds / SPEED.tokens


def test_the_steps_fill_the_time_that_encoding_leaves() -> None:
    recipe = load_recipe("tiny")
    for seconds in (480.0, 960.0, 1920.0):
        left = seconds - AFTERWARDS * SPEED.seconds - RESERVE
        assert 0.9 * left < planned_seconds(fit_steps(recipe, SPEED, seconds)) <= left


def test_a_text_counts_no_more_tokens_than_its_stage_reads() -> None:
    (stage, _) = load_recipe(
        "tiny", ["stages.0.query_max_tokens=50", "stages.0.document_max_tokens=100"]
    ).stages
    documents = stage.batch_queries * (1 + stage.negatives) * (50 + 90 + 100 + 100) / 4
    assert step_tokens(stage, SPEED) == stage.batch_queries * (20 + 40 + 50 + 50) / 4 + documents


def test_stages_keep_their_proportion_and_never_pass_the_recipe() -> None:
    recipe = load_recipe("tiny")
    fitted = fit_steps(recipe, SPEED, 300.0)
    shares = [short.steps / full.steps for short, full in zip(fitted.stages, recipe.stages, strict=True)]
    assert max(shares) - min(shares) < 0.01
    assert all(short.warmup_steps < short.steps / 4 for short in fitted.stages)
    assert fit_steps(recipe, SPEED, 1e6) == recipe


def test_without_time_every_stage_still_has_some_steps() -> None:
    assert [stage.steps for stage in fit_steps(load_recipe("tiny"), SPEED, 1.0).stages] == [FEWEST_STEPS] * 2


def unit_vectors(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Forty documents of four packages: `trained` finds them all, the untrained decoder by chance."""
    draw = np.random.default_rng(0)
    number = range(40)
    units = [
        Unit(f"f{n}:1", f"asks for number {n}", f"answers alpha{n}", f"f{n}", f"package{n % 4}", "section")
        for n in number
    ]
    pool = Pool(
        {unit.id: unit.query for unit in units},
        {unit.id: unit.document for unit in units},
        {unit.id: {unit.id} for unit in units},
    )
    clusters = draw.normal(size=(4, 32))
    exact = unit_vectors(np.stack([clusters[n % 4] for n in number]) + 0.3 * draw.normal(size=(40, 32)))
    chance = [unit_vectors(draw.normal(size=(40, 32))) for _ in range(4)]
    return compare(
        pool,
        units,
        {BASE_LAST: chance[0], BASE_MEAN: chance[1], TRAINED: exact},
        {BASE_LAST: chance[2], BASE_MEAN: chance[3], TRAINED: exact},
        is_code=False,
        seed=0,
    )


def test_a_model_that_finds_everything_is_shown_to_be_better(comparison: Comparison) -> None:
    assert comparison.retrieval[TRAINED]["ndcg@10"].mean == 1.0
    assert comparison.retrieval[BM25]["ndcg@10"].mean < 0.3, "query and document share no word"
    gain = comparison.gains[BASE_MEAN]
    assert gain.is_real
    assert gain.low > 0.5
    assert comparison.clustering[TRAINED].mean > 0.9
    assert comparison.clustering_gain is not None
    assert comparison.clustering_gain.is_real
    positives, negatives = comparison.pairs[TRAINED]
    assert positives.min() > np.median(negatives)
    assert len(negatives) <= 5 * len(positives)


def test_the_table_fits_a_terminal_of_80_columns(comparison: Comparison) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(terminal_table(comparison))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    row = next(line for line in text.splitlines() if BASE_MEAN in line)
    assert row.rstrip().endswith("]"), "the interval stands on the line of its system"
    assert "…" not in text
