"""No text of an evaluation task stays in the training data, and the mark says which tasks were checked."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datasets_for_tests import TOPICS, sentence, write_jsonl
from embedforge.curate.decontaminate import DecontaminationSettings, Evaluation, decontaminate
from embedforge.curate.evaluation_texts import EvaluationTask, find_evaluation_tasks, mteb_task
from embedforge.data.example import Example
from embedforge.data.marks import (
    FILE_NAME,
    CheckedTask,
    Mark,
    carry_mark,
    file_hash,
    read_mark,
    training_mark,
    undecontaminated,
    write_mark,
)
from embedforge.data.task_folder import fingerprint
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.tasks import folder_tasks
from embedforge.lexical import words

LONG = "the quick brown fox jumps over the lazy dog while seven small cats sleep in the sun"


def task(*queries: str, documents: tuple[str, ...] = (), name: str = "t") -> EvaluationTask:
    return EvaluationTask(
        name, "f", lambda: iter(queries), lambda which: iter(documents if which == "all" else ())
    )


def reasons(rows: list[Example], evaluation: Evaluation) -> list[str]:
    return [item.reason for item in decontaminate(rows, evaluation).dropped]


def test_equal_texts_go_whatever_their_case_and_punctuation() -> None:
    rows = [
        Example("What is a river?", ("a",)),
        Example("what IS a  river", ("a",)),
        Example("q", ("What is a river?",)),
        Example("q", ("a",), ("What is a river?", "n")),
        Example("What was a river?", ("a",)),
    ]
    kept, dropped = decontaminate(rows, Evaluation([task("What is a river?")]))
    assert [item.query for item in kept] == ["q", "What was a river?"]
    assert kept[0].negatives == ("n",)
    assert [item.reason for item in dropped] == [
        "equals a text of t",
        "equals, but for case and punctuation, a text of t",
        "equals a text of t",
        "equals a text of t",
    ]


def test_a_shared_run_of_words_counts_from_the_asked_length_on() -> None:
    words = LONG.split()
    inside = Example("intro " + " ".join(words[2:15]) + " and more", ("a",))
    shorter = Example("intro " + " ".join(words[2:14]) + " and more", ("a",))
    (dropped,) = decontaminate([inside, shorter], Evaluation([task(LONG)])).dropped
    assert dropped.example is inside
    assert dropped.detail == "'" + " ".join(words[2:15]) + "'"
    assert len(reasons([inside, shorter], Evaluation([task(LONG)], DecontaminationSettings(ngram=12)))) == 2
    assert reasons([inside, shorter], Evaluation([task(LONG)], DecontaminationSettings(ngram=0))) == []


def test_chinese_is_compared_by_characters() -> None:
    text = "这座城市的老桥下面的河水有多深呢"
    assert reasons([Example(f"请问{text}谢谢", ("a",))], Evaluation([task(text)])) == [
        "shares 13 words with t"
    ]


def test_bm25_finds_paraphrases_with_the_same_rare_words() -> None:
    queries = [f"who built the {name} bridge" for name in ("golden", "iron", "stone", "paper")]
    rows = [
        Example("who was it that built the golden bridge", ("a",)),
        Example("who painted the copper door", ("a",)),
        Example("golden bridge " + LONG, ("a",)),
        Example("?", ("who built the golden bridge of all",)),
    ]
    evaluation = Evaluation([task(*queries)], DecontaminationSettings(bm25=0.8))
    (dropped,) = decontaminate(rows, evaluation).dropped
    assert dropped.example is rows[0]  # the third holds much else; documents are not compared by BM25
    assert dropped.detail == "1.00 of 'who built the golden bridge'"


def test_a_text_is_as_similar_to_itself_as_can_be() -> None:
    queries = [sentence(topic, i) for topic in TOPICS for i in range(8)]
    similar = Evaluation([task(*queries)], DecontaminationSettings(bm25=0.5))._similar
    for query in queries:
        share, found, _ = similar.find(query)
        assert share == pytest.approx(1, abs=1e-5)
        assert found == query or share <= 1 + 1e-5


def test_bm25_finds_what_the_formula_says() -> None:
    """s(t, e) / max(s(t, t), s(e, e)) with Lucene's BM25, written out; in s(t, e) a word of t counts once."""
    texts = [sentence(topic, i) for topic in TOPICS for i in range(6)]
    queries = [words(text) for text in texts]
    mean = sum(map(len, queries)) / len(queries)

    def score(asked: list[str], text: list[str]) -> float:
        total = 0.0
        for word in set(asked):
            having, found = sum(word in query for query in queries), text.count(word)
            idf = math.log(1 + (len(queries) - having + 0.5) / (having + 0.5))
            total += idf * found / (found + 1.2 * (0.25 + 0.75 * len(text) / mean))
        return total

    asked = [*texts, "nothing of this", *(text.rpartition(" ")[0].rpartition(" ")[0] for text in texts)]
    for threshold in (0.5, 0.7, 0.9):
        evaluation = Evaluation([task(*texts)], DecontaminationSettings(bm25=threshold, ngram=0))
        for text in asked:
            own = words(text)
            share = max(score(own, e) / max(score(own, own), score(e, e)) for e in queries)
            verdict = reasons([Example(f"{text} a", ("a",))], evaluation)  # "a" is no word to BM25
            assert bool(verdict) == (share > threshold), (text, share)


