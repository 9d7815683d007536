"""Several losses of one step: each against its definition, and the settings that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import normalize

from embedforge.data.example import Example
from embedforge.data.mixture import Mixture
from embedforge.data.step import Step
from embedforge.errors import EmbedforgeError
from embedforge.objectives.contrastive import info_nce
from embedforge.objectives.distill import relational_losses, target_losses
from embedforge.objectives.spread_out import spread_out
from embedforge.recipe import Stage, load_recipe, parse_recipe
from embedforge.train.contrastive import step_candidates
from embedforge.train.term_losses import Rows, TermVectors, strangers, term_losses
from embedforge.train.terms import TermsWork

WIDTH = 6


def stage_of(objective: dict[str, Any], *sources: dict[str, Any], **changes: Any) -> Stage:
    mix = {"sources": list(sources) or [{"path": "pairs.jsonl"}]}
    stage = {"name": "s", "steps": 3, "batch_queries": 4, "objective": objective, "mix": mix, **changes}
    return parse_recipe({"name": "r", "stages": [stage]}, "test").stages[0]


def examples(count: int, source: str = "pairs", **changes: Any) -> list[Example]:
    return [
        Example(f"q{n}", (f"p{n}",), tuple(f"n{n}.{m}" for m in range(n % 3)), source=source, **changes)
        for n in range(count)
    ]


def step_of(*sources: list[Example]) -> Step:
    by_name = {rows[0].source: rows for rows in sources}
    count = sum(map(len, sources))
    return Mixture(by_name, seed=0, batch_queries=count, negatives=2).step(0)


def seen(step: Step, stage: Stage, texts_alone: tuple[str, ...] = (), **changes: Any) -> TermVectors:
    """Random vectors, float64, for the texts of a step; all have targets."""
    rows = Rows.of(step, texts_alone)
    chance = torch.Generator().manual_seed(0)
    own, targets = (
        normalize(torch.randn(len(rows.kept), width, generator=chance, dtype=torch.float64), dim=-1)
        for width in (WIDTH, changes.pop("target_width", WIDTH))
    )
    everything = {"targets": targets, "has_target": torch.ones(len(own), dtype=torch.bool)}
    return TermVectors(step=step, stage=stage, world=1, rows=rows, own=own, **(everything | changes))


DISTILL = {"kind": "distill", "teacher": "t", "projection": "none"}


def test_a_sum_adds_its_terms_by_weight_and_a_contrastive_one_is_info_nce() -> None:
    terms = [
        {"temperature": 0.1, "in_batch": "all"},
        {**DISTILL, "weight": 2},
        {"kind": "spread_out", "weight": 0.5},
    ]
    stage, step = stage_of({"kind": "sum", "terms": terms}), step_of(examples(5))
    vectors = seen(step, stage)
    alone = stage_of(terms[0])
    expected = info_nce(
        vectors.own[:5],
        vectors.own[5:],
        torch.as_tensor(step.positive),
        step_candidates(step, alone, 1),
        0.1,
    ).mean()
    expected += 2 * target_losses(vectors.own, vectors.targets, "cosine").mean()
    sides = vectors.own[:5], vectors.own[5:][torch.as_tensor(step.positive)]
    expected += 0.5 * sum(spread_out(side, ~torch.eye(5, dtype=torch.bool)) for side in sides) / 2
    torch.testing.assert_close(term_losses(stage.objective, vectors).mean(), expected, rtol=0, atol=1e-12)


def test_distillation_is_the_mean_over_the_texts_that_have_targets() -> None:
    stage = stage_of({**DISTILL, "loss": "mse", "relational": 0.5, "relational_loss": "kl"})
    step = step_of(examples(5))
    has_target = torch.tensor(np.random.default_rng(0).random(len(step.texts)) < 0.6)
    vectors = seen(step, stage, has_target=has_target)
    own, targets = vectors.own[has_target], vectors.targets[has_target]
    expected = (
        target_losses(own, targets, "mse").mean() + 0.5 * relational_losses(own, targets, "kl", 0.05).mean()
    )
    losses = term_losses(stage.objective, vectors)
    assert losses.shape == (5,)
    torch.testing.assert_close(losses.mean(), expected, rtol=0, atol=1e-12)


def test_mapped_vectors_meet_the_targets_and_own_ones_the_similarities() -> None:
    stage = stage_of({"kind": "distill", "teacher": "t", "projection": "drop", "relational": 1})
    step = step_of(examples(5))
    mapped = normalize(torch.randn(len(step.texts), 9, dtype=torch.float64), dim=-1)
    vectors = seen(step, stage, target_width=9, mapped=mapped)
    expected = target_losses(mapped, vectors.targets, "cosine").mean()
    expected += relational_losses(vectors.own, vectors.targets, "mse", 1).mean()
    torch.testing.assert_close(term_losses(stage.objective, vectors).mean(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inner", [{"temperature": 0.1}, DISTILL], ids=["contrastive", "distill"])
def test_matryoshka_is_the_mean_over_the_lengths(inner: dict[str, Any]) -> None:
    stage = stage_of({"kind": "matryoshka", "dims": [2, 4], "weights": [3, 0.5], "objective": inner})
    step = step_of(examples(5))
    vectors = seen(step, stage)
    plain = stage_of(inner).objective
    expected = torch.zeros(5, dtype=torch.float64)
    for length, weight in ((2, 3), (4, 0.5), (WIDTH, 1)):
        cut = seen(step, stage)
        own = normalize(cut.own[:, :length], dim=-1)
        targets = normalize(cut.targets[:, :length], dim=-1)
        shorter = TermVectors(step, stage, 1, cut.rows, own, None, targets, cut.has_target)
        expected += weight * term_losses(plain, shorter)
    torch.testing.assert_close(term_losses(stage.objective, vectors), expected / 4.5, rtol=0, atol=1e-12)


def test_a_text_alone_is_embedded_once_as_a_document_or_under_its_instruction_as_a_query() -> None:
    bare = [Example(f"t{n}", (f"t{n}",), source="bare") for n in range(2)]
    asked = [Example(f"a{n}", (f"a{n}",), instruction="do", source="asked") for n in range(2)]
    step = step_of(examples(2), bare, asked)
    rows = Rows.of(step, ["bare", "asked"])
    kept = [step.texts[text] for text in rows.kept]
    assert len(kept) == len(step.texts) - 4
    assert {text.role for text in kept if text.text.startswith("t")} == {"document"}
    assert {text.role for text in kept if text.text.startswith("a")} == {"query"}
    assert [kept[place].text for place in rows.place] == [text.text for text in step.texts]
    assert [step.sources[owner] for owner in rows.owner] == [
        {"q": "pairs", "p": "pairs", "n": "pairs", "t": "bare", "a": "asked"}[text.text[0]] for text in kept
    ]


def test_rows_with_a_text_in_common_or_a_class_are_no_strangers() -> None:
    rows = examples(3)
    rows[1] = Example("q1", ("p0",), source="pairs")
    step = step_of(rows, examples(2, "classes", in_batch_negatives=False))
    apart = strangers(step)
    by_query = {
        text.text + source: row
        for row, (text, source) in enumerate(zip(step.texts, step.sources, strict=False))
    }
    one, same, other = by_query["q0pairs"], by_query["q1pairs"], by_query["q2pairs"]
    assert not apart[one, same]
    assert apart[one, other]
    assert apart[same, other]
    assert not apart[by_query["q0classes"]].any()
    assert not apart.diagonal().any()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kind": "distill"}, "teacher"),
        ({"kind": "distill", "teacher": []}, "teacher"),
        ({"kind": "distill", "teacher": ["t", "t"]}, "named twice"),
        ({**DISTILL, "loss": "none"}, "nothing is learned"),
        ({**DISTILL, "relational_loss": "kl"}, "relational_loss .* no effect"),
        ({**DISTILL, "ridge_texts": 5}, "ridge_texts .* no effect"),
        ({**DISTILL, "loss": "none", "relational": 1, "projection": "drop"}, "'drop' has no effect"),
        ({**DISTILL, "weight": 2}, "terms of a sum only"),
        ({**DISTILL, "instructions": {"pair": "x"}}, "no source 'pair'.*Did you mean 'pairs'"),
        ({**DISTILL, "teacher": {"model": "file:a", "dtype": "float32"}}, "dtype has no effect"),
        ({"kind": "spread_out"}, "nothing by itself"),
        ({"kind": "sum", "terms": [{}]}, "terms"),
        ({"kind": "sum", "terms": [{}, {"kind": "mntp"}]}, "'mntp' is no loss of a step's vectors"),
        ({"kind": "sum", "terms": [{}, DISTILL, DISTILL]}, "one distill a stage"),
        ({"kind": "sum", "terms": [{}, {"kind": "sum", "terms": [{}, DISTILL]}]}, "sum within sum"),
        ({"kind": "matryoshka", "dims": [2, 2], "objective": {}}, "stands twice"),
        ({"kind": "matryoshka", "dims": [2], "weights": [1, 1], "objective": {}}, "2 weights for 1 dims"),
        ({"kind": "matryoshka", "dims": [2], "objective": {"weight": 2}}, "terms of a sum only"),
    ],
)
def test_what_makes_no_sense_is_refused_before_torch(objective: dict[str, Any], message: str) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        stage_of(objective)


def test_sources_of_both_kinds_suffice_a_teacher_but_not_a_contrastive_term() -> None:
    both = {"path": "pairs.jsonl"}, {"path": "texts.txt", "kind": "texts"}
    assert stage_of(DISTILL, *both).objective.learns_from == "either"
    with pytest.raises(EmbedforgeError, match="texts alone have no positives"):
        stage_of({"kind": "sum", "terms": [{}, DISTILL]}, *both)


def test_a_resolved_recipe_reads_back() -> None:
    terms = [{"weight": 0.5}, {**DISTILL, "teacher": ["a", {"model": "b", "max_tokens": 5}]}]
    stage = stage_of({"kind": "matryoshka", "dims": [4], "objective": {"kind": "sum", "terms": terms}})
    values = stage.model_dump(mode="json")
    assert parse_recipe({"name": "r", "stages": [values]}, "test").stages[0] == stage
    assert "0.5" in stage.objective.describe(stage, 64)
    assert "distill from a and b" in stage.objective.describe(stage, 64)


def test_a_term_is_set_by_its_kind(tmp_path: Path) -> None:
    objective = {"kind": "sum", "terms": [{"kind": "contrastive"}, {"kind": "distill", "teacher": "t"}]}
    values = {"name": "r", "stages": [{"name": "s", "steps": 3, "objective": objective}]}
    values["stages"][0]["mix"] = {"sources": [{"path": "pairs.jsonl"}]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    changes = ["stages.s.objective.terms.distill.weight=2", "stages.s.objective.terms.0.temperature=0.1"]
    terms = load_recipe(str(tmp_path / "r.yaml"), changes).stages[0].objective.terms
    assert (terms[1].weight, terms[0].temperature) == (2, 0.1)


def test_lengths_of_matryoshka_are_shorter_than_the_vectors(tiny_model: Any, tmp_path: Path) -> None:
    stage = stage_of({"kind": "matryoshka", "dims": [32], "objective": {}})
    recipe = parse_recipe({"name": "r", "stages": [stage.model_dump(mode="json")]}, "test")
    work = TermsWork(
        tiny_model, recipe, stage, Mixture({"pairs": examples(4)}, seed=0, batch_queries=4, negatives=1), 0
    )
    with pytest.raises(EmbedforgeError, match=r"dims \[32\], and a whole vector is 32 long"):
        work.prepare(None, tmp_path, resuming=False)
