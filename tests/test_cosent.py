"""Scored pairs: CoSENT against its definition, in sums and micro-batches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedforge.data.example import Example
from embedforge.data.fields import example_of, record_of
from embedforge.data.mixture import fingerprint
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError
from embedforge.objectives.cosent import cosent
from embedforge.recipe import Recipe
from embedforge.train.run import train
from stages_for_tests import COMMON, begin, gradients, recipe_of
from training_for_tests import WORDS, logged, write_pairs


def test_the_loss_is_its_definition_in_float64() -> None:
    chance = np.random.default_rng(0)
    one, other = chance.standard_normal((2, 9, 5))
    scores, groups = chance.integers(0, 4, 9).astype(float), ["a"] * 5 + ["b"] * 4
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    total = 1.0
    for i in range(9):
        for j in range(9):
            if scores[i] > scores[j] and groups[i] == groups[j]:
                total += np.exp((cosines[j] - cosines[i]) / 0.1)
    found = cosent(*map(torch.tensor, (one, other, scores)), groups, 0.1)
    assert float(found) == pytest.approx(np.log(total), rel=1e-12)
    assert float(cosent(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2), ["a", "a"], 0.1)) == 0


def write_scored(path: Path, rows: int = 24) -> Path:
    """Pairs of two words each; the score is how many they share."""
    chance = np.random.default_rng(0)
    lines = []
    for row in range(rows):
        one, other = (list(chance.choice(WORDS, 2, replace=False)) for _ in range(2))
        score = len({*one} & {*other}) + row / 100  # no two alike: any step has something to rank
        lines.append({"sentence1": " ".join(one), "sentence2": " ".join(other), "score": score})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def scored_recipe(base: Path, folder: Path, objective: dict[str, Any], pairs: bool = True) -> Recipe:
    write_pairs(folder / "pairs.jsonl")
    scored = {"path": str(write_scored(folder / "sts.jsonl")), "kind": "scored_pairs", "threshold": None}
    sources = [scored] + [{"path": str(folder / "pairs.jsonl")}] * pairs
    stage = {"name": "s", **COMMON, "batch_queries": 12, "negatives": 1, "objective": objective}
    return recipe_of(base, stage | {"mix": {"sources": sources}, "tokens_per_micro_batch": 100_000})


SUM = {
    "kind": "sum",
    "terms": [{"kind": "contrastive", "in_batch": "all"}, {"kind": "cosent", "weight": 0.5}],
}


def test_the_gradient_of_a_sum_is_the_same_for_every_micro_batch_and_cosent_is_part_of_it(
    tiny_base: Path, tmp_path: Path
) -> None:
    _, work = begin(scored_recipe(tiny_base, tmp_path, SUM), dtype=torch.float64)
    found = []
    for tokens in (100_000, 40, 1):
        work.tokens_per_micro_batch = tokens
        found.append(gradients(work))
    for other in found[1:]:
        for name, whole in found[0].items():
            assert float((other[name] - whole).norm() / whole.norm()) < 1e-4, name
    figures = work.step(work.module, 0)
    rows = np.array(figures.sources)
    losses = np.array(figures.losses)
    assert set(rows) == {"sts", "pairs"}
    assert figures.terms["cosent"] > 0
    shared = 0.5 * figures.terms["cosent"]
    assert losses[rows == "sts"] == pytest.approx(shared, rel=1e-4)  # no InfoNCE of a pair that is no answer
    assert (losses[rows == "pairs"] > shared).all()


def test_cosent_alone_is_trained_and_matryoshka_takes_it(tiny_base: Path, tmp_path: Path) -> None:
    objective = {"kind": "matryoshka", "dims": [8], "objective": {"kind": "cosent"}}
    recipe = scored_recipe(tiny_base, tmp_path, objective, pairs=False)
    stage = recipe.stages[0].model_copy(update={"steps": 8, "batch_queries": 24})
    train(recipe.model_copy(update={"stages": (stage,)}), tmp_path / "run", quiet=True)
    losses = logged(tmp_path / "run", "loss")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("objective", "threshold", "message"),
    [
        (
            {"kind": "contrastive"},
            None,
            "its pairs have scores, which objective 'contrastive' does not learn",
        ),
        ({"kind": "cosent"}, 1.0, "cosent learns from pairs with scores, and no source has any"),
    ],
)
def test_scores_and_objective_have_to_fit(
    tiny_base: Path, tmp_path: Path, objective: dict[str, Any], threshold: float | None, message: str
) -> None:
    values = scored_recipe(tiny_base, tmp_path, objective, pairs=False).model_dump(mode="json")
    values["stages"][0]["mix"]["sources"][0]["threshold"] = threshold
    with pytest.raises(EmbedforgeError, match=message):
        train(Recipe.model_validate(values), tmp_path / "run", quiet=True)


def test_an_example_keeps_its_score_and_one_without_keeps_its_hash() -> None:
    scored = Example("a", ("b",), score=0.5)
    assert example_of(Record(record_of(scored), "f", 1)) == scored
    with pytest.raises(EmbedforgeError, match="'score' is that of the query with one positive"):
        example_of(Record({"query": "a", "positives": ["b", "c"], "score": 1}, "f", 1))
    old = Example("a", ("b",), ("c",), "find", "s")
    assert fingerprint([old]) == "918c344da6c364d93b839e5463409b85"
    assert fingerprint([scored]) != fingerprint([Example("a", ("b",), score=0.6)])
