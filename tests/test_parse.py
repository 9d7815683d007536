"""A key given twice is refused with its line, wherever users' YAML or JSON is read."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import yaml

from embedforge.data.readers import read_records
from embedforge.errors import EmbedforgeError
from embedforge.files import read_json
from embedforge.parse import RepeatedKeyError, parse_json, parse_yaml
from embedforge.recipe import load_recipe
from embedforge.recipe.file import read_values

RECIPE = """\
name: mine
stages:
  - name: one
    steps: 1
    mix: {sources: [{path: a.jsonl}]}
"""


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ('{"a": 1, "a": 1}', "a", 1),
        ('{"a": {"b": 1,\n "c": ":",\n "b": 2}}', "b", 3),
        ('[{"a": 1},\n {"a": "}{", "\\u0061": 2}]', "a", 2),
    ],
)
def test_a_key_of_a_json_object(text: str, key: str, line: int) -> None:
    with pytest.raises(RepeatedKeyError) as caught:
        parse_json(text)
    assert (caught.value.key, caught.value.line) == (key, line)


def test_keys_of_different_objects_and_merged_ones_may_be_the_same() -> None:
    assert parse_json('[{"a": {"a": 1}}, {"a": 2}]') == [{"a": {"a": 1}}, {"a": 2}]
    text = "a: {x: &base {<<: &top {k: 1}, k: 2}}\nb: {<<: *base, k: 3}\n1: x\n'1': y\n"
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "r.yaml",
            RECIPE + "stages: []\n",
            "line 6: .*'stages' is given twice in .*, first in line 2",
        ),
        ("r.yaml", RECIPE + "    steps: 2\n", "line 6: .*'steps' is given twice.*, first in line 4"),
        (
            "r.yaml",
            RECIPE.replace("path: a.jsonl", "path: a.jsonl, path: b"),
            "line 5: .*'path' is given twice",
        ),
        ("r.json", '{"name": "mine",\n"stages": [],\n"stages": []}', "line 3: .*'stages' is given twice"),
    ],
)
def test_a_recipe(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EmbedforgeError, match=rf"{name}, {message}"):
        load_recipe(str(tmp_path / name))
    (tmp_path / "child.yaml").write_text(f"extends: {name}\n")
    with pytest.raises(EmbedforgeError, match=rf"{name}, {message}"):
        load_recipe(str(tmp_path / "child.yaml"))


def test_a_value_of_set(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(EmbedforgeError, match=r"--set training=.*'seed' is given twice"):
        read_values(tmp_path / "r.yaml", ["training={seed: 1, seed: 2}"])


def test_a_models_config_and_a_row(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{\n  "hidden_size": 8,\n  "hidden_size": 16\n}\n')
    with pytest.raises(EmbedforgeError, match=r"config\.json, line 3: the key 'hidden_size' is given twice"):
        read_json(config)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "positive": "b"}\n{"query": "a", "positive": "b", "positive": "c"}\n')
    with pytest.raises(EmbedforgeError, match=r"rows\.jsonl, line 2: the key 'positive' is given twice"):
        list(read_records(rows))
    rows.write_text(json.dumps({"query": "a", "positives": []})[:-2] + '{"text": "b", "text": "c"}]}\n')
    with pytest.raises(EmbedforgeError, match=r"rows\.jsonl, line 1: the key 'text' is given twice"):
        list(read_records(rows))


def test_a_column_of_a_table(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(pyarrow.table(columns, names=["text", "text"]), tmp_path / "rows.parquet")
    with pytest.raises(EmbedforgeError, match=r"rows\.parquet: two columns are named \['text'\]"):
        list(read_records(tmp_path / "rows.parquet"))


def test_files_of_the_package_that_another_parser_reads() -> None:
    package = resources.files("embedforge")
    for name in ("data/catalog.yaml", "synthesize/prompts/groups.yaml", "synthesize/prompts/languages.yaml"):
        assert parse_yaml(package.joinpath(name).read_text(encoding="utf-8"))