def test_documents_count_only_when_asked_for() -> None:
    tasks = [task("q", documents=("a shared passage",))]
    rows = [Example("train", ("a shared passage",))]
    assert reasons(rows, Evaluation(tasks)) == []
    assert reasons(rows, Evaluation(tasks, DecontaminationSettings(documents="all"))) == [
        "equals a text of t"
    ]


# --- tasks -----------------------------------------------------------------------------------------


def test_every_type_of_folder_gives_the_texts_that_mteb_sees(data: Path) -> None:
    """Read without mteb, and through the mteb task that evaluation makes of the same folder."""
    through_mteb = {found.metadata.name: mteb_task(found) for found in folder_tasks(data)}
    direct = {found.name: found for found in find_evaluation_tasks([str(data)])}
    assert set(direct) == set(through_mteb)
    for name, found in direct.items():
        other = through_mteb[name]
        assert found.fingerprint == other.fingerprint
        texts = sorted(other.queries())
        if name.startswith(("classification", "clustering")):
            texts = [text for text in texts if text not in TOPICS]  # labels
        if name.startswith("bitext"):
            assert set(found.queries()) <= set(texts)
        else:
            assert sorted(found.queries()) == texts, name
        for which in ("none", "relevant", "all"):
            assert sorted(found.documents(which)) == sorted(other.documents(which)), (name, which)


def test_relevant_documents_are_those_judged_above_0(data: Path) -> None:
    (found,) = find_evaluation_tasks([str(data / "retrieval" / "topics")])
    assert len(list(found.queries())) == 12
    assert len(list(found.documents("relevant"))) == 13
    assert len(list(found.documents("all"))) == 24


