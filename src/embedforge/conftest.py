"""Where the examples in docstrings run: a folder with what they read. For pytest; not part of the package.

pairs.jsonl, recipe.yaml, datasets/   see tests/pairs_for_tests.py
model/                                a saved model: the bundled decoder, untrained
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # Read when huggingface_hub is imported.
sys.path.append(str(Path(__file__).parents[2] / "tests"))


@pytest.fixture(scope="session")
def _example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pairs_for_tests import write_pairs_folder

    folder = tmp_path_factory.mktemp("examples")
    write_pairs_folder(folder)
    return folder


@pytest.fixture(scope="session")
def _example_model(_example_folder: Path) -> None:
    from embedforge import Contract, build, save

    save(build(base="embedforge:base", contract=Contract(max_tokens=64)), _example_folder / "model")


@pytest.fixture(scope="session")
def _stand_in() -> Iterator[Any]:
    from endpoint_for_tests import serve

    with serve() as server:
        yield server


@pytest.fixture(autouse=True)
def _in_the_example_folder(
    request: pytest.FixtureRequest,
    _example_folder: Path,
    doctest_namespace: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stand in the folder; what takes time to make is made for the examples that name it."""
    monkeypatch.chdir(_example_folder)
    text = request.node.dtest.docstring
    if '"model"' in text:
        request.getfixturevalue("_example_model")
    if "stand_in" in text:
        doctest_namespace["stand_in"] = request.getfixturevalue("_stand_in")
