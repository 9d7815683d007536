"""The table that `embedforge evaluate` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from embedforge.evaluate.terminal import print_scores

SCORES = {"retrieval/rivers-and-lakes-of-the-world": (0.5812, 0.7124, 0.6), "sts/guitars": (0.61, None, 0.4)}
LONG = ["runs/2026-11-01/first-try/model", "embedforge:base@weighted_mean", "bm25"]


def results(models: list[str]) -> dict[str, Any]:
    tests = {
        "retrieval/rivers-and-lakes-of-the-world": {"difference": 0.13, "is_real": True},
        "sts/guitars": {"difference": -0.21, "is_real": True},
    }
    chance = {"sts/guitars": {"difference": -0.21, "is_real": False}}
    return {
        "mean": dict(zip(models, (0.5956, None, 0.5), strict=False)),
        "differences": dict(zip(models[1:], ({**tests, **chance}, tests), strict=False)),
        "notes": {},
        "undecontaminated": {},
        "tasks": {
            task: {
                model: None if score is None else {"score": score}
                for model, score in zip(models, row, strict=False)
            }
            for task, row in SCORES.items()
        },
    }


def printed(folder: Path, models: list[str], width: int = 80) -> list[str]:
    (folder / "results.json").write_text(json.dumps(results(models)))
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        print_scores(folder, console)
    return capture.get().splitlines()


def test_real_differences_are_marked_and_the_files_are_named(tmp_path: Path) -> None:
    lines = printed(tmp_path, ["model", "base", "bm25"], width=100)
    (rivers,) = [line.split() for line in lines if "rivers" in line]
    assert rivers[1:] == ["0.581", "▲", "0.712", "▲", "0.600"]
    (guitars,) = [line.split() for line in lines if "guitars" in line]
    assert guitars[1:] == ["0.610", "–", "▼", "0.400"]
    (mean,) = [line.split() for line in lines if "mean" in line]
    assert mean[1:] == ["0.596", "–", "0.500"]
    assert any("▲ better, ▼ worse than model; others may be chance" in line for line in lines)
    assert lines[-2:] == [str(tmp_path / "report.html"), str(tmp_path / "results.json")]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_up_to_three_models_fit_80_columns_and_nothing_is_cut(tmp_path: Path, count: int) -> None:
    lines = printed(tmp_path, LONG[:count])
    table = lines[:-2]
    assert max(map(len, table)) <= 80
    assert not any("…" in line for line in table)
    for score in (score for row in SCORES.values() for score in row[:count] if score is not None):
        assert any(f"{score:.3f}" in line for line in table)


def test_one_model_has_no_marks(tmp_path: Path) -> None:
    text = "\n".join(printed(tmp_path, ["model"]))
    assert "▲" not in text
    assert "better" not in text


def test_square_brackets_in_a_name_are_text(tmp_path: Path) -> None:
    assert any("[red]model" in line for line in printed(tmp_path, ["[red]model"]))
