"""What `save_pretrained`, `save` and `push_to_hub` of a loaded model write: what `embedforge.save` writes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from embedforge.errors import EmbedforgeError
from embedforge.files import read_json
from embedforge.model.encoder import load, save
from embedforge.text.contract import Contract
from models_for_tests import TEXTS, make

MARKS = {
    "decontaminated.json": {"tasks": {}},
    "merge.json": {"how": "mean"},
    "evaluation.json": {"tasks": {}},
}


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with stock pooling, recipe, marks, and a card that somebody has edited."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(make(tiny_base), folder, {"name": "tiny", "model": {"base": str(tiny_base)}})
    for name, value in MARKS.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nEdited by hand.\n")
    return folder


def contents(folder: Path) -> dict[str, object]:
    """All files but the weights, contract with rounded goldens."""
    found: dict[str, object] = {}
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            found[name] = file.stat().st_size
        else:
            found[name] = read_json(file) if file.suffix == ".json" else file.read_text()
    for golden in found["contract.json"]["goldens"]:  # type: ignore[index]
        golden["vector"] = [round(number, 5) for number in golden["vector"]]
    return found


@pytest.mark.parametrize("how", ["save_pretrained", "save"])
def test_the_same_files_are_written(folder: Path, tmp_path: Path, how: str) -> None:
    st = load(str(folder), "cpu")
    getattr(st, how)(str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(folder)
    plain = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(plain.encode_query(TEXTS), st.encode_query(TEXTS), atol=1e-6)
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Normalize"]


def test_into_its_own_folder_and_beside_other_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "trainer_state.json").write_text("{}")
    (tmp_path / "again" / "config.json").write_text("{}")
    st = load(str(folder), "cpu")
    st.save_pretrained(str(tmp_path / "again"))
    again = load(str(tmp_path / "again"), "cpu")
    again.save_pretrained(str(tmp_path / "again"))
    expected = contents(folder) | {"trainer_state.json": {}}
    assert contents(tmp_path / "again") == expected
    again.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    assert (tmp_path / "again" / "README.md").exists()
    st.save_pretrained(str(tmp_path / "bare"), create_model_card=False)
    assert not (tmp_path / "bare" / "README.md").exists()


def test_a_model_that_was_trained_on_keeps_no_figures_of_the_old_one(folder: Path, tmp_path: Path) -> None:
    st = load(str(folder), "cpu")
    with torch.no_grad():
        next(st.parameters()).mul_(1.5)
    st.prompts["query"] = "Instruct: Find songs\nQuery: "
    st.save_pretrained(str(tmp_path / "again"))
    assert "Edited by hand" not in (tmp_path / "again" / "README.md").read_text()
    assert not (tmp_path / "again" / "evaluation.json").exists()
    assert (tmp_path / "again" / "decontaminated.json").exists()
    plain = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(plain.encode_query(TEXTS), st.encode_query(TEXTS), atol=1e-6)
    assert Contract.load(tmp_path / "again").goldens[0].vector != Contract.load(folder).goldens[0].vector


def test_what_push_to_hub_uploads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is stood in for; what would be uploaded is read."""
    uploaded: dict[str, object] = {}

    class Hub:
        def __init__(self, **_: object) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> object:
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path: str, **_: object) -> object:
            uploaded.update(contents(Path(folder_path)))
            return type("Done", (), {"commit_url": "there"})()

    monkeypatch.setattr("sentence_transformers.base.model.HfApi", Hub)
    load(str(folder), "cpu").push_to_hub("someone/model", replace_model_card=True)
    assert uploaded == contents(folder)


def test_other_modules_and_pickles(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    st = load(str(folder), "cpu")
    with pytest.raises(EmbedforgeError, match="safetensors only"):
        st.save_pretrained(str(tmp_path / "pickle"), safe_serialization=False)
    st.append(Normalize())
    st.save_pretrained(str(tmp_path / "more"), create_model_card=False)
    assert "modules were added or taken away" in caplog.text
    logging.disable(logging.WARNING)
    other = SentenceTransformer(str(tmp_path / "more"), device="cpu", trust_remote_code=True)
    logging.disable(logging.NOTSET)
    np.testing.assert_allclose(other.encode(TEXTS), st.encode(TEXTS), atol=1e-6)


def test_both_forms_of_the_pooling_configuration_say_the_same(tiny_base: Path, tmp_path: Path) -> None:
    """Servers read the booleans of sentence-transformers 5 and its module names; version 6 reads both."""
    for kind, key in (("mean", "mean_tokens"), ("last", "lasttoken")):
        out = tmp_path / kind
        save(make(tiny_base, kind), out)
        modules = [module["type"] for module in read_json(out / "modules.json")]
        assert modules[:2] == [
            "sentence_transformers.models.Transformer",
            "sentence_transformers.models.Pooling",
        ]
        file = out / "1_Pooling" / "config.json"
        values = read_json(file)
        assert [name for name, value in values.items() if value is True] == [f"pooling_mode_{key}"]
        both = SentenceTransformer(str(out), device="cpu").encode(TEXTS)
        older = {name: value for name, value in values.items() if name != "pooling_mode"}
        newer = {name: value for name, value in values.items() if not name.startswith("pooling_mode_")}
        for one in (older, newer):
            file.write_text(json.dumps(one))
            st = SentenceTransformer(str(out), device="cpu")
            np.testing.assert_array_equal(st.encode(TEXTS), both)
            assert st.max_seq_length == 64
