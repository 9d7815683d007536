"""A saved model that something happened to, and a save that something happens to."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from embedforge.errors import EmbedforgeError
from embedforge.model import card
from embedforge.model.encoder import load, save
from models_for_tests import make


def test_a_changed_golden_is_found(saved: Path) -> None:
    file = saved / "contract.json"
    for key, index, change in (("input_ids", 1, 1), ("pooling_mask", -1, -1), ("vector", 3, 0.01)):
        original = file.read_text()
        values = json.loads(original)
        values["goldens"][0][key][index] += change
        file.write_text(json.dumps(values))
        with pytest.raises(EmbedforgeError, match=r"(?s)contract\.json.*expected.*found"):
            load(str(saved), "cpu")
        file.write_text(original)
    load(str(saved), "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changed_weights_are_found(saved: Path, dtype: str) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["layers.1.mlp.down_proj.weight"] *= -1
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(EmbedforgeError, match="vector"):
        load(str(saved), "cpu", dtype)


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pool/model.safetensors"])
def test_a_weights_file_that_is_cut_off_is_named(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for size in (len(whole) - 5, 20, 0):
        (saved / name).write_bytes(whole[:size])
        with pytest.raises(EmbedforgeError, match=r"model\.safetensors"):
            load(str(saved), "cpu")


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def lose(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def lose_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = {key: f"model-0000{1 + (key == 'norm.weight')}-of-00002.safetensors" for key in tensors}
    first = {key: tensor for key, tensor in tensors.items() if key != "norm.weight"}
    save_file(first, folder / names["embed_tokens.weight"], {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "file", "way_out"),
    [
        (cut("model.safetensors", -5), "model.safetensors", "download it again"),
        (cut("1_Pool/model.safetensors", -5), "1_Pool/model.safetensors", "download it again"),
        (lose_shard, "model-00002-of-00002.safetensors", "download them again"),
        (lose("model.safetensors"), "model.safetensors", "download"),
        (lose("1_Pool/model.safetensors"), "1_Pool/model.safetensors", "download it again"),
        (lose("1_Pool/config.json"), "1_Pool/config.json", "download it again"),
        (cut("1_Pool/config.json", 10), "1_Pool/config.json, line 2", "not valid JSON"),
        (lose("tokenizer.json", "tokenizer_config.json"), "tokenizer.json", "Copy it"),
        (lose("tokenizer.json"), "tokenizer.json", "Copy it"),
        (lose("tokenizer_config.json"), "tokenizer_config.json", "download it again"),
        (cut("tokenizer.json", 40), "tokenizer.json, line 3", "not valid JSON"),
        (cut("contract.json", 40), "contract.json, line 3", "not valid JSON"),
        (lose("contract.json"), "contract.json", "copy it"),
    ],
)
def test_what_is_missing_or_cut_off_is_named_with_a_way_out(
    saved: Path, damage: Callable[[Path], None], file: str, way_out: str
) -> None:
    damage(saved)
    with pytest.raises(EmbedforgeError) as caught:
        load(str(saved), "cpu")
    message = str(caught.value)
    assert str(saved) in message
    assert file in message
    assert way_out in message


def test_a_model_that_sentence_transformers_cannot_load_is_named(tmp_path: Path, tiny_base: Path) -> None:
    save(make(tiny_base), tmp_path / "model")
    lose("contract.json", "model.safetensors")(tmp_path / "model")
    with pytest.raises(EmbedforgeError, match=rf"{tmp_path / 'model'}.*sentence-transformers cannot load it"):
        load(str(tmp_path / "model"), "cpu")


def test_weights_of_another_pooler_are_refused(saved: Path) -> None:
    shape = json.loads((saved / "1_Pool" / "config.json").read_text())
    shape["options"]["latents"] += 1
    (saved / "1_Pool" / "config.json").write_text(json.dumps(shape))
    with pytest.raises(EmbedforgeError, match=r"1_Pool/model\.safetensors.*config\.json"):
        load(str(saved), "cpu")


def test_a_full_disk_leaves_the_older_folder(tiny_base: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "model"
    save(make(tiny_base), folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(card, "write_text", no_space)
    with pytest.raises(EmbedforgeError, match="No space left"):
        save(make(tiny_base, "last"), folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_other_folders_are_not_overwritten(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EmbedforgeError, match="something else"):
        save(make(tiny_base), tmp_path)
    assert (tmp_path / "thesis.txt").exists()
