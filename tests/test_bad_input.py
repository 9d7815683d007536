"""Bad input that no other file tests: damaged model folders, wrong settings, and a disk that is really full.

Elsewhere: data files and records in test_readers, test_convert and test_mixture; recipes in test_recipe; the
loss, checkpoints and memory of training in test_train and test_gradcache; decoders, tokenizers and cut off
weights in test_encoder and test_nvembed; the command line's answer to all of them in test_cli.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disk_for_tests import disk_with_room_for
from embedforge.errors import EmbedforgeError
from embedforge.files import write_text
from embedforge.model.encoder import build, load, load_decoder, save
from embedforge.recipe import parse_recipe
from embedforge.search import Document, Index, build_index
from embedforge.text.contract import Contract
from embedforge.train.run import train


@pytest.fixture(scope="module")
def saved_latent(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"kind": "latent", "latents": 8, "heads": 2, "head_dim": 16}
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(
        build(base=str(tiny_base), contract=Contract(max_tokens=64, pooling="latent"), pooling=shape), folder
    )
    return folder


@pytest.fixture
def model(saved_latent: Path, tmp_path: Path) -> Path:
    """A copy of a saved model, to be damaged."""
    return Path(shutil.copytree(saved_latent, tmp_path / "model"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- a model folder that is damaged --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"add_boss": True}, ["  add_boss: unknown key. Did you mean 'add_bos'?"]),
        ({"max_tokens": "many"}, ["  max_tokens: ", "'many'"]),
        ({"max_tokens": 2}, ["  max_tokens: ", "greater than or equal to 4 (found 2)"]),
        ({"padding_side": "middle"}, ["  padding_side: ", "'right' or 'left' (found 'middle')"]),
        ({"query_template": "Query:"}, ["  query_template: a template holds '{text}' exactly once"]),
        ({"query_template": "{text} {instruction}"}, ["  query_template: '{instruction}' stands before"]),
        ({"document_template": "{instruction}: {text}"}, ["  document_template: ", "through query_template"]),
        ({"goldens": [{"txt": "a"}]}, ["  goldens.0.txt: unknown key. Did you mean 'text'?"]),
    ],
)
def test_a_contract_with_a_wrong_value_names_file_key_value_and_way_out(
    tmp_path: Path, change: dict[str, Any], lines: list[str]
) -> None:
    Contract().save(tmp_path)
    file = tmp_path / "contract.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(EmbedforgeError) as caught:
        Contract.load(tmp_path)
    assert str(caught.value).startswith(f"{file}:\n")
    for part in lines:
        assert part in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("name", ["contract.json", "config.json", "1_Pool/config.json"])
@pytest.mark.parametrize("damage", [b"", b'{"half": ', b"[]", b"\xff\xfe{}"])
def test_a_damaged_json_file_of_a_model_is_named(model: Path, name: str, damage: bytes) -> None:
    (model / name).write_bytes(damage)
    with pytest.raises(EmbedforgeError, match=name if name != "1_Pool/config.json" else "1_Pool"):
        load(str(model), "cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "latent", "hidden_size": 32, "options": {"latnts": 3}}, "latnts"),
        ({"kind": "latent", "hidden_size": 32}, "'options'"),
        ({"kind": "lattent", "hidden_size": 32, "options": {}}, "Did you mean 'latent'"),
    ],
)
def test_a_pooler_that_cannot_be_built_is_named(model: Path, values: dict[str, Any], message: str) -> None:
    (model / "1_Pool" / "config.json").write_text(json.dumps(values))
    with pytest.raises(EmbedforgeError, match=message):
        load(str(model), "cpu")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: bytes(len(whole)),
        lambda whole: whole[:8] + bytes(len(whole) - 8),
        lambda whole: (2).to_bytes(8, "little") + b"[]" + whole[10:],
        lambda whole: whole[:100] + b"\xff" * 100 + whole[200:],
    ],
    ids=["zeros", "zeros after the length", "no object", "spoilt header"],
)
def test_a_download_that_only_reserved_its_file_is_named(
    tiny_base: Path, tmp_path: Path, damage: Any
) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(EmbedforgeError, match=r"model\.safetensors: .*download it again"):
        load_decoder(str(folder))


def test_an_index_of_shards_without_shards_is_named(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    for values in ({}, {"weight_map": {}}, {"weight_map": ["a"]}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(values))
        with pytest.raises(EmbedforgeError, match=r"index\.json: names no files.*download it again"):
            load_decoder(str(folder))


def test_a_connection_that_breaks_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenConnection(Exception):
        """An HTTP library's own error is no OSError."""

    def broken(*_: object, **__: object) -> str:
        raise BrokenConnection("peer closed connection\nwithout sending the complete body")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(EmbedforgeError, match=r"'some/model'.*peer closed connection without sending"):
        load_decoder("some/model")


# --- a disk that is full -------------------------------------------------------------------------


def test_a_model_is_saved_whole_or_not_at_all(model: Path, tiny_base: Path) -> None:
    """Not a mock: the weights of the pooler fit, those of the decoder do not."""
    before = content(model)
    fresh = build(base=str(tiny_base), contract=Contract(max_tokens=32))
    with disk_with_room_for(60_000), pytest.raises(EmbedforgeError, match=r"could not be written, nothing"):
        save(fresh, model)
    assert content(model) == before
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    load(str(model), "cpu")


def test_an_index_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(rows: int) -> None:
        vectors = np.random.default_rng(0).normal(size=(rows, 64))
        documents = [Document(str(row), "text") for row in range(rows)]
        build_index(tmp_path / "index", vectors, documents, model="m", contract=Contract())

    write(3)
    with disk_with_room_for(60_000), pytest.raises(EmbedforgeError, match="could not be written"):
        write(1000)
    assert len(Index.open(tmp_path / "index")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with disk_with_room_for(10_000), pytest.raises(OSError, match=r"File too large|No space"):
        write_text(tmp_path / "a.txt", "new" * 10_000)
    assert content(tmp_path) == {"a.txt": b"old"}


# --- settings that cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"report_to": ["tensorbord"]}, "training.report_to: .*Did you mean 'tensorboard'"),
        ({"report_to": ["dvclive"]}, "training.report_to: 'dvclive' is not installed"),
        ({"fsdp": "full_shart"}, "training.fsdp.*full_shart"),
    ],
)
def test_a_setting_that_is_passed_on_is_checked(
    tiny_base: Path, tmp_path: Path, training: dict[str, Any], message: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "positive": "b"}\n' * 8)
    stage = {"name": "only", "steps": 1, "batch_queries": 4, "mix": {"sources": [{"path": "pairs.jsonl"}]}}
    values = {"name": "mine", "model": {"base": str(tiny_base)}, "contract": {"max_tokens": 48}}
    recipe = parse_recipe({**values, "stages": [stage], "training": training}, "mine.yaml")
    with pytest.raises(EmbedforgeError, match=message):
        train(recipe, tmp_path / "run", source_folder=tmp_path, device="cpu", quiet=True)
