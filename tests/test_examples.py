"""Every file in examples/ runs as a script, in small, and says what it does and how to run it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import load

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALL = {
    "new_objective": ["--steps", "2", "--out", "OUT"],
    "new_pooling": ["--steps", "2", "--out", "OUT"],
}
"""Arguments that make an example short; OUT is a folder of the test."""


def run(example: Path, out: Path) -> str:
    """What an example prints; in a process of its own, for it may define kinds that no other test knows."""
    arguments = [str(out) if word == "OUT" else word for word in SMALL[example.stem]]
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        capture_output=True,
        text=True,
        cwd=out.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert f"python examples/{example.name}" in (ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    assert run(example, tmp_path / "out")
    if example.stem == "new_pooling":
        with pytest.raises(EmbedforgeError, match=r"'tail' is not embedforge's.*import new_pooling"):
            load(str(tmp_path / "out" / "model"), "cpu")
