"""The command line's verbs at work, one after the other, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from conftest import Run
from embedforge.recipe import load_recipe
from sources_for_tests import write_sources


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> Path:
    """A recipe file beside its data: one stage over a hundred pairs."""
    words = ["river", "stone", "cloud", "engine", "letter", "garden", "window", "silver", "market", "forest"]
    rows = [
        {"query": f"find {one} {two}", "positive": f"{two} and {one}"}
        for one in words
        for two in words
        if one != two
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"name": "only", "steps": 50, "batch_queries": 8, "mix": {"sources": [{"path": "pairs.jsonl"}]}}
    values = {
        "name": "mine",
        "model": {"base": str(tiny_base)},
        "contract": {"max_tokens": 48},
        "stages": [stage],
        "training": {"precision": "float32", "log_steps": 1},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_train_then_search_then_evaluate(run: Run, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("mteb")
    from embedforge.encode import encode
    from embedforge.model.encoder import embedding_model, load
    from embedforge.search import Document, build_index

    out = tmp_path / "run"
    code, printed, err = run("train", recipe, "--out", out, "--set", "stages.only.steps=2", "--device", "cpu")
    assert code == 0, err
    assert f"The model is in {out / 'model'}" in printed
    assert len((out / "log.jsonl").read_text().splitlines()) >= 2
    assert json.loads((out / "recipe.json").read_text())["recipe"]["stages"][0]["steps"] == 2
    code, _, err = run("train", recipe, "--out", out, "--set", "stages.only.steps=2", "--device", "cpu")
    assert code == 1
    assert "--resume" in err

    model = embedding_model(load(str(out / "model"), "cpu"))
    texts = ["stone and river", "engine and cloud"]
    documents = [Document(text, text, f"notes.md:{line}") for line, text in enumerate(texts, start=1)]
    build_index(out / "index", encode(model, texts), documents, model="run", contract=model.contract)
    code, printed, _ = run("search", out, "find river stone", "-k", 1, "--device", "cpu")
    assert code == 0
    assert "1. notes.md:" in printed

    tasks = tmp_path / "tasks" / "sts" / "words"
    tasks.mkdir(parents=True)
    pairs = [{"sentence1": f"river {n}", "sentence2": f"stone {n % 3}", "score": n % 5} for n in range(12)]
    (tasks / "test.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    results = tmp_path / "results"
    arguments = ("--tasks", tmp_path / "tasks", "--out", results, "--device", "cpu")
    code, printed, err = run("evaluate", out / "model", *arguments)
    assert code == 0, err
    assert "sts/words" in printed
    assert "mteb" not in printed
    for name in ("results.json", "report.html"):
        assert str(results / name) in printed.splitlines()
        assert (results / name).exists()


def test_sources_start_at_the_recipe_file_or_at_data(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert "pairs: 90 rows" in run("show", recipe)[1]
    assert "not counted" in run("show", recipe, "--data", elsewhere)[1]
    assert "not counted" in run("show", "tiny")[1]  # a shipped recipe's sources start here
    write_sources(load_recipe("tiny"), elsewhere)
    assert "retrieval: 66 rows" in run("show", "tiny")[1]


def test_a_run_that_did_not_start_is_no_obstacle(run: Run, recipe: Path, tmp_path: Path) -> None:
    steps = ("--set", "stages.only.steps=1", "--device", "cpu")
    code, _, err = run("train", recipe, "--out", tmp_path / "run", "--set", "model.base=./tinny", *steps)
    assert code == 1
    assert "./tinny: there is no such folder" in err
    assert run("train", recipe, "--out", tmp_path / "run", *steps)[0] == 0


def test_ctrl_c_in_training_says_how_to_go_on(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedforge.train import run as training

    def stopped(*_: object, **__: object) -> None:
        raise training.Interrupted("stopped at step 1 of 50 of stage 'only'")

    monkeypatch.setattr(training, "train", stopped)
    code, _, err = run("train", recipe, "--out", tmp_path / "run")
    assert code == 130
    assert err.strip() == (
        "stopped at step 1 of 50 of stage 'only'; go on with: "
        f"embedforge train {recipe} --out {tmp_path / 'run'} --resume"
    )


def test_convert_makes_a_folder_that_search_can_load(run: Run, tmp_path: Path) -> None:
    official = Path(__file__).parent / "golden" / "nvembed_tiny"
    code, printed, _ = run("convert", official, tmp_path / "out")
    assert code == 0
    assert printed == f"The model is in {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "contract.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    code, _, err = run("convert", official, tmp_path / "mine")
    assert code == 1
    assert "something else" in err
    assert (tmp_path / "mine" / "thesis.txt").exists()
