"""A static embedder by numpy: the vectors of the whole model, and only where that is proven."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedforge.encode import encode
from embedforge.model.encoder import embedding_model, load
from embedforge.model.folder import BUNDLED, DEFAULT_MODEL, find_folder
from embedforge.static import open_static

QUERIES = ["how deep is the river?", "日本語のテキスト 🙂", "", " a  b\n", "word " * 900]
HEAVY = {"torch", "transformers", "sentence_transformers", "scipy", "sklearn", "bm25s", "peft", "matplotlib"}


def test_vectors_are_those_of_the_loaded_model() -> None:
    static = open_static(find_folder(DEFAULT_MODEL))
    assert static is not None
    contract = static.contract
    whole = embedding_model(load(DEFAULT_MODEL, device="cpu", dtype="float32"))
    for prefix, suffix in (
        (contract.query_prefix(), contract.query_suffix()),
        (contract.document_prefix(), contract.document_suffix()),
        (contract.query_prefix("Find the answer"), contract.query_suffix("Find the answer")),
    ):
        expected = encode(whole, QUERIES, prefix, suffix=suffix, bfloat16=False)
        np.testing.assert_allclose(static.encode(QUERIES, prefix, suffix=suffix), expected, atol=2e-6)


def test_other_models_are_left_to_load(saved_latent: Path) -> None:
    assert open_static(find_folder(BUNDLED)) is None
    assert open_static(saved_latent) is None


@pytest.mark.parametrize("what", ["epsilon", "contract", "weights", "tokenizer"])
def test_what_does_not_give_its_goldens_is_left_to_load(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find_folder(DEFAULT_MODEL), folder)
    assert open_static(folder) is not None
    if what == "weights":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    elif what == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        file = folder / ("config.json" if what == "epsilon" else "contract.json")
        values = json.loads(file.read_text())
        values.update({"rms_norm_eps": 1.0} if what == "epsilon" else {"add_eos": False})
        file.write_text(json.dumps(values))
    assert open_static(folder) is None


def test_an_index_and_a_query_from_the_shell_import_nothing_heavy(tmp_path: Path) -> None:
    """Work, not clocks: torch alone would be 1.2 processor seconds, sentence-transformers five."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("git reset moves the branch")
    heavy_of("index", str(tmp_path / "docs"), "--out", str(tmp_path / "index"))
    found = heavy_of("search", str(tmp_path / "index"), "undo a commit", "--json")
    assert json.loads(found)["hits"][0]["dense"] > 0


def heavy_of(*arguments: str) -> str:
    """Run a command, find that it has imported nothing heavy, and return what it printed."""
    code = (
        "import sys\n"
        f"sys.argv = {['embedforge', *arguments]!r}\n"
        "from embedforge.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"
    return done.stdout
