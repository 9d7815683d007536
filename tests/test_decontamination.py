"""The mark of decontamination, from curated files through training into the evaluation's results."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import Run
from datasets_for_tests import sentence as words
from datasets_for_tests import write_jsonl
from embedforge.curate.evaluation_texts import find_evaluation_tasks
from embedforge.curate.run import curate
from embedforge.curate.steps import Curation
from embedforge.data.marks import CheckedTask, Mark, read_mark, write_mark
from embedforge.data.task_folder import fingerprint
from embedforge.evaluate.decontamination import sentence, unchecked_tasks
from embedforge.files import file_hash
from embedforge.mine.run import Teachers, mine
from embedforge.recipe import Recipe, Source, parse_recipe, source_of
from embedforge.train.decontamination import mark_of_training, unchecked_sources
from embedforge.train.run import train

FINGERPRINT = "0f3c7d2a91b4e865"


def pairs(path: Path, *tasks: str) -> Path:
    """Write a file of pairs; with the names of tasks, as one that was checked against them."""
    write_jsonl(path, [{"query": words("sea", n), "positives": [words("bread", n)]} for n in range(8)])
    if tasks:
        checked = {name: CheckedTask(fingerprint=FINGERPRINT) for name in tasks}
        write_mark(path.parent, Mark(tasks=checked, files={path.name: file_hash(path)}))
    return path


def tasks_of(path: Path) -> list[str]:
    mark = read_mark(path)
    assert mark is not None
    return list(mark.tasks)


def recipe_of(*sources: dict[str, Any], base: str = "embedforge:base", **stage: Any) -> Recipe:
    stages = [
        {
            "name": "only",
            "steps": 1,
            "warmup_steps": 0,
            "batch_queries": 4,
            "mix": {"sources": list(sources)},
            **stage,
        }
    ]
    return parse_recipe({"name": "mine", "model": {"base": base}, "stages": stages}, "mine.yaml")


# --- what is known of a recipe's data --------------------------------------------------------------


def test_sources_without_a_mark_are_named(tmp_path: Path) -> None:
    pairs(tmp_path / "checked" / "a.jsonl", "sts/x")
    pairs(tmp_path / "b.jsonl")
    pairs(tmp_path / "data" / "nq.jsonl", "sts/x")
    checked = {"path": "checked/a.jsonl"}
    assert unchecked_sources(recipe_of(checked, {"path": "catalog:nq"}), tmp_path) is None
    others = [{"path": "b.jsonl"}, {"path": "hub:owner/name"}, {"path": "catalog:fiqa"}]
    warning = unchecked_sources(recipe_of(checked, *others), tmp_path)
    assert warning is not None
    assert ": b, fiqa, name. " in warning
    assert "embedforge curate --against TASKS" in warning
    many = [{"path": f"{number}.jsonl"} for number in range(9)]
    assert ": 0, 1, 2, 3, 4 and 4 more. " in (unchecked_sources(recipe_of(*many), tmp_path) or "")


def test_a_file_that_was_changed_since_is_unchecked(tmp_path: Path) -> None:
    path = pairs(tmp_path / "a.jsonl", "sts/x")
    recipe = recipe_of({"path": "a.jsonl"})
    assert unchecked_sources(recipe, tmp_path) is None
    path.write_text(path.read_text() + path.read_text())
    assert "a. " in (unchecked_sources(recipe, tmp_path) or "")
    assert mark_of_training(recipe, tmp_path) == Mark(tasks={})


def test_texts_alone_have_no_part_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    texts = recipe_of({"path": "a.txt", "kind": "texts"}, objective={"kind": "simcse"})
    assert unchecked_sources(texts, tmp_path) is None
    assert mark_of_training(texts, tmp_path) is None


def test_the_mark_of_training_is_what_all_sources_have_in_common(tmp_path: Path) -> None:
    pairs(tmp_path / "a" / "a.jsonl", "sts/x", "sts/y")
    pairs(tmp_path / "b" / "b.jsonl", "sts/y", "sts/z")
    both = mark_of_training(recipe_of({"path": "a/a.jsonl"}, {"path": "b/b.jsonl"}), tmp_path)
    assert both is not None
    assert list(both.tasks) == ["sts/y"]
    assert both.files == {}


@pytest.mark.parametrize(
    ("kind", "mark", "tasks"),
    [("contrastive", ("sts/y",), ["sts/y"]), ("contrastive", None, []), ("mntp", None, ["sts/x", "sts/y"])],
)
def test_what_a_base_has_learned_from_counts_too(
    tmp_path: Path, kind: str, mark: tuple[str, ...] | None, tasks: list[str]
) -> None:
    """A base of our own: trained on pairs with a mark, on pairs without one, and on texts alone."""
    pairs(tmp_path / "a.jsonl", "sts/x", "sts/y")
    base = tmp_path / "earlier"
    base.mkdir()
    source = {"path": "b.jsonl", "kind": "texts" if kind == "mntp" else "examples"}
    stage = {"objective": {"kind": kind}, "mix": {"sources": [source]}}
    (base / "recipe.json").write_text(json.dumps({"stages": [stage]}))
    if mark is not None:
        write_mark(base, Mark(tasks={name: CheckedTask(fingerprint=FINGERPRINT) for name in mark}))
    found = mark_of_training(recipe_of({"path": "a.jsonl"}, base=str(base)), tmp_path)
    assert found is not None
    assert list(found.tasks) == tasks


# --- through curation and mining -------------------------------------------------------------------


def test_curating_again_keeps_what_was_checked_before(tmp_path: Path) -> None:
    """What is left of checked texts is checked; another source in the same folder has to be checked too."""
    pairs(tmp_path / "a.jsonl", "sts/x", "sts/y")
    pairs(tmp_path / "elsewhere" / "b.jsonl", "sts/y")
    write_jsonl(tmp_path / "tasks" / "clustering" / "new" / "test.jsonl", [{"text": "new", "label": "n"}])
    a, b = source_of("a.jsonl"), source_of("elsewhere/b.jsonl")
    quiet = Console(quiet=True)
    curate([a], tmp_path / "one", Curation(), folder=tmp_path, console=quiet)
    assert tasks_of(tmp_path / "one" / "a.jsonl.gz") == ["sts/x", "sts/y"]
    against = Curation(exact=False, tasks=find_evaluation_tasks([str(tmp_path / "tasks")]))
    curate([a, b], tmp_path / "two", against, folder=tmp_path, console=quiet)
    assert tasks_of(tmp_path / "two" / "a.jsonl.gz") == ["sts/y", "clustering/new"]
    assert tasks_of(tmp_path / "two" / "b.jsonl.gz") == ["sts/y", "clustering/new"]


def test_mining_carries_the_mark(tmp_path: Path) -> None:
    path, out = pairs(tmp_path / "a.jsonl", "sts/x"), tmp_path / "mined"
    mine(Source(path=str(path)), out, Teachers(("bm25",)))
    assert tasks_of(out / "examples.jsonl") == ["sts/x"]
    write_mark(tmp_path, Mark(tasks={}))
    mine(Source(path=str(path)), out, Teachers(("bm25",)))
    assert read_mark(out / "examples.jsonl") is None


def test_an_exported_model_keeps_its_mark(run: Run, model_folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    assert run("export", model, tmp_path / "plain", "--dtype", "bfloat16")[0] == 0
    assert read_mark(tmp_path / "plain") is None
    write_mark(model, Mark(tasks={"sts/x": CheckedTask(fingerprint=FINGERPRINT)}))
    assert run("export", model, tmp_path / "marked", "--dtype", "bfloat16")[0] == 0
    assert read_mark(tmp_path / "marked") == read_mark(model)


# --- through training into an evaluation -----------------------------------------------------------


def tiny(base: Path, source: Path) -> Recipe:
    recipe = recipe_of({"path": str(source), "instruction": "Find it"}, base=str(base)).model_dump(
        mode="json"
    )
    contract = {"max_tokens": 48, "default_instruction": "Find it"}
    return parse_recipe({**recipe, "contract": contract, "training": {"precision": "float32"}}, "mine.yaml")


def test_training_leaves_its_mark_and_warns_without_one(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny(tiny_base, pairs(tmp_path / "a.jsonl", "sts/x"))
    model = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    mark = read_mark(model)
    assert mark is not None
    assert list(mark.tasks) == ["sts/x"]
    assert not caplog.records
    (model / "decontaminated.json").unlink()  # killed before it was written
    assert train(recipe, tmp_path / "run", resume=True, device="cpu", quiet=True) == model
    assert read_mark(model) == mark
    train(tiny(tiny_base, pairs(tmp_path / "b.jsonl")), tmp_path / "other", device="cpu", quiet=True)
    (record,) = caplog.records
    assert ": b. " in record.getMessage()
    assert read_mark(tmp_path / "other" / "model") == Mark(tasks={})


def test_a_caller_with_a_test_of_its_own_is_not_warned(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny(tiny_base, pairs(tmp_path / "a.jsonl"))
    with caplog.at_level(logging.WARNING):
        train(recipe, tmp_path / "run", source_folder=tmp_path, device="cpu", own_test=True, quiet=True)
    assert not caplog.records


def test_results_terminal_and_report_say_what_was_not_checked(
    data: Path, model_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mteb")
    from embedforge.evaluate.run import evaluate
    from embedforge.evaluate.terminal import print_scores

    checked = Path(shutil.copytree(model_folder, tmp_path / "checked"))
    tasks = {"sts/topics": fingerprint(data / "sts" / "topics"), "retrieval/topics": "another version of it"}
    write_mark(checked, Mark(tasks={name: CheckedTask(fingerprint=value) for name, value in tasks.items()}))
    names = f"{data / 'sts'},{data / 'retrieval'}"
    found = evaluate([str(checked), str(model_folder), "bm25"], names, tmp_path / "out", device="cpu")
    assert found.undecontaminated == {"checked": ("retrieval/topics",)}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["undecontaminated"] == {
        "checked": ["retrieval/topics"]
    }
    said = sentence("checked", ["retrieval/topics"], 2)
    assert "of checked was not decontaminated against retrieval/topics: " in said
    assert said in (tmp_path / "out" / "report.html").read_text()
    console = Console(width=400)
    with console.capture() as capture:
        print_scores(tmp_path / "out", console)
    assert said in capture.get()
    evaluate([str(checked)], str(data / "sts"), tmp_path / "clean", device="cpu")
    with console.capture() as capture:
        print_scores(tmp_path / "clean", console)
    assert "decontaminated" not in capture.get()
    assert sentence("checked", [], 1) in (tmp_path / "clean" / "report.html").read_text()


def test_a_split_that_was_checked_is_not_another(data: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mteb")
    from embedforge.evaluate.run import evaluate

    checked = Path(shutil.copytree(model_folder, tmp_path / "checked"))
    dataset = Path(shutil.copytree(data / "sts" / "topics", tmp_path / "tasks" / "sts" / "topics"))
    shutil.copy(dataset / "test.jsonl", dataset / "dev.jsonl")
    (task,) = find_evaluation_tasks([str(tmp_path / "tasks")], "dev")
    write_mark(checked, Mark(tasks={task.name: CheckedTask(fingerprint=task.fingerprint)}))
    found = {
        split: evaluate(
            [str(checked)], str(tmp_path / "tasks"), tmp_path / split, device="cpu", split=split
        ).undecontaminated
        for split in ("dev", "test")
    }
    assert found == {"dev": {"checked": ()}, "test": {"checked": ("sts/topics",)}}


def test_of_other_models_nothing_is_said(tmp_path: Path) -> None:
    models = {"a": str(tmp_path), "b": "owner/name", "bm25": "bm25", "base": "embedforge:base@mean"}
    assert unchecked_tasks(models, {"sts/x": FINGERPRINT}) == {}
    write_mark(tmp_path, Mark(tasks={}))
    assert unchecked_tasks(models, {"sts/x": FINGERPRINT}) == {"a": ("sts/x",)}


def test_a_sentence_names_a_few_tasks() -> None:
    names = [f"sts/{number}" for number in range(9)]
    assert "against sts/0, sts/1, sts/2, sts/3, sts/4 and 4 more: " in sentence("m", names, 10)
    assert "against any of these tasks: " in sentence("m", names, 9)
