"""`embedforge distill`, whole: a teacher and a folder in; a student, and a report of both its modes, out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import embedforge
from conftest import Run
from embedforge.errors import EmbedforgeError
from embedforge.files import read_json
from embedforge.model.encoder import build, save
from embedforge.prove.findings import findings
from embedforge.prove.run import distill
from embedforge.prove.taught import with_teacher
from embedforge.recipe import load_recipe
from embedforge.recipe.terms import distillation_of
from embedforge.text.contract import Contract
from test_prove import write_documents

FEW = [
    "stages.distill.steps=6",
    "stages.distill.batch_queries=8",
    "contract.max_tokens=64",
    "training.precision=float32",
]


@pytest.fixture(scope="module")
def teacher(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another function of the same texts, whose vectors have 24 numbers, and which is told something."""
    contract = Contract(
        max_tokens=64, attention="causal", pooling="weighted_mean", default_instruction="Find the passage"
    )
    model = build(base=str(tiny_base), contract=contract)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.projection = torch.nn.Linear(32, 24)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    save(model, folder)
    return folder


@pytest.fixture(scope="module")
def finished(tiny_base: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = write_documents(tmp_path_factory.mktemp("documents"), 30, 3)
    out = tmp_path_factory.mktemp("out") / "run"
    distill(str(teacher), str(tiny_base), documents, out, minutes=0.5, overrides=FEW, device="cpu")
    return out


def test_the_report_has_both_modes_and_the_teacher(finished: Path, teacher: Path) -> None:
    report = read_json(finished / "report.json")
    assert report["systems"] == ["as it came", "teacher", "trained", "across"]
    found = report["retrieval"]["all"]["ndcg@10"]["values"]
    assert set(found) == {"BM25", *report["systems"], "trained + BM25"}
    tests = report["across"]["across minus"]
    expected = found["across"]["mean"] - found["teacher"]["mean"]
    assert tests["teacher"]["difference"] == pytest.approx(expected)
    assert set(report["cosine to the teacher"]) == {"questions", "passages"}
    page = (finished / "report.html").read_text()
    assert "The student&#39;s questions in the teacher&#39;s index" in page
    assert "of the teacher&#39;s" in page


def test_the_student_is_in_the_teachers_space(finished: Path, teacher: Path) -> None:
    """The ridge alone brings unseen text near the teacher's vector of it, and far from those of others."""
    texts = [json.loads(line)["text"] for line in (finished / "data" / "held-out.jsonl").open()]
    own, its = (
        embedforge.load(folder, device="cpu").encode_document(texts, normalize_embeddings=True)
        for folder in (finished / "run" / "model", teacher)
    )
    cosines = own @ its.T
    assert own.shape == its.shape
    assert np.diagonal(cosines).mean() > cosines.mean() + 0.01
    assert read_json(finished / "prove.json")["recipe"]["model"]["prune"] is None


def test_the_teacher_is_asked_as_it_asks_itself(teacher: Path) -> None:
    recipe = with_teacher(load_recipe("distill-small"), str(teacher))
    learned = distillation_of(recipe.stages[0].objective)
    assert learned is not None
    assert learned.teacher[0].model == str(teacher)
    assert learned.instructions == {"questions": "Find the passage"}


def test_a_student_that_gained_nothing_is_called_that(finished: Path) -> None:
    from embedforge.prove.figures import ALL, Figures, Measure
    from embedforge.statistics import Interval, PairedTest

    names = ["BM25", "as it came", "teacher", "trained", "across"]
    same = PairedTest(0.0, -0.1, 0.1, 1.0, 60, False)
    values: dict[str, Any] = {name: Interval(0.5, 0.4, 0.6) for name in names}
    own = Measure(values, dict.fromkeys((name for name in names if name != "trained"), same))
    across = Measure(values, dict.fromkeys((name for name in names if name != "across"), same), "across")
    figures = Figures(
        retrieval={ALL: {"ndcg@10": own}},
        questions={ALL: 60},
        documents=100,
        clustering=None,
        parts=0,
        alignment=None,
        uniformity=None,
        own_half=None,
        halves=0,
        loss=None,
        predictions=0,
        chunks=0,
        rankings={},
        across=across,
    )
    said = [one.text for one in findings(figures) if one.tone == "bad"]
    assert any("no better than what it started from" in text for text in said)


def test_what_cannot_teach_is_refused(run: Run, tiny_base: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One\n\nA text.\n")
    arguments = ("--student", tiny_base, "--text", tmp_path, "--out", tmp_path / "out")
    code, _, said = run("distill", "no such", *arguments)
    assert code == 1
    assert "no such" in said
    with pytest.raises(EmbedforgeError, match="held-out text, so it has to be a model"):
        with_teacher(load_recipe("distill-small"), "file:vectors.jsonl")
    with pytest.raises(EmbedforgeError, match="recipe 'tiny' has no stage with objective distill"):
        with_teacher(load_recipe("tiny"), str(teacher))
