"""Which tasks, splits, labels and instructions are meant, and what is said when it is unclear."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("mteb")


from datasets_for_tests import write_jsonl
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.instructions import instruction_of, instructs_documents
from embedforge.evaluate.run import evaluate, model_labels
from embedforge.evaluate.tasks import find_tasks


def test_folders_of_one_type_or_one_dataset_are_tasks_too(data):
    assert [t.metadata.name for t in find_tasks(str(data / "sts"))] == ["sts/topics"]
    assert [t.metadata.name for t in find_tasks([str(data / "nli" / "topics")])] == ["nli/topics"]
    assert [t.metadata.name for t in find_tasks(str(data), split="train")] == ["classification/topics"]


def test_names_of_mteb_pass_through():
    assert [t.metadata.name for t in find_tasks("SciFact, STS12")] == ["SciFact", "STS12"]
    assert len(find_tasks("MTEB(eng, v2)")) > 30


@pytest.mark.parametrize(
    ("tasks", "message"),
    [("SciFakt", "Did you mean 'SciFact'"), ("SciFact,SciFact", "named twice")],
)
def test_wrong_task_names_are_explained(tasks, message):
    with pytest.raises(EmbedforgeError, match=message):
        find_tasks(tasks)


def test_wrong_folders_and_splits_are_explained(data, tmp_path):
    with pytest.raises(EmbedforgeError, match="has a split 'dev'"):
        find_tasks(str(data), split="dev")
    with pytest.raises(EmbedforgeError, match="no datasets"):
        find_tasks(str(tmp_path))


def test_an_instruction_for_nothing_is_refused(data, model_folder, tmp_path):
    with pytest.raises(EmbedforgeError, match="Did you mean 'sts/topics'"):
        evaluate([str(model_folder)], str(data / "sts"), tmp_path, instructions={"sts/topic": "x"})


def test_a_failing_task_keeps_the_finished_ones(data, model_folder, tmp_path):
    for kind in ("sts", "reranking"):
        shutil.copytree(data / kind, tmp_path / "data" / kind)
    write_jsonl(tmp_path / "data" / "sts" / "topics" / "test.jsonl", [{"sentence1": "a", "score": 1}])
    with pytest.raises(EmbedforgeError, match=r"line 1: there is no 'sentence2'"):
        evaluate([str(model_folder)], str(tmp_path / "data"), tmp_path / "out")
    assert (tmp_path / "out" / "tasks" / "tiny" / "reranking__topics.json").exists()
    assert not (tmp_path / "out" / "results.json").exists()


def test_instructions_come_from_caller_table_task_and_type_in_this_order():
    assert (
        instruction_of("SciFact", "Retrieval", {"SciFact": "mine", "Retrieval": "ours"}, "theirs") == "mine"
    )
    assert instruction_of("SciFact", "Retrieval", {"Retrieval": "ours"}, "theirs") == "ours"
    assert instruction_of("Touche2020.v3", "Retrieval") == instruction_of("Touche2020", "Retrieval")
    assert instruction_of("Unknown", "Retrieval", {}, "theirs") == "theirs"
    assert instruction_of("Unknown", "STS") == "Retrieve semantically similar text"
    assert instruction_of("Unknown", "Retrieval") is None
    assert instructs_documents("QuoraRetrieval")
    assert not instructs_documents("SciFact")


def test_a_model_that_can_do_none_of_the_tasks_still_gives_a_report(data, tmp_path):
    found = evaluate(["bm25"], str(data / "sts"), tmp_path)
    assert found.score("bm25", "sts/topics") is None
    assert "bm25 can do 0 of the 1 tasks" in (tmp_path / "report.html").read_text()


def test_labels_are_the_shortest_that_differ():
    assert model_labels(["a/b/model", "a/c/model", "x/e5", "bm25"]) == ("b/model", "c/model", "e5", "bm25")
    assert model_labels(["model", "runs/model/"]) == ("model", "runs/model")
    with pytest.raises(EmbedforgeError, match="each once"):
        model_labels(["m", "m"])


def test_a_dataset_that_cannot_be_reached_names_the_task_and_the_ways_out(tmp_path, data):
    """A real task of mteb; the tests are offline."""
    arguments = (["bm25"], f"{data / 'retrieval'},SciFact", tmp_path)
    with pytest.raises(EmbedforgeError) as caught:
        evaluate(*arguments, device="cpu")
    message = str(caught.value)
    assert message.startswith("task SciFact: its dataset cannot be had from the hub: ")
    for part in ("Finished tasks are kept", "leave SciFact out", "TYPE/DATASET/", "--tasks FOLDER"):
        assert part in message
    assert [file.name for file in (tmp_path / "tasks" / "bm25").iterdir()] == ["retrieval__topics.json"]


def test_an_error_in_a_folder_is_not_the_hubs(tmp_path, data):
    shutil.copytree(data / "sts", tmp_path / "sts")
    file = tmp_path / "sts" / "topics" / "test.jsonl"
    file.write_text(file.read_text() + "{half")
    with pytest.raises(EmbedforgeError, match=r"test\.jsonl, line \d+: not valid JSON") as caught:
        evaluate(["embedforge:base@mean"], str(tmp_path), tmp_path / "out", device="cpu")
    assert "hub" not in str(caught.value)
