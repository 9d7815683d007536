"""Where the examples in docstrings run: a folder with what they read. For pytest; not part of the package.

pairs.jsonl      a query and its answer a line
recipe.yaml      a recipe that trains on them
datasets/        the same as a retrieval dataset, retrieval/pairs
model/           a saved model: the bundled decoder, untrained
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # Read when huggingface_hub is imported.

TESTS = Path(__file__).parents[2] / "tests"
PAIRS = {
    "how do I undo a commit?": "git reset moves the branch back to an earlier commit",
    "put changes aside": "git stash keeps the changes of the working tree for later",
    "who changed this line?": "git blame names the commit that last touched each line",
    "find the commit that broke the build": "git bisect halves the history until one commit is left",
    "copy one commit to another branch": "git cherry-pick applies the change of a commit here",
    "show what is not committed yet": "git diff prints the lines that differ from the index",
    "download a repository": "git clone copies a repository with its whole history",
    "give a version a name": "git tag marks a commit with a name that does not move",
}
RECIPE = """\
name: pairs
contract: {max_tokens: 32}
stages:
  - name: retrieval
    steps: 100
    batch_queries: 4
    negatives: 0
    mix:
      sources:
        - {path: pairs.jsonl, instruction: "Given a question, retrieve the command that answers it"}
"""


def _write(folder: Path) -> None:
    lines = [json.dumps({"query": query, "positives": [text]}) for query, text in PAIRS.items()]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    dataset = folder / "datasets" / "retrieval" / "pairs"
    (dataset / "qrels").mkdir(parents=True)
    for name, texts in (("queries", PAIRS), ("corpus", PAIRS.values())):
        rows = [json.dumps({"_id": f"{row}", "text": text}) for row, text in enumerate(texts)]
        (dataset / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    judged = [f"{row}\t{row}\t1" for row in range(len(PAIRS))]
    (dataset / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))


@pytest.fixture(scope="session")
def _example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    _write(folder)
    return folder


@pytest.fixture(scope="session")
def _example_model(_example_folder: Path) -> None:
    from embedforge import Contract, build, save

    save(build(base="embedforge:base", contract=Contract(max_tokens=64)), _example_folder / "model")


@pytest.fixture(scope="session")
def _stand_in() -> Iterator[Any]:
    sys.path.append(str(TESTS))
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
