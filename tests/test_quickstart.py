"""`embedforge quickstart`, whole: a folder in, a model, a report and an index out; and again after Ctrl-C."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from embedforge.quickstart.run import quickstart
from safetensors.torch import load_file
from transformers import TrainerCallback

import embedforge
from embedforge.errors import EmbedforgeError
from embedforge.files import read_json
from embedforge.recipe import load_recipe
from embedforge.search.run import search
from embedforge.train import run as train_run

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "il")]
MODULES, FUNCTIONS = 30, 8


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Python modules whose docstrings and code share words that no other function has."""
    folder, draw = tmp_path_factory.mktemp("library"), random.Random(0)
    for number in range(MODULES):
        functions = []
        for _ in range(FUNCTIONS):
            words = ["".join(draw.choices(SYLLABLES, k=3)) for _ in range(6)]
            functions.append(
                f'def {words[0]}_{words[1]}({words[2]}):\n    """Turn the {words[0]} of a {words[2]} into '
                f'{words[3]} and {words[4]}."""\n    return {words[3]}({words[2]}, {words[4]}, {words[5]})\n'
            )
        (folder / f"module_{number}.py").write_text("\n\n".join(functions), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The shipped recipe, with few steps."""
    resolved = load_recipe("tiny", [f"model.base={tiny_base}", "training.precision=float32"])
    values = resolved.model_dump(mode="json")
    values["training"] |= {"save_steps": 2, "log_steps": 1}
    for stage in values["stages"]:
        stage |= {"steps": 6, "batch_queries": 8, "warmup_steps": 1}
    path = tmp_path_factory.mktemp("recipe") / "few-steps.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, library: Path, recipe: Path, tiny_base: Path
) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("finished") / "out"
    comparison = quickstart(library, out, base=str(tiny_base), recipe_name=str(recipe), device="cpu")
    return out, comparison


def test_it_leaves_a_model_an_index_and_a_report_that_agree(finished: tuple[Path, Any]) -> None:
    out, comparison = finished
    report = read_json(out / "report.json")
    assert report["queries"] == comparison.queries > 20
    assert report["documents"] > report["queries"], "training text stands in the pool as distractors"
    assert set(report["retrieval"]) == {"BM25", "base, last", "base, mean", "trained"}
    assert report["retrieval"]["BM25"]["ndcg@10"]["mean"] > 0.5, "the words are shared: BM25 must find them"
    for system in ("BM25", "base, mean", "base, last"):
        gain = report["ndcg@10, trained minus"][system]
        difference = (
            report["retrieval"]["trained"]["ndcg@10"]["mean"] - report["retrieval"][system]["ndcg@10"]["mean"]
        )
        assert gain["difference"] == pytest.approx(difference)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert "http://" not in page.replace("http://www.w3.org", ""), "it loads nothing"
    for text in ("BM25 is ahead", "Training loss, stage retrieval", "A map of held-out documents"):
        assert text in page


def test_the_index_holds_the_vectors_of_the_saved_model(finished: tuple[Path, Any]) -> None:
    out, comparison = finished
    documents = (out / "index" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(documents) == comparison.documents
    st = embedforge.load(str(out / "run" / "model"), device="cpu")
    hits = search(out, "Turn one thing into another", k=3, device="cpu")
    query = st.encode_query("Turn one thing into another")
    for hit in hits:
        assert hit.score == pytest.approx(float(query @ st.encode_document(hit.document.text)), abs=0.02)


def test_a_finished_run_is_not_run_again(
    finished: tuple[Path, Any], library: Path, recipe: Path, tiny_base: Path
) -> None:
    out, _ = finished
    before = (out / "run" / "model" / "contract.json").stat().st_mtime_ns
    quickstart(library, out, base=str(tiny_base), recipe_name=str(recipe), device="cpu")
    assert (out / "run" / "model" / "contract.json").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(
    finished: tuple[Path, Any], library: Path, recipe: Path, tiny_base: Path
) -> None:
    out, _ = finished
    with pytest.raises(EmbedforgeError, match=r"had seed = 0, this one has 1; choose another --out"):
        quickstart(library, out, base=str(tiny_base), recipe_name=str(recipe), seed=1, device="cpu")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, library: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(EmbedforgeError, match="not empty and no quickstart run"):
        quickstart(library, tmp_path, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class CtrlC(TrainerCallback):
    """Presses Ctrl-C at a step of the first stage."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_leaves_a_state_from_which_the_same_model_comes(
    finished: tuple[Path, Any],
    tmp_path: Path,
    library: Path,
    recipe: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    original = train_run.StageTrainer

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        trainer = original(*args, **kwargs)
        trainer.add_callback(CtrlC())
        return trainer

    monkeypatch.setattr(train_run, "StageTrainer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quickstart(library, out, base=str(tiny_base), recipe_name=str(recipe), device="cpu")
    assert not (out / "run" / "model").exists()
    monkeypatch.setattr(train_run, "StageTrainer", original)
    quickstart(library, out, base=str(tiny_base), recipe_name=str(recipe), device="cpu")
    weights = [
        load_file(str(folder / "run" / "model" / "model.safetensors")) for folder in (finished[0], out)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value.numpy(), weights[1][name].numpy(), err_msg=name)
