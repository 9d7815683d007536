"""What training says of its data before it begins: what teaches nothing, instructions, held-out rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from embedforge.data.example import Example
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, parse_recipe
from embedforge.show import show
from embedforge.train.mixtures import read_held_out, read_mixture, unseen_instruction
from embedforge.train.run import train

PAIR = {"query": "which river?", "positives": ["the Nile"]}
TRIPLE = {**PAIR, "negatives": ["the Rhine"]}
ASKED = "Find the river"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(source: dict[str, Any], stage: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    values = {
        "name": "only",
        "steps": 1,
        "warmup_steps": 0,
        "batch_queries": 4,
        "mix": {"sources": [source]},
        **(stage or {}),
    }
    contract = {"max_tokens": 48, "default_instruction": ASKED}
    recipe = {"name": "mine", "contract": contract, "stages": [values], **changes}
    return parse_recipe(recipe, "mine.yaml")


# --- a loss that is always 0 -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "source", "stage", "message"),
    [
        (PAIR, {}, {"objective": {"in_batch": "none"}}, "no row has negatives.*in_batch is 'none'"),
        (PAIR, {"in_batch_negatives": False}, {}, "no row has negatives.*in_batch_negatives: false"),
        (PAIR, {}, {"batch_queries": 1}, "no row has negatives.*batch_queries is 1"),
        (
            TRIPLE,
            {},
            {"objective": {"in_batch": "none"}, "negatives": 0},
            "the stage draws no negatives.*in_batch is 'none'",
        ),
    ],
)
def test_a_source_without_anything_to_contrast_with_is_refused(
    tmp_path: Path, row: dict[str, Any], source: dict[str, Any], stage: dict[str, Any], message: str
) -> None:
    write(tmp_path / "rivers.jsonl", *[row] * 8)
    (only,) = recipe_of({"path": "rivers.jsonl", **source}, stage).stages
    with pytest.raises(EmbedforgeError, match=rf"stage 'only', source 'rivers'.*always be 0.*{message}"):
        read_mixture(only, 0, tmp_path)


@pytest.mark.parametrize(
    ("row", "stage"),
    [(PAIR, {}), (PAIR, {"negatives": 0}), (TRIPLE, {"objective": {"in_batch": "none"}})],
)
def test_a_source_with_something_to_contrast_with_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], stage: dict[str, Any]
) -> None:
    write(tmp_path / "rivers.jsonl", *[row] * 8)
    assert read_mixture(recipe_of({"path": "rivers.jsonl"}, stage).stages[0], 0, tmp_path)
    assert not caplog.text


def test_rows_that_teach_nothing_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "rivers.jsonl", *[TRIPLE] * 5, *[PAIR] * 3)
    stage = recipe_of({"path": "rivers.jsonl"}, {"objective": {"in_batch": "none"}}).stages[0]
    with caplog.at_level(logging.WARNING):
        read_mixture(stage, 0, tmp_path)
    assert "stage 'only', source 'rivers': 3 of 8 rows have neither" in caplog.text


# --- the instruction of encode_query ---------------------------------------------------------------


def test_an_instruction_that_no_query_has_is_pointed_out() -> None:
    contract = recipe_of({"path": "a.jsonl"}).contract
    warning = unseen_instruction(contract, ["", "Find the town"])
    assert warning is not None
    assert f"'{ASKED}'" in warning
    assert "(their instructions: none, 'Find the town')" in warning
    assert "Set contract.default_instruction" in warning
    assert unseen_instruction(contract, ["", ASKED]) is None
    assert unseen_instruction(contract.model_copy(update={"default_instruction": ""}), [""]) is None
    plain = contract.model_copy(update={"query_template": "query: {text}"})
    assert unseen_instruction(plain, [""]) is None, "a template without a place for it"


@pytest.mark.parametrize(
    ("row", "source", "warned"),
    [
        (PAIR, {}, True),
        (PAIR, {"instruction": "Find the town"}, True),
        (PAIR, {"instruction": ASKED}, False),
        ({**PAIR, "instruction": ASKED}, {}, False),
    ],
)
def test_show_and_train_point_it_out(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    row: dict[str, Any],
    source: dict[str, Any],
    warned: bool,
) -> None:
    write(tmp_path / "rivers.jsonl", *[row] * 8)
    recipe = recipe_of(
        {"path": "rivers.jsonl", **source},
        model={"base": str(tiny_base)},
        training={"precision": "float32"},
    )
    (tmp_path / "mine.yaml").write_text(recipe.model_dump_json())
    show(str(tmp_path / "mine.yaml"), [], tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert ("warning: encode_query will put" in said) == warned
    train(recipe, tmp_path / "run", source_folder=tmp_path, device="cpu", quiet=True)
    assert ("encode_query will put" in caplog.text) == warned


def test_show_takes_the_written_instructions_where_the_data_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for instruction, warned in ((ASKED, False), ("", True)):
        recipe = recipe_of({"path": "gone.jsonl", "instruction": instruction})
        (tmp_path / "mine.yaml").write_text(recipe.model_dump_json())
        show(str(tmp_path / "mine.yaml"), [], tmp_path)
        assert ("encode_query will put" in capsys.readouterr().out) == warned


# --- held-out examples -----------------------------------------------------------------------------


def test_held_out_examples_give_metrics_every_so_many_steps(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"query": f"which {n}?", "positives": [f"number {n}"]} for n in range(8)]
    write(tmp_path / "rivers.jsonl", *rows)
    write(tmp_path / "dev.jsonl", *rows[:3], {**rows[3], "instruction": "Another"})
    recipe = recipe_of(
        {"path": "rivers.jsonl", "instruction": ASKED},
        {"steps": 5},
        model={"base": str(tiny_base)},
        training={"precision": "float32", "held_out": "dev.jsonl", "eval_steps": 2, "log_steps": 1},
    )
    assert [row.instruction for row in read_held_out(recipe, tmp_path)] == [ASKED] * 3 + ["Another"]
    train(recipe, tmp_path / "run", source_folder=tmp_path, device="cpu", quiet=True)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    measured = [entry for entry in log if "eval_mrr@10" in entry]
    assert [entry["step"] for entry in measured] == [2, 4]
    assert all(0 < entry["eval_mrr@10"] <= 1 for entry in measured)


def test_examples_of_the_caller_are_measured_on_too(tiny_base: Path, tmp_path: Path) -> None:
    write(tmp_path / "rivers.jsonl", *[PAIR] * 8)
    recipe = recipe_of(
        {"path": "rivers.jsonl", "instruction": ASKED},
        model={"base": str(tiny_base)},
        training={"precision": "float32", "eval_steps": 1},
    )
    given = [Example("which river?", ("the Nile",))]
    train(recipe, tmp_path / "run", source_folder=tmp_path, device="cpu", quiet=True, held_out=given)
    assert "eval_recall@10" in (tmp_path / "run" / "log.jsonl").read_text()


def test_eval_steps_without_held_out_examples_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "rivers.jsonl", *[PAIR] * 8)
    source = {"path": "rivers.jsonl", "instruction": ASKED}
    recipe = recipe_of(source, training={"eval_steps": 2})
    with pytest.raises(EmbedforgeError, match=r"training\.eval_steps is 2, .*training\.held_out"):
        train(recipe, tmp_path / "run", source_folder=tmp_path, device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine.yaml").write_text(recipe.model_dump_json())
    show(str(tmp_path / "mine.yaml"), [], tmp_path)
    assert "warning: training.eval_steps is 2" in capsys.readouterr().out


def test_a_held_out_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    source = {"path": "rivers.jsonl", "instruction": ASKED}
    recipe = recipe_of(source, training={"eval_steps": 2, "held_out": "dev.jsonl"})
    with pytest.raises(EmbedforgeError, match=r"dev\.jsonl: there is no such file"):
        read_held_out(recipe, tmp_path)
    with pytest.raises(EmbedforgeError, match=r"training\.held_out \(dev\.jsonl\) has no effect here"):
        read_held_out(recipe, tmp_path, [Example("a", ("b",))])
