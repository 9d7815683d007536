"""A sweep: its grid, its statistics, what its runs share, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import Run
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.compare import difference, interval, mean_of, scores_of
from embedforge.files import read_json
from embedforge.sweep.grid import Judged, cells_of, parse_grid
from embedforge.sweep.run import sweep
from embedforge.train.run import train
from embedforge.train.trainer import StageTrainer
from stages_for_tests import recipe_of, supervised
from training_for_tests import assert_same_weights, write_pairs


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> Path:
    write_pairs(tmp_path / "pairs.jsonl")
    write_pairs(tmp_path / "dev.jsonl", rows=20, seed=1)
    stages = [supervised(tmp_path / "pairs.jsonl") | {"name": name, "steps": 2} for name in ("one", "two")]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe_of(tiny_base, *stages).model_dump(mode="json")))
    return file


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stage of each step that is trained, as they come."""
    steps: list[str] = []
    honest = StageTrainer.training_step

    def counted(self: StageTrainer, *arguments):  # type: ignore[no-untyped-def]
        steps.append(self.work.stage.name)
        return honest(self, *arguments)

    monkeypatch.setattr(StageTrainer, "training_step", counted)
    return steps


def test_a_grid_is_every_combination_told_by_the_shortest_names(recipe: Path) -> None:
    grid = parse_grid(["stages.one.steps=1,2", "stages.two.steps=3", "stages.two.negatives=0,1"])
    labels = [cell.label for cell in cells_of([str(recipe)], grid)]
    assert labels == [
        f"one.steps={steps}, two.steps=3, negatives={negatives}" for steps in (1, 2) for negatives in (0, 1)
    ]
    assert cells_of([str(recipe)], {}, ["stages.one.steps=7"])[0].recipe.stages[0].steps == 7


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["steps"], "--grid takes field=a,b"),
        (["seed=1,2"], "use --seeds N"),
        (["a=1", "a=2"], "stands twice"),
        (["stages.one.steps=1,0"], r"(?s)steps=0: .*steps: needed, and at least 1"),
        (["stages.one.steps=1,1"], "'steps=1' is there twice"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(recipe: Path, grid: list[str], message: str) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        cells_of([str(recipe)], parse_grid(grid))


def result(values: list[float], kind: str = "queries") -> dict:
    return {"score": float(np.mean(values)), "units": {"kind": kind, "values": values, "gold": []}}


@pytest.mark.parametrize(
    ("effect", "between", "is_real"), [(0.1, 0.0, True), (0.1, 0.5, False), (0.0, 0.0, False)]
)
def test_a_difference_has_to_be_larger_than_that_of_seeds(
    effect: float, between: float, is_real: bool
) -> None:
    """`between`: how far seeds lie apart, which queries alone would never show."""
    draw = np.random.default_rng(0)
    base, seeds = draw.random(300), np.array([-1.0, 0.3, 0.9]) * between
    first = [result(list(base + 0.01 * draw.standard_normal(300))) for _ in range(3)]
    second = [result(list(base + effect + shift + 0.01 * draw.standard_normal(300))) for shift in seeds]
    task = scores_of([first, second])
    found = difference(task, 1)
    assert found.test.is_real == is_real
    assert found.test.low <= found.test.difference <= found.test.high
    assert found.test.difference == pytest.approx(effect + seeds.mean(), abs=0.01)
    both = mean_of([task, task])
    assert difference(both, 1).test.difference == pytest.approx(found.test.difference)


def test_the_interval_of_one_seed_is_the_bootstrap_over_queries_and_that_of_seeds_is_not_too_narrow() -> None:
    draw = np.random.default_rng(0)
    one = interval(scores_of([[result(list(draw.random(400)))]]), 0)
    assert one.high - one.low == pytest.approx(2 * 1.96 * (1 / 12 / 400) ** 0.5, rel=0.15)
    covered = 0
    for _ in range(200):  # 5 seeds of a model whose mean is 0.5, on queries that are all alike
        row = [result([float(0.5 + 0.1 * draw.standard_normal())] * 10) for _ in range(5)]
        found = interval(scores_of([row]), 0)
        covered += found.low <= 0.5 <= found.high
    assert covered > 160


def test_a_sweep_trains_shared_stages_once_and_goes_on_with_more_seeds(
    run: Run, recipe: Path, tmp_path: Path, steps: list[str]
) -> None:
    command = ["sweep", recipe, "--out", tmp_path / "out", "--dev", tmp_path / "dev.jsonl", "--device", "cpu"]
    grid = ("--grid", "stages.two.learning_rate=0.003,0.3")
    code, said, error = run(*command, *grid, "--seeds", "1")
    assert code == 0, error
    assert "learning_rate=0.3" in said
    assert steps == ["one"] * 2 + ["two"] * 4
    steps.clear()
    code, _, error = run(*command, *grid, "--seeds", "2")
    assert code == 0, error
    assert steps == ["one"] * 2 + ["two"] * 4  # of the second seed alone
    results = read_json(tmp_path / "out" / "results.json")
    (scores,) = results["scores"].values()
    assert [len(row["by seed"]) for row in scores] == [2, 2]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Difference to learning_rate=0.003" in page
    folder = tmp_path / "out" / "runs" / results["variants"][1]["folder"] / "seed-1"
    alone = cells_of([str(recipe)], {}, ["stages.two.learning_rate=0.3"])[0].seeded(1)
    assert_same_weights(folder / "model", train(alone, tmp_path / "alone", device="cpu", quiet=True))


def test_a_run_that_is_the_beginning_of_another_is_not_trained_again_and_a_pruned_base_changes_nothing(
    recipe: Path, tmp_path: Path, steps: list[str]
) -> None:
    pruned = yaml.safe_load(recipe.read_text())
    vocabulary = {"texts": [{"path": str(tmp_path / "pairs.jsonl")}]}
    pruned["model"]["prune"] = {"layers": 1, "vocabulary": vocabulary}
    changed = pruned | {"stages": [pruned["stages"][0], pruned["stages"][1] | {"learning_rate": 0.3}]}
    begun = pruned | {"stages": pruned["stages"][:1]}
    files = []
    for name, content in (("whole", pruned), ("changed", changed), ("begun", begun)):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(content | {"name": name}))
    cells = cells_of([str(file) for file in files], {}, [])
    judged = Judged(dev=(str(tmp_path / "dev.jsonl"),))
    sweep(cells, 1, tmp_path / "out", judged=judged, device="cpu", quiet=True)
    assert steps == ["one"] * 2 + ["two"] * 4
    alone = train(cells[2].seeded(0), tmp_path / "alone", device="cpu", quiet=True)
    assert_same_weights(tmp_path / "out" / "runs" / cells[2].folder / "seed-0" / "model", alone)