def test_a_fingerprint_changes_with_the_data(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data / "sts" / "topics", tmp_path / "sts" / "topics"))
    before = fingerprint(copy)
    assert before == fingerprint(data / "sts" / "topics")
    write_jsonl(copy / "test.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1}])
    assert fingerprint(copy) != before


@pytest.mark.parametrize("name", ["", "STS12,", " , "])
def test_an_empty_name_is_not_the_current_folder(name: str) -> None:
    with pytest.raises(EmbedforgeError, match="an empty name"):
        find_evaluation_tasks([name])


def test_unknown_tasks_and_folders_say_what_is_possible(tmp_path: Path) -> None:
    with pytest.raises(EmbedforgeError, match=r"neither a folder nor an mteb task.*Did you mean 'NFCorpus'"):
        find_evaluation_tasks(["NFCorpos"])
    (tmp_path / "squad").mkdir()
    with pytest.raises(EmbedforgeError, match=r"no such folder\. Did you mean 'squad'"):
        find_evaluation_tasks([f"{tmp_path}/sqaud"])
    with pytest.raises(EmbedforgeError, match="no datasets, so none with a split 'test'"):
        find_evaluation_tasks([str(tmp_path)])


def test_mteb_tasks_are_known_by_their_revision() -> None:
    first, second = find_evaluation_tasks(["STS12,Banking77Classification"])
    assert first.name == "STS12"
    assert len(second.fingerprint) == 40


def test_a_mark_of_another_split_is_no_mark_of_the_test_set(data: Path, tmp_path: Path) -> None:
    """The fingerprint is of the whole dataset, so the name says which split was kept out."""
    folder = tmp_path / "sts" / "topics"
    shutil.copytree(data / "sts" / "topics", folder)
    shutil.copy(folder / "test.jsonl", folder / "dev.jsonl")
    (test,), (dev,) = (find_evaluation_tasks([str(folder)], split) for split in ("test", "dev"))
    assert (test.name, dev.name) == ("sts/topics", "sts/topics (dev)")
    assert test.fingerprint == dev.fingerprint


def test_two_datasets_of_one_name_are_refused_unless_they_are_one(data: Path, tmp_path: Path) -> None:
    """Otherwise the second would take the first one's place, and nobody would know."""
    other = tmp_path / "sts" / "topics"
    shutil.copytree(data / "sts" / "topics", other)
    given = [str(data / "sts"), str(other)]
    assert len(find_evaluation_tasks(given)) == 1
    write_jsonl(other / "test.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1}])
    with pytest.raises(EmbedforgeError, match="two datasets 'sts/topics' with different data"):
        find_evaluation_tasks(given)


def test_a_folder_may_have_a_comma_in_its_name(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my, tests"
    shutil.copytree(data / "sts", folder / "sts")
    assert [found.name for found in find_evaluation_tasks([str(folder)])] == ["sts/topics"]


def test_an_aggregate_of_mteb_gives_the_texts_of_its_members(data: Path) -> None:
    """CQADupstackRetrieval, of MTEB(eng, v1), has twelve tasks and no data of its own."""
    members = folder_tasks(data)
    metadata = SimpleNamespace(name="All", dataset={"path": "none", "revision": "1"})
    both = mteb_task(SimpleNamespace(tasks=members, metadata=metadata, data_loaded=False, dataset=None))
    assert (both.name, both.fingerprint) == ("All", "1")
    apart = [mteb_task(member) for member in members]
    assert list(both.queries()) == [text for found in apart for text in found.queries()]
    assert list(both.documents("all")) == [text for found in apart for text in found.documents("all")]
    assert list(both.documents("none")) == []


def mteb_table(load: Callable[[], None] = lambda: None, **attributes: Any) -> SimpleNamespace:
    rows = [{"text": "a long day", "label": 1, "label_text": "joy", "mood": "glad", "lang": "eng"}]
    metadata = SimpleNamespace(name="Mood", dataset={"revision": "1"})
    dataset = {"test": rows, "train": [{"text": "not asked about"}]}
    return SimpleNamespace(
        dataset=dataset, metadata=metadata, eval_splits=["test"], load_data=load, **attributes
    )


def test_labels_of_a_task_are_no_texts_to_keep_out() -> None:
    """Training on label documents, NV-Embed v1's way, "joy" is the document of thousands of queries."""
    task = mteb_table(data_loaded=True, label_column_name="mood")
    assert list(mteb_task(task).queries()) == ["a long day"]


def test_a_task_that_mteb_cannot_load_is_named() -> None:
    def load() -> None:
        raise ConnectionError("no network")

    with pytest.raises(EmbedforgeError, match=r"--against Mood: mteb cannot load its data \(no network\)"):
        list(mteb_task(mteb_table(load, data_loaded=False)).queries())


# --- marks -----------------------------------------------------------------------------------------


def marked(folder: Path, name: str, **tasks: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"query": name, "positives": ["p"]}) + "\n")
    checked = {task: CheckedTask(fingerprint=value) for task, value in tasks.items()}
    write_mark(folder, Mark(tasks=checked, files={name: file_hash(path)}))
    return path


def test_a_changed_file_has_lost_its_mark(tmp_path: Path) -> None:
    path = marked(tmp_path, "a.jsonl", squad="1")
    assert set(read_mark(path).tasks) == {"squad"}
    path.write_text("changed")
    assert read_mark(path) is None
    assert read_mark(tmp_path / "other.jsonl") is None
    assert read_mark(tmp_path / "nowhere" / "a.jsonl") is None


def test_tasks_without_a_check_are_named_for_each_source(tmp_path: Path) -> None:
    path = marked(tmp_path, "a.jsonl", squad="1", fiqa="2")
    wanted = {"squad": "1", "fiqa": "changed", "nq": "3"}
    assert undecontaminated({"a": path, "hub": None}, wanted) == {
        "a": ("fiqa", "nq"),
        "hub": ("squad", "fiqa", "nq"),
    }
    assert undecontaminated({"a": path}, {"squad": "1"}) == {}


def test_mining_carries_the_mark_on(tmp_path: Path) -> None:
    source = marked(tmp_path / "curated", "a.jsonl", squad="1", fiqa="2")
    for name in ("x.jsonl", "y.jsonl"):
        (tmp_path / "mined").mkdir(exist_ok=True)
        (tmp_path / "mined" / name).write_text(name)
        carry_mark(source, tmp_path / "mined" / name)
    assert set(read_mark(tmp_path / "mined" / "x.jsonl").tasks) == {"squad", "fiqa"}
    (tmp_path / "bare.jsonl").write_text("no mark")
    carry_mark(tmp_path / "bare.jsonl", tmp_path / "mined" / "x.jsonl")
    assert read_mark(tmp_path / "mined" / "x.jsonl") is None
    assert read_mark(tmp_path / "mined" / "y.jsonl") is not None


def test_files_with_different_marks_in_one_folder_share_what_both_have(tmp_path: Path) -> None:
    both = tmp_path / "mined"
    both.mkdir()
    for name, tasks in (("x", {"squad": "1", "fiqa": "2"}), ("y", {"squad": "1", "nq": "3"})):
        source = marked(tmp_path / name, "a.jsonl", **tasks)
        (both / f"{name}.jsonl").write_text(name)
        carry_mark(source, both / f"{name}.jsonl")
    assert set(read_mark(both / "x.jsonl").tasks) == set(read_mark(both / "y.jsonl").tasks) == {"squad"}


def test_a_model_has_the_tasks_that_all_its_sources_were_checked_on(tmp_path: Path) -> None:
    first = marked(tmp_path / "x", "a.jsonl", squad="1", fiqa="2")
    second = marked(tmp_path / "y", "b.jsonl", squad="1", fiqa="changed")
    assert set(training_mark([first, second]).tasks) == {"squad"}
    assert training_mark([first, None]).tasks == training_mark([]).tasks == {}
    model = tmp_path / "model"
    model.mkdir()
    write_mark(model, training_mark([first, second]))
    assert undecontaminated({"model": model}, {"squad": "1", "fiqa": "2"}) == {"model": ("fiqa",)}


def test_a_damaged_mark_is_an_error(tmp_path: Path) -> None:
    path = marked(tmp_path, "a.jsonl", squad="1")
    values = json.loads((tmp_path / FILE_NAME).read_text())
    (tmp_path / FILE_NAME).write_text(json.dumps(values | {"taks": {}}))
    with pytest.raises(EmbedforgeError, match=r"(?s)decontaminated.json.*taks: unknown key.*'tasks'"):
        read_mark(path)
