"""What `mine` refuses before it reads a text, what it prints at its end, and its command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedforge.cli import app
from embedforge.errors import EmbedforgeError
from embedforge.mine import run
from embedforge.mine.embedder import Prompts
from embedforge.mine.keep import KeepRule
from embedforge.mine.pipeline import Selection
from embedforge.mine.settings import Teachers, check
from embedforge.mine.terminal import summary
from embedforge.recipe import Source, source_of

BM25 = Teachers(("bm25",))
ENDPOINT = "http://127.0.0.1:9/v1#m"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [("open sea", "the open sea"), ("baked bread", "bread, baked"), ("a sea of bread", "bread at sea")]
    path.write_text("".join(json.dumps({"query": q, "positives": [p]}) + "\n" for q, p in rows))
    return path


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teachers", "choice", "message"),
    [
        (Teachers(()), Selection(), "name at least one --teacher"),
        (Teachers(("bm25", "bm25")), Selection(), "named twice"),
        (Teachers(("bm25:letters",)), Selection(), "there are bm25, bm25:words, bm25:identifiers"),
        (Teachers(("BM25",)), Selection(), "Did you mean 'bm25'"),
        (Teachers(("embedforge:base@mean",)), Selection(), "no teacher; name a trained model"),
        (Teachers(("run:none.trec",)), Selection(), "run:none.trec: there is no such file"),
        (Teachers(("http://127.0.0.1:9/v1",)), Selection(), "add the model's name"),
        (Teachers(("bm25",), index="IVF16,SQ8"), Selection(), "--index IVF16,SQ8 has no effect"),
        (Teachers(("bm25",), max_tokens=9), Selection(), "--max-tokens 9 has no effect"),
        (Teachers(("model",), key_variable="KEY"), Selection(), "--key-variable KEY has no effect"),
        (Teachers((ENDPOINT,), key_variable="NO_KEY"), Selection(), "has no NO_KEY; set it: export NO_KEY="),
        (Teachers((ENDPOINT,), dtype="float32"), Selection(), "--dtype float32: .* decides that itself"),
        (Teachers(("model",), Prompts(document="{x}")), Selection(), "no other braces"),
        (BM25, Selection(7, 5), "of 5 candidates at most"),
        (BM25, Selection(7, 100, KeepRule(sample_from=3)), "--sample-from 3: fewer than --negatives 7"),
        (BM25, Selection(7, 100, KeepRule("shifted", 100)), "passes over all of the 100 candidates"),
    ],
)
def test_settings_without_sense_are_refused_before_a_text_is_read(
    pairs: Path, tmp_path: Path, teachers: Teachers, choice: Selection, message: str
):
    with pytest.raises(EmbedforgeError, match=message):
        run.mine(Source(path=str(pairs)), tmp_path / "out", teachers, choice)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("memory_gb", [0.1, float("nan"), float("inf")])
def test_memory_is_a_number_of_one_or_more(pairs: Path, tmp_path: Path, memory_gb: float):
    with pytest.raises(EmbedforgeError, match="a number from 1 on"):
        run.mine(Source(path=str(pairs)), tmp_path / "out", BM25, memory_gb=memory_gb)


@pytest.mark.parametrize("kind", ["labels", "clusters"])
def test_documents_of_the_querys_class_are_no_negatives(tmp_path: Path, kind: str):
    """Nobody lists them as positives; of what was mined for clusters three in four were of the class."""
    with pytest.raises(EmbedforgeError, match="would often be positives"):
        run.mine(source_of("rows.jsonl", kind=kind), tmp_path / "out", BM25)


def test_more_teachers_give_more_candidates(pairs: Path, tmp_path: Path):
    both = Teachers(("bm25", "bm25:identifiers"))
    check(Source(path=str(pairs)), tmp_path / "out", both, Selection(7, 5), 4.0)


def test_a_source_is_not_overwritten_by_what_is_mined_for_it(pairs: Path, tmp_path: Path):
    out = tmp_path / "out"
    run.mine(Source(path=str(pairs)), out, BM25)
    before = (out / "examples.jsonl").read_bytes()
    with pytest.raises(EmbedforgeError, match="would be overwritten"):
        run.mine(Source(path=str(out / "examples.jsonl")), out, BM25)
    assert (out / "examples.jsonl").read_bytes() == before


def test_a_folder_with_something_else_is_left_alone(pairs: Path, tmp_path: Path):
    with pytest.raises(EmbedforgeError, match="holds something else"):
        run.mine(Source(path=str(pairs)), tmp_path, BM25)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


# --- what is printed ---------------------------------------------------------------------------------


def facts_of(counts: dict[str, int] | None = None, **changes: object) -> dict:
    found = {"examples": 100, "chosen": 640, "without a negative": 4}
    return {
        "source": {"path": "pairs.jsonl", "symmetric": False},
        "teachers": {"names": ["bm25"], "index": "exact"},
        "fingerprints": {"bm25": "bm25 words"},
        "judge": "bm25",
        "positives added to the corpus": 0,
        "documents without a text": 0,
        "counts": {"pairs": found | (counts or {})},
        **changes,
    }


def test_the_end_says_what_came_out_and_what_to_do_next():
    assert summary(Path("mined"), facts_of()).splitlines() == [
        "640 negatives for 100 Examples, 6.4 each; 4 got none.",
        "Audit: mined/audit.html, to read before training on them",
        "Examples: mined/examples.jsonl",
        "Next: put it into the mix of a recipe, and train (docs/recipes.md):",
        "  - {path: mined/examples.jsonl, name: pairs}",
        "  embedforge train RECIPE.yaml --out run",
    ]


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (facts_of({"without a negative": 30}), "30% got none"),
        (facts_of(source={"path": "a", "symmetric": True}), "name: pairs, symmetric: true}"),
        (facts_of(source={"path": "catalog:nq", "symmetric": False}), "data/nq.jsonl, which recipes with"),
        (facts_of(**{"positives added to the corpus": 3}), "3 positives were not in the corpus"),
        (facts_of(**{"documents without a text": 2}), "2 documents of the corpus have no text and were"),
        (
            facts_of(
                teachers={"names": ["bm25", "run:r"], "index": "exact"},
                fingerprints={"bm25": "words", "run:r": {"file": "", "queries that it lacks": 8}},
            ),
            "run:r does not rank 8 of the queries",
        ),
        (
            facts_of(
                teachers={"names": ["m", "bm25"], "index": "IVF16,SQ8"},
                fingerprints={"m": {"recall of the index": 0.906}, "bm25": "words"},
                judge="m",
            ),
            "IVF16,SQ8 finds 90.6%",
        ),
    ],
)
def test_the_end_names_what_is_odd(facts: dict, line: str):
    assert line in summary(Path("mined"), facts)


def test_nothing_mined_is_nothing_to_train_on():
    assert "train RECIPE" not in summary(Path("mined"), facts_of({"chosen": 0, "without a negative": 100}))


# --- the command line --------------------------------------------------------------------------------


def mine_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    monkeypatch.chdir(folder)
    return lambda *arguments: CliRunner().invoke(app, ["mine", *arguments])


def test_the_command_mines_and_says_what_to_do_next(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = mine_in(tmp_path, monkeypatch)("pairs.jsonl", "--teacher", "bm25", "--rule", "top_k")
    assert result.exit_code == 0
    assert "{path: mined/examples.jsonl, name: pairs}" in result.output


def test_a_catalogue_entry_brings_its_kind_and_its_instruction(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "data").mkdir()
    pairs.rename(tmp_path / "data" / "nq.jsonl")
    assert mine_in(tmp_path, monkeypatch)("catalog:nq", "--teacher", "bm25").exit_code == 0
    asked = json.loads((tmp_path / "mined" / "mine.json").read_text())["source"]
    expected = source_of("catalog:nq")
    assert (asked["kind"], asked["instruction"]) == (expected.kind, expected.instruction)
    assert asked["instruction"]


def test_ctrl_c_says_that_the_same_command_goes_on(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "mine", interrupted)
    result = mine_in(tmp_path, monkeypatch)("pairs.jsonl", "--teacher", "bm25")
    assert result.exit_code == 130
    assert "The same command goes on" in result.output
