"""Official NV-Embed folders made into folders of embedforge: the same bytes in little memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel, embedding_model, load, save
from embedforge.model.nvembed import convert_nvembed, load_nvembed
from embedforge.model.nvembed_save import save_nvembed
from embedforge.model.shards import WEIGHTS, list_tensors
from embedforge.text.contract import Contract
from embedforge.text.goldens import GOLDEN_TEXTS
from nvembed_for_tests import FACTS, TEXTS, shard, small_model


def test_nobody_is_asked(official_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' Auto classes would stop at this folder and wait for an answer."""
    assert "auto_map" in json.loads((official_folder / "config.json").read_text())
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on stdin"))
    load_nvembed(official_folder)
    convert_nvembed(official_folder, tmp_path / "out")


@pytest.mark.parametrize("count", [1, 4])
def test_converted_folder_is_a_saved_model(
    official_folder: Path, tmp_path: Path, official_golden: dict[str, Tensor], count: int
) -> None:
    if count > 1:
        shard(official_folder, count)
    out = tmp_path / "out"
    convert_nvembed(official_folder, out)
    stored = {entry.name: entry for entry in list_tensors(out)}
    assert "embed_tokens.weight" in stored
    loaded = load(str(out), device="cpu")
    for case in ("plain", "instr"):
        vectors = loaded.encode(TEXTS, prompt=FACTS["cases"][case]["instruction"], convert_to_tensor=True)
        torch.testing.assert_close(vectors, official_golden[f"{case}.embeddings"], rtol=0, atol=2e-6)


def test_converted_folder_proves_its_token_ids(official_folder: Path, tmp_path: Path) -> None:
    """The model is not run while it is converted, so there are no vectors to compare."""
    out = tmp_path / "out"
    convert_nvembed(official_folder, out)
    contract = Contract.load(out)
    assert {golden.text for golden in contract.goldens} == set(GOLDEN_TEXTS)
    assert not any(golden.vector for golden in contract.goldens)
    load(str(out), "cpu")
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EmbedforgeError, match=r"(?s)contract\.json: the token ids of a golden text changed"):
        load(str(out), "cpu")


def test_golden_vectors_are_added_by_saving_again(official_folder: Path, tmp_path: Path) -> None:
    convert_nvembed(official_folder, tmp_path / "out")
    save(embedding_model(load(str(tmp_path / "out"), "cpu")), tmp_path / "again")
    assert all(len(golden.vector) == 16 for golden in Contract.load(tmp_path / "again").goldens)


def test_conversion_keeps_every_byte(official_folder: Path, tmp_path: Path) -> None:
    original = load_file(official_folder / WEIGHTS)
    shard(official_folder, 4)
    convert_nvembed(official_folder, tmp_path / "out")
    decoder = {}
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        decoder |= load_file(file)
    pooler = load_file(tmp_path / "out" / "1_Pool" / WEIGHTS)
    found = {f"embedding_model.{key}": value for key, value in decoder.items()}
    found |= {f"latent_attention_model.{key}": value for key, value in pooler.items()}
    assert found.keys() == original.keys()
    assert all(torch.equal(found[key], original[key]) for key in original)


def test_conversion_in_place_is_refused(official_folder: Path) -> None:
    with pytest.raises(EmbedforgeError, match="in place"):
        convert_nvembed(official_folder, official_folder)


def peak_growth(work: Callable[[], object]) -> int:
    """Return by how many bytes the process grew at most while working; Linux only."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew at what is resident now.
    except OSError:
        pytest.skip("no resettable peak of memory here")

    def kilobytes(key: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[1])

    before = kilobytes("VmRSS")
    work()
    return 1024 * (kilobytes("VmHWM") - before)


def test_memory_of_conversion_and_loading(
    official_model: EmbeddingModel, official_folder: Path, tmp_path: Path
) -> None:
    """Converting takes memory that does not grow with the model; loading takes one copy of it."""
    big = tmp_path / "big"
    save_nvembed(small_model(official_model, hidden=512, layers=6), big, max_shard_bytes=16 * 2**20)
    total = sum(file.stat().st_size for file in big.glob("*.safetensors"))
    assert len(list(big.glob("*.safetensors"))) >= 6
    convert_nvembed(official_folder, tmp_path / "warm up")
    converting = peak_growth(lambda: convert_nvembed(big, tmp_path / "out"))
    loading = peak_growth(lambda: load_nvembed(big))
    assert converting < total / 3, (converting, total)
    assert loading < 1.5 * total, (loading, total)
