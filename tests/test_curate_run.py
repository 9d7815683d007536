"""`embedforge curate` as a whole: files, report, mark; what is refused; that nothing is left half written."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from datasets_for_tests import TOPICS, sentence, write_jsonl
from embedforge.curate import run as run_module
from embedforge.curate.evaluation_texts import find_evaluation_tasks
from embedforge.curate.lengths import Limits
from embedforge.curate.run import curate
from embedforge.curate.steps import Curation
from embedforge.data.convert import read_source
from embedforge.data.marks import read_mark, undecontaminated
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Source, source_of


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def pairs(topic: str, start: int, stop: int) -> list[dict]:
    return [{"query": f"{topic} {i} what", "positives": [sentence(topic, i)]} for i in range(start, stop)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """bread: 10 pairs, 3 of them again; sea: 5, one of the evaluation, one too short, one of bread."""
    write_jsonl(tmp_path / "bread.jsonl", pairs("bread", 0, 10) + pairs("bread", 0, 3))
    evaluated = {"query": "find the deep harbour", "positives": ["a harbour"]}
    sea = [*pairs("sea", 0, 5), evaluated, {"query": "x", "positives": ["y"]}, *pairs("bread", 4, 5)]
    write_jsonl(tmp_path / "sea.jsonl", sea)
    write_jsonl(
        tmp_path / "tasks" / "clustering" / "waters" / "test.jsonl",
        [{"text": "Find the deep harbour!", "label": "a"}, {"text": "other", "label": "b"}],
    )
    return tmp_path


def settings(files: Path, **more: object) -> Curation:
    tasks = find_evaluation_tasks([str(files / "tasks")])
    return Curation(query_length=Limits(2), tasks=tasks, **more)  # type: ignore[arg-type]


def run(files: Path, *names: str, out: str = "out", **more: object):
    sources = [source_of(name) for name in names]
    return curate(sources, files / out, settings(files, **more), folder=files, console=quiet())


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_files_report_and_mark_agree(files: Path) -> None:
    report = run(files, "bread.jsonl", "sea.jsonl")
    assert [(s.name, s.examples_in, s.examples_out) for s in report.sources] == [
        ("bread", 13, 10),
        ("sea", 8, 5),
    ]
    assert [(step.name, step.removed) for step in report.steps] == [
        ("lengths", 1),
        ("exact duplicates", 4),
        ("decontamination", 1),
    ]
    assert report.steps[1].by_source == {"bread": 3, "sea": 1}  # the earlier source's copy stays
    assert rows(files / "out" / "bread.jsonl.gz") == pairs("bread", 0, 10)
    assert rows(files / "out" / "sea.jsonl.gz") == pairs("sea", 0, 5)
    assert json.loads((files / "out" / "report.json").read_text()) == report.as_json()
    tasks = {task.name: task.fingerprint for task in find_evaluation_tasks([str(files / "tasks")])}
    mark = read_mark(files / "out" / "sea.jsonl.gz")
    assert {name: item.fingerprint for name, item in mark.tasks.items()} == tasks
    assert undecontaminated({"sea": files / "out" / "sea.jsonl.gz", "raw": files / "sea.jsonl"}, tasks) == {
        "raw": ("clustering/waters",)
    }


def test_a_source_keeps_its_instruction_and_rows_keep_their_own(files: Path) -> None:
    write_jsonl(
        files / "a.jsonl",
        [{"query": "one two", "positives": ["p"], "instruction": "own"}, *pairs("sea", 0, 1)],
    )
    source = source_of("a.jsonl", instruction="the source's")
    curate([source], files / "out", Curation(), folder=files, console=quiet())
    assert [row.get("instruction") for row in rows(files / "out" / "a.jsonl.gz")] == ["own", None]
    again = read_source(Source(path=str(files / "out" / "a.jsonl.gz"), instruction="the source's"), seed=0)
    assert again == read_source(source, seed=0, folder=files)


def test_the_same_curation_writes_the_same_bytes(files: Path) -> None:
    def digests(out: str) -> dict[str, str]:
        run(files, "bread.jsonl", "sea.jsonl", out=out, near=0.8)
        paths = [path for path in (files / out).iterdir() if not path.name.startswith("report.")]
        report = json.loads((files / out / "report.json").read_text())
        assert report.pop("date")
        assert set(report.pop("phases")) == {"reading", *(step["name"] for step in report["steps"])}
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths} | {
            "report.json": json.dumps(report)
        }

    assert digests("out") == digests("again") == digests("out")


def test_labels_and_texts_stay_rows_for_the_recipe_to_draw_from(files: Path) -> None:
    """What they become, the recipe says: nv-embed-v1 and v2 read one file, one with labels as documents."""
    labelled = [{"text": sentence(t, i), "label": t} for i in range(4) for t in TOPICS]
    write_jsonl(files / "classes.jsonl", [*labelled, {"text": "find the deep harbour", "label": "sea"}])
    write_jsonl(
        files / "texts.jsonl", [{"text": "one two"}, {"title": "one", "text": "two"}, {"text": "a b"}]
    )
    sources = [source_of("classes.jsonl", kind="labels"), source_of("texts.jsonl", kind="texts")]
    more = {"document_length": Limits(2), "teacher": "bm25"}  # a label is no document, and no pair
    curate(sources, files / "out", settings(files, **more), folder=files, console=quiet())
    assert rows(files / "out" / "classes.jsonl.gz") == labelled
    assert rows(files / "out" / "texts.jsonl.gz") == [{"text": "one two"}, {"text": "a b"}]
    for documents in ("examples", "labels"):
        kind = {"kind": "labels", "label_documents": documents}
        raw, curated = (
            read_source(Source(path=str(files / path), name="c", **kind), seed=0)
            for path in ("classes.jsonl", "out/classes.jsonl.gz")
        )
        assert [item.query for item in curated] == [item.query for item in raw[:-1]]
    assert {item.positives[0] for item in curated} == set(TOPICS)


def test_an_empty_result_says_which_step_dropped_how_much(files: Path) -> None:
    write_jsonl(
        files / "bad.jsonl",
        [{"query": "x", "positives": ["y"]}, {"query": "find the deep harbour", "positives": ["y"]}],
    )
    with pytest.raises(
        EmbedforgeError,
        match=r"nothing is left of source 'bad': lengths dropped 1 \(query too short\); exact duplicates "
        r"dropped 0; decontamination dropped 1 \(equals, but for case .*\)\. Nothing was written",
    ):
        run(files, "bread.jsonl", "bad.jsonl")
    assert not (files / "out").exists()


def test_a_failure_leaves_the_older_result(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(files, "bread.jsonl")
    before = {path: path.read_bytes() for path in (files / "out").iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "write_mark", full)
    with pytest.raises(EmbedforgeError, match="nothing was changed"):
        run(files, "bread.jsonl", near=0.5)
    assert {path: path.read_bytes() for path in (files / "out").iterdir()} == before
    assert [path.name for path in files.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_something_else_is_left_alone(files: Path) -> None:
    run(files, "bread.jsonl")
    with pytest.raises(EmbedforgeError, match=r"holds a curation of bread.jsonl.gz, which would be deleted"):
        run(files, "sea.jsonl")
    by_hand = files / "out" / "bioasq.jsonl"
    by_hand.write_text("written by hand")
    with pytest.raises(
        EmbedforgeError, match=r"holds something else \(bioasq.jsonl\), which would be deleted"
    ):
        run(files, "bread.jsonl")
    assert by_hand.read_text() == "written by hand"
    by_hand.unlink()
    run(files, "bread.jsonl")


@pytest.mark.parametrize(
    "report", [None, '{"settings": {}, "totals": {}}', '{"sources": ["a"], "steps": []}', "[1", "[]"]
)
def test_reports_of_other_commands_are_no_leave_to_delete(files: Path, report: str | None) -> None:
    """`synthesize`, `quickstart` and `adapt` write a report.json too, beside what was paid for or trained."""
    mine = files / "mine"
    mine.mkdir()
    (mine / "journal.jsonl").write_text("paid for")
    if report is not None:
        (mine / "report.json").write_text(report)
    with pytest.raises(EmbedforgeError, match=r"holds something else \(journal.jsonl"):
        run(files, "absent.jsonl", out="mine")  # before anything is read
    assert (mine / "journal.jsonl").read_text() == "paid for"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EmbedforgeError, match="this is a file"):
        run(files, "absent.jsonl", out="bread.jsonl")
    with pytest.raises(EmbedforgeError, match=r"bread\.jsonl is a file, and a folder is to be written"):
        run(files, "absent.jsonl", out="bread.jsonl/out")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(EmbedforgeError, match="is no folder that may be written"):
        run(files, "absent.jsonl", out="deep/out")


def test_two_sources_of_one_name_are_refused(files: Path) -> None:
    (files / "other").mkdir()
    write_jsonl(files / "other" / "bread.jsonl", pairs("bread", 0, 1))
    with pytest.raises(EmbedforgeError, match=r"two sources are named 'bread'.*NAME=PATH"):
        run(files, "bread.jsonl", "other/bread.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "word"}, "--unit 'word' is none of words, characters, tokens. Did you mean 'words'"),
        ({"documents": "relevent"}, "--documents 'relevent'.*Did you mean 'relevant'"),
        ({"near": 1.5}, "--near is from 0.5 to 1.*got 1.5"),
        ({"near": 0.2}, "--near is from 0.5 to 1: of less similar texts MinHash finds too few, got 0.2"),
        ({"unit": "tokens"}, "--unit tokens has no effect without --query-length or --document-length"),
        ({"bm25": 0.8}, "--bm25 0.8 has no effect without --against"),
        ({"documents": "all"}, "--documents all has no effect without --against"),
        ({"ngram": 8}, "--ngram 8 has no effect without --against"),
        ({"language_confidence": 0.5}, "--language-confidence 0.5 has no effect without --languages"),
        ({"top_k": 5}, "--top-k 5 has no effect without --teacher"),
        ({"device": "cuda"}, "--device cuda has no effect without --teacher"),
        ({"teacher": "nowhere"}, "'nowhere' is no folder here"),
        ({"ngram": 3}, "--ngram is 0 .*got 3"),
        ({"bm25": 2.0}, "--bm25"),
        ({"top_k": 0}, "--top-k"),
        ({"exact": False}, "nothing to do: every step is off"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_work(
    files: Path, change: dict, message: str
) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        curate([source_of("absent.jsonl")], files / "out", Curation(**change), folder=files, console=quiet())


def test_the_consistency_step_runs_on_bm25_and_on_a_model(files: Path, model_folder: Path) -> None:
    write_jsonl(
        files / "b.jsonl",
        [{"query": sentence("sea", i), "positives": [sentence("sea", i) + " text"]} for i in range(9)],
    )
    for teacher in ("bm25", str(model_folder)):
        report = run(
            files, "b.jsonl", out=f"out-{Path(teacher).name}", teacher=teacher, top_k=9, device="cpu"
        )
        assert report.steps[-1].settings["teacher"] == teacher
        assert report.sources[0].examples_out == 9


def test_the_page_is_self_contained_and_escapes_texts(files: Path) -> None:
    write_jsonl(
        files / "a.jsonl", [*pairs("sea", 0, 2), {"query": "<script>alert(1)</script>", "positives": ["<b>"]}]
    )
    curate(
        [source_of("a.jsonl")], files / "out", Curation(query_length=Limits(2)), folder=files, console=quiet()
    )
    page = (files / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=|url\(|https?:", page)


def test_the_summary_names_steps_and_files(files: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    curate([source_of("bread.jsonl")], files / "out", settings(files), folder=files, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "exact duplicate (3)" in text
    assert "bread: 10 of 13 Examples in bread.jsonl.gz" in text


def test_names_in_brackets_are_printed_as_they_are(files: Path) -> None:
    (files / "tasks" / "clustering" / "waters").rename(files / "tasks" / "clustering" / "[red]waters")
    (files / "sea.jsonl").rename(files / "[bold]sea.jsonl")
    console = Console(file=io.StringIO(), width=200)
    curate([source_of("[bold]sea.jsonl")], files / "out", settings(files), folder=files, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "clustering/[red]waters (1)" in text
    assert "[bold]sea: 6 of 8 Examples" in text


def test_the_page_says_what_was_dropped_and_what_was_not_asked(files: Path) -> None:
    report = run(files, "bread.jsonl", "sea.jsonl")
    page = (files / "out" / "report.html").read_text()
    assert re.search(
        r'Kept</div>\s*<div class="value">15</div>\s*<div class="remark">71\.4 % of 21 Examples', page
    )
    assert re.search(r'In the test sets</div>\s*<div class="value">1</div>', page)
    assert "bm25: off" in page
    assert report.steps[-1].settings["texts"] == 2  # what was read of the test sets
    curate([source_of("bread.jsonl")], files / "other", Curation(), folder=files, console=quiet())
    page = (files / "other" / "report.html").read_text()
    assert re.search(r'In the test sets</div>\s*<div class="value">\?</div>', page)
