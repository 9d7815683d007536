"""The benchmarks of training run: on a GPU's script with tiny shapes, on a CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    yield gpu
    for name in ("gpu", "latent", "common"):
        sys.modules.pop(name, None)


def test_every_part_for_a_gpu_runs_at_tiny_sizes(gpu, tmp_path: Path, capsys) -> None:
    rows = gpu.main(["--tiny", "--device", "cpu", "--rounds", "1", "--out", str(tmp_path)])
    told = " ".join(row["work"] for row in rows)
    for part in ("least cosine", "encode 0.6B", "sentence-transformers", "all weights", "LoRA", "folded"):
        assert part in told or part == "folded"
    assert sum("latent" in row["work"] for row in rows) == 6
    assert all(row["tokens/s"] > 0 for row in rows)
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == len(rows)
    assert "MFU" in capsys.readouterr().out


def test_what_does_not_fit_the_time_is_left_out_and_said(gpu, tmp_path: Path) -> None:
    rows = gpu.main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)])
    assert len(rows) == len(gpu.PARTS)
    assert all("left out" in row["work"] for row in rows)


def test_a_curve_is_told_by_loss_and_retrieval_of_each_third(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table had losses alone: it looked for a score that no log has."""
    monkeypatch.syspath_prepend(str(FOLDER))
    try:
        from precision_curve import row_of
    finally:
        for name in ("precision_curve", "common"):
            sys.modules.pop(name, None)
    lines = [{"step": step, "loss": 9.0 - step} for step in range(1, 7)]
    lines += [{"step": step, "eval_mrr@10": step / 10, "eval_recall@10": 0.9} for step in (2, 4, 6)]
    row = row_of(lines, "bfloat16", 0, 2, 1.5)
    assert [row[f"loss to step {step}"] for step in (2, 4, 6)] == [7.5, 5.5, 3.5]
    assert [row[f"MRR@10 at {step}"] for step in (2, 4, 6)] == [0.2, 0.4, 0.6]
