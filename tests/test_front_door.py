"""The Python API: names that mean the same in any order of imports, cost nothing unused, are documented."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import embedforge

NAMES = sorted(set(embedforge.__all__) - {"__version__"})
PROMISED = (
    "load encode train Recipe load_recipe evaluate mine curate synthesize probe build save "
    "Contract Example Index EmbedforgeError"
)
HIDDEN = [name for name in NAMES if find_spec(f"embedforge.{name}") is not None]
"""Names that a package or module has too."""

HOMES = [f"embedforge.{name}" for name in HIDDEN] + sorted(set(embedforge._HOMES.values()))
IMPORT_PACKAGES = f"""
from importlib import import_module
for name in {HOMES}:
    import_module(name)
"""
CHECK = f"""
import embedforge, types
for name in {NAMES}:
    value = getattr(embedforge, name)
    assert callable(value) and not isinstance(value, types.ModuleType), (name, value)
    assert value.__name__ == name, (name, value)
from embedforge import *
from embedforge import train as function
from embedforge.train.run import train as same
assert train is function is same is embedforge.train
from embedforge.train import run
import sys
assert run is sys.modules["embedforge.train.run"] and run.train is same
"""


def python(code: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_was_promised_is_there() -> None:
    assert set(PROMISED.split()) == set(NAMES)
    assert HIDDEN == ["curate", "encode", "evaluate", "mine", "synthesize", "train"]


@pytest.mark.parametrize(
    "code",
    [IMPORT_PACKAGES + CHECK, CHECK + IMPORT_PACKAGES + CHECK],
    ids=["packages first", "names first"],
)
def test_a_verb_is_a_function_whatever_was_imported_before(code: str) -> None:
    python(code)


def test_importing_embedforge_costs_nothing() -> None:
    python(
        "import sys, embedforge; dir(embedforge); assert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    )


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = embedforge.trian
    assert set(NAMES) <= set(dir(embedforge))


def test_a_test_may_replace_a_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedforge, "train", print)
    assert embedforge.train is print
    monkeypatch.undo()
    assert embedforge.train.__name__ == "train"


def test_type_checkers_see_what_is_there() -> None:
    """The imports that only they read name the same homes as the table that is used."""
    tree = ast.parse(Path(embedforge.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {name.name: node.module for node in imports for name in node.names} == embedforge._HOMES
    assert set(embedforge._HOMES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented(name: str) -> None:
    text = inspect.getdoc(getattr(embedforge, name)) or ""
    assert text
    if name not in {"Contract", "Example", "EmbedforgeError"}:
        assert ">>> " in text, "no example"
