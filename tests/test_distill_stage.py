"""Distillation as a stage: what is learned, what is saved of the map, and that a run goes on exactly."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedforge.errors import EmbedforgeError
from embedforge.mine.teachers import open_teacher
from embedforge.model.encoder import EmbeddingModel, build, embedding_model, load, save
from embedforge.recipe import Recipe, Teacher
from embedforge.text.contract import Contract
from embedforge.train.mixtures import read_mixture
from embedforge.train.run import train
from embedforge.train.stages import prepare_model, work_of
from embedforge.train.teacher import Teaching
from embedforge.train.terms import TermsWork
from stages_for_tests import COMMON, alone, crash_in, gradients, recipe_of
from training_for_tests import WORDS, assert_same_weights, logged, weights, write_pairs


def sentences(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(2, 6))) + f" {seed}.{n}" for n in range(count)]


@pytest.fixture(scope="module")
def teacher(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another function of the same texts: causal, the last state, seen through a map to 24 numbers."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    contract = Contract(
        max_tokens=64, attention="causal", pooling="last", query_template="{instruction}: {text}"
    )
    model = build(base=str(tiny_base), contract=contract)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.projection = torch.nn.Linear(32, 24)
    save(model, folder)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text("\n".join(sentences(64, 0)) + "\n")
    return tmp_path / "texts.txt"


def distil(file: Path, teacher: Path, *, kind: str = "texts", **objective: Any) -> dict[str, Any]:
    source = {"path": str(file), "kind": kind}
    settings = {"kind": "distill", "teacher": str(teacher), **objective}
    return {"name": "distill", **COMMON, "objective": settings, "mix": {"sources": [source]}}


def run(recipe: Recipe, out: Path, **options: Any) -> Path:
    return train(recipe, out, teachers=open_teacher, quiet=True, own_test=True, device="cpu", **options)


def closeness(model: Path, teacher: Path, texts: list[str]) -> float:
    """Mean cosine of a model's vectors with the teacher's, of documents."""
    found, target = (load(str(folder), "cpu").encode_document(texts) for folder in (model, teacher))
    return float((found * target).sum(axis=1).mean())


def test_training_comes_nearer_to_the_teacher_than_ridge_and_ridge_than_a_random_map(
    tiny_base: Path, teacher: Path, texts: Path, tmp_path: Path
) -> None:
    unseen = sentences(40, 1)
    near = {}
    for name, steps, ridge in (("random", 1, 0), ("ridge", 1, 4096), ("trained", 60, 4096)):
        stage = distil(texts, teacher, ridge_texts=ridge) | {"steps": steps, "batch_queries": 16}
        stage["learning_rate"] = 1e-9 if steps == 1 else 3e-3
        near[name] = closeness(run(recipe_of(tiny_base, stage), tmp_path / name), teacher, unseen)
    assert near["random"] < near["ridge"] - 0.2
    assert near["trained"] > near["ridge"] + 0.02, near


def test_a_kept_map_is_loaded_by_plain_sentence_transformers(
    tiny_base: Path, teacher: Path, texts: Path, tmp_path: Path
) -> None:
    model = run(recipe_of(tiny_base, distil(texts, teacher)), tmp_path / "run")
    kinds = [entry["type"] for entry in json.loads((model / "modules.json").read_text())]
    assert all(kind.startswith("sentence_transformers.") for kind in kinds)
    plain, ours = SentenceTransformer(str(model), device="cpu"), load(str(model), "cpu")
    assert ours.get_embedding_dimension() == plain.get_embedding_dimension() == 24
    for ask in ("encode_query", "encode_document"):
        found = getattr(ours, ask)(sentences(9, 2))
        assert found.shape == (9, 24)
        np.testing.assert_allclose(found, getattr(plain, ask)(sentences(9, 2)), atol=2e-6)


@pytest.mark.parametrize("pooling", ["mean", "latent"])
def test_a_map_goes_through_saving_loading_and_starting_from(
    tiny_base: Path, tmp_path: Path, pooling: str
) -> None:
    shape = {"latents": 4, "heads": 2, "head_dim": 8} if pooling == "latent" else {}
    contract = Contract(max_tokens=48, pooling=pooling, dtype="bfloat16")
    model = build(base=str(tiny_base), contract=contract, pooling=shape)
    model.projection = torch.nn.Linear(32, 7)
    save(model, tmp_path / "one")
    again = embedding_model(load(str(tmp_path / "one"), "cpu", "float32"))
    assert again.dim == 7
    torch.testing.assert_close(again.projection.weight, model.projection.weight)
    save(again, tmp_path / "two")
    half = load(str(tmp_path / "one"), "cpu", "bfloat16")
    np.testing.assert_allclose(
        np.asarray(half.encode_document(["a river"], convert_to_numpy=True), dtype=np.float32),
        load(str(tmp_path / "two"), "cpu").encode_document(["a river"]),
        atol=0.05,
    )
    base = build(base=str(tmp_path / "one"), contract=contract, pooling=shape)
    torch.testing.assert_close(base.projection.weight, model.projection.weight)


def test_a_dropped_map_leaves_the_students_own_width(
    tiny_base: Path, teacher: Path, texts: Path, tmp_path: Path
) -> None:
    model = run(
        recipe_of(tiny_base, distil(texts, teacher, projection="drop", relational=1.0)), tmp_path / "run"
    )
    assert not (model / "2_Dense").exists()
    assert load(str(model), "cpu").encode_document(["a"]).shape == (1, 32)


@pytest.mark.parametrize("projection", ["keep", "drop"])
def test_a_run_that_goes_on_is_the_same_run(
    tiny_base: Path,
    teacher: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    projection: str,
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs)
    second = {"name": "after", **COMMON, "negatives": 1, "mix": {"sources": [{"path": str(pairs)}]}}
    recipe = recipe_of(tiny_base, distil(texts, teacher, projection=projection), second)
    whole = run(recipe, tmp_path / "whole")
    for stage in ("distill", "after"):
        with crash_in(monkeypatch, stage, 3):
            run(recipe, tmp_path / "cut", resume=True)
    unopened: list[str] = []

    def refuse(settings: Teacher, device: str | None) -> Any:
        unopened.append(settings.model)
        raise AssertionError("the vectors are there: no teacher is needed")

    cut = train(
        recipe, tmp_path / "cut", teachers=refuse, resume=True, quiet=True, own_test=True, device="cpu"
    )
    assert_same_weights(whole, cut)
    assert not unopened
    assert (load(str(whole), "cpu").encode_document(["a"]).shape[1] == 24) is (projection == "keep")


def test_two_teachers_and_a_cache_that_runs_share(
    tiny_base: Path, teacher: Path, texts: Path, tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.jsonl"
    rows = [{"text": text, "vector": [len(text), 1.0, -3.0]} for text in sentences(64, 0)]
    vectors.write_text("\n".join(map(json.dumps, rows)))
    stage = distil(texts, teacher, cache="shared")
    stage["objective"]["teacher"] = [str(teacher), "file:vectors.jsonl"]
    recipe = recipe_of(tiny_base, stage)
    model = run(recipe, tmp_path / "one", source_folder=tmp_path)
    assert load(str(model), "cpu").encode_document(["a"]).shape == (1, 27)
    assert len(list((tmp_path / "shared").iterdir())) == 2
    sizes = {path: path.stat().st_size for path in (tmp_path / "shared").rglob("vectors.f16")}
    again = run(recipe, tmp_path / "two", source_folder=tmp_path)
    assert {path: path.stat().st_size for path in sizes} == sizes
    assert_same_weights(model, again)
    assert not (tmp_path / "two" / "teachers").exists()


SUM = {
    "kind": "sum",
    "terms": [
        {"kind": "contrastive", "in_batch": "all"},
        {"kind": "distill", "relational": 0.5, "weight": 2.0},
        {"kind": "spread_out", "weight": 0.3},
    ],
}


def work_for(
    base: Path, teacher: Path, data: Path, folder: Path, objective: dict[str, Any], projection: str
) -> TermsWork:
    """A stage of a sum, ready for its steps."""
    terms = [
        term | ({"teacher": str(teacher), "projection": projection} if term["kind"] == "distill" else {})
        for term in objective["terms"]
    ]
    stage = {"name": "sum", **COMMON, "negatives": 1, "objective": {**objective, "terms": terms}}
    stage |= {"mix": {"sources": [{"path": str(data)}]}, "tokens_per_micro_batch": 100_000}
    recipe = recipe_of(base, stage)
    model = prepare_model(recipe, "cpu")
    work = work_of(
        recipe.stages[0].objective, model, recipe, recipe.stages[0], read_mixture(recipe.stages[0], 0)
    )
    assert isinstance(work, TermsWork)
    work.prepare(Teaching(open_teacher, folder / "cache", device="cpu"), folder / "stage", resuming=False)
    work.begin(alone())
    work.module.train()
    return work


@pytest.mark.parametrize("projection", ["keep", "drop"])
def test_the_gradient_of_a_sum_is_the_same_for_every_micro_batch(
    tiny_base: Path, teacher: Path, tmp_path: Path, projection: str
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs)
    found, work = [], work_for(tiny_base, teacher, pairs, tmp_path, SUM, projection)
    for tokens in (100_000, 200, 40, 1):
        work.tokens_per_micro_batch = tokens
        found.append(gradients(work))
    whole = found[0]
    assert any("head" in name or "projection" in name for name in whole)
    for other in found[1:]:
        assert other.keys() == whole.keys()
        for name in whole:  # in float32, where a small element may be all rounding
            apart = float((other[name] - whole[name]).norm() / whole[name].norm())
            assert apart < 1e-4, (name, apart)


def test_pairs_texts_and_instructions_reach_the_teacher_as_it_should_see_them(
    tiny_base: Path, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "titles.txt").write_text("\n".join(f"title {n}" for n in range(6)))
    write_pairs(tmp_path / "pairs.jsonl", rows=6)
    stage = distil(tmp_path / "pairs.jsonl", teacher, kind="examples", instructions={"titles": "find"})
    stage["mix"]["sources"] = [
        {"path": str(tmp_path / "pairs.jsonl"), "instruction": "answer"},
        {"path": str(tmp_path / "titles.txt"), "kind": "texts"},
    ]
    stage["objective"]["texts"] = ["queries", "positives"]
    recipe = recipe_of(tiny_base, stage)
    mixture = read_mixture(recipe.stages[0], 0)
    work = TermsWork(prepare_model(recipe, "cpu"), recipe, recipe.stages[0], mixture, 0)
    asked = {(one.role, one.instruction, one.text.split()[0]) for one in work.questions()}
    words = {word for role, _, word in asked if role == "document"}
    assert ("query", "answer", "find") in asked
    assert ("query", "find", "title") in asked
    assert {role for role, _, word in asked if word == "title"} == {"query"}
    assert words <= set(WORDS)
    assert not any("alone" in one.text or "again" in one.text for one in work.questions())


def test_each_term_of_a_sum_is_logged_within_matryoshka_too(
    tiny_base: Path, teacher: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    terms = [{"kind": "contrastive"}, {"kind": "distill", "teacher": str(teacher), "weight": 3.0}]
    objective = {"kind": "matryoshka", "dims": [8], "objective": {"kind": "sum", "terms": terms}}
    stage = {"name": "sum", **COMMON, "negatives": 1, "objective": objective}
    recipe = recipe_of(tiny_base, stage | {"mix": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}]}})
    run(recipe, tmp_path / "run")
    for kind in ("contrastive", "distill"):
        assert len(logged(tmp_path / "run", f"term/{kind}")) == COMMON["steps"]


def test_the_loss_falls_and_is_logged(tiny_base: Path, teacher: Path, texts: Path, tmp_path: Path) -> None:
    stage = distil(texts, teacher, ridge_texts=0) | {"steps": 20}
    run(recipe_of(tiny_base, stage), tmp_path / "run")
    losses = logged(tmp_path / "run", "loss")
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda stage: stage["objective"].update(projection="none"),
            "32 numbers with no map, the teacher's 24",
        ),
        (
            lambda stage: stage["objective"].update(teacher="file:none.jsonl"),
            r"there is no file none\.jsonl",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tiny_base: Path,
    teacher: Path,
    texts: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    stage = distil(texts, teacher)
    change(stage)
    with pytest.raises(EmbedforgeError, match=message):
        run(recipe_of(tiny_base, stage), tmp_path / "run")


def test_a_teacher_and_nothing_to_open_it_with_is_refused(
    tiny_base: Path, teacher: Path, texts: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_base, distil(texts, teacher))
    with pytest.raises(EmbedforgeError, match="open_teacher"):
        train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_map_of_another_width_is_not_overwritten(
    tiny_base: Path, teacher: Path, texts: Path, tmp_path: Path
) -> None:
    model: EmbeddingModel = build(base=str(tiny_base), contract=Contract(max_tokens=48))
    model.projection = torch.nn.Linear(32, 7)
    save(model, tmp_path / "base")
    recipe = recipe_of(tmp_path / "base", distil(texts, teacher))
    with pytest.raises(EmbedforgeError, match="7 numbers with the map that it has, the teacher's 24"):
        run(recipe, tmp_path / "run")


@pytest.mark.slow
def test_two_ranks_train_the_model_that_one_does(tiny_base: Path, teacher: Path, tmp_path: Path) -> None:
    """The first rank asks the teacher, the other waits; both have the map of one."""
    write_pairs(tmp_path / "pairs.jsonl")
    terms = [{"kind": "contrastive"}, {"kind": "distill", "teacher": str(teacher), "projection": "drop"}]
    stage = {"name": "sum", **COMMON, "negatives": 1, "objective": {"kind": "sum", "terms": terms}}
    recipe = recipe_of(tiny_base, stage | {"mix": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}]}})
    whole = run(recipe, tmp_path / "one")
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [
        "-m",
        "embedforge",
        "train",
        tmp_path / "recipe.json",
        "--out",
        tmp_path / "two",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [*launcher, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = weights(whole), weights(tmp_path / "two" / "model")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-4, msg=name)