def test_nothing_to_compare_on_is_said_before_anything_is_trained(
    run: Run, recipe: Path, tmp_path: Path
) -> None:
    code, _, said = run("sweep", recipe, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 1
    assert "nothing to compare the variants on" in said
    assert not (tmp_path / "out").exists()
    code, _, said = run("sweep", recipe, "--grid", "stages.one.stepz=1,2", "--out", tmp_path / "out")
    assert code == 1
    assert "steps" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tasks", "nowhere"), "--tasks nowhere: neither a folder nor an mteb task"),
        (("--seeds", 10**30, "--dev", "dev.jsonl"), "--seeds"),
        (("--dev", "words.jsonl"), "words.jsonl, line 1: not valid JSON"),
    ],
)
def test_what_cannot_be_compared_on_is_said_before_anything_is_trained(
    run: Run,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.jsonl").write_text("hello\n")
    code, _, said = run("sweep", recipe, "--grid", "stages.one.steps=1,2", *more, "--out", "out")
    assert code in (1, 2)
    assert message in said
    assert not (tmp_path / "out").exists()


def test_tasks_are_compared_too(run: Run, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks" / "sts" / "pairs"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    words = ["river", "stone", "cloud", "engine", "letter", "garden"]
    rows = [
        {
            "sentence1": " ".join(draw.choice(words, 2)),
            "sentence2": " ".join(draw.choice(words, 2)),
            "score": n % 6,
        }
        for n in range(30)
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--grid", "stages.two.steps=1,2", "--seeds", "1", "--tasks", tmp_path / "tasks")
    code, _, error = run("sweep", recipe, *arguments, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0, error
    results = read_json(tmp_path / "out" / "results.json")
    assert list(results["scores"]) == ["sts/pairs"]
    assert results["differences to the first"]["sts/pairs"][0]["low"] < 1
