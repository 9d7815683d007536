"""Every file in examples/ runs, is short, and says what it shows."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from documents_for_tests import page
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import load
from pairs_for_tests import write_pairs_folder

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "ablation.py": [
        *("recipe.yaml", "stages.retrieval.objective.temperature", "0.02", "0.1", "--tasks", "datasets"),
        *("--set", "stages.retrieval.steps=2", "--set", "training.precision=float32"),
    ],
    "adapt_folder.py": [
        *("documents", "--minutes", "0.05", "--query", "rivers", "--set", "training.precision=float32"),
        *("--set", "contract.max_tokens=48", "--set", "stages.mntp.objective.chunk_tokens=48"),
        *("--set", "stages.simcse.document_max_tokens=32"),
        *("--set", "stages.mntp.steps=1", "--set", "stages.mntp.batch_queries=2"),
        *("--set", "stages.simcse.steps=1", "--set", "stages.simcse.batch_queries=2"),
    ],
    "finetune_lora.py": ["pairs.jsonl", "--steps", "2"],
    "new_objective.py": ["--steps", "2", "--out", "out"],
    "new_pooling.py": ["--steps", "2", "--out", "out"],
}
"""Arguments of a run of a few seconds; pairs.jsonl, recipe.yaml, datasets/ and documents/ are there."""


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    write_pairs_folder(tmp_path)
    (tmp_path / "documents").mkdir()
    for number in range(8):
        (tmp_path / "documents" / f"{number}.md").write_text(page(number, sections=4), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *SMALL[name]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip(), "it says nothing of what came out"
    if name == "new_pooling.py":
        with pytest.raises(EmbedforgeError, match=r"'tail' is not embedforge's.*import new_pooling"):
            load(str(tmp_path / "out" / "model"), "cpu")


@pytest.mark.parametrize("name", SMALL)
def test_an_example_is_short_and_says_what_it_shows(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{name}" in docstring, "how to run it"
    assert "Cost:" in docstring
