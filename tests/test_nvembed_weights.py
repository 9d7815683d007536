"""Official NV-Embed folders: shards, and downloads that are damaged or incomplete."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from embedforge.errors import EmbedforgeError
from embedforge.model.nvembed import convert_nvembed, load_nvembed
from embedforge.model.shards import WEIGHTS
from nvembed_for_tests import batch, shard


@torch.no_grad()
@pytest.mark.parametrize("count", [2, 5])
def test_shards(official_folder: Path, official_golden: dict[str, Tensor], count: int) -> None:
    shard(official_folder, count)
    vectors = load_nvembed(official_folder)(**batch(official_golden, "instr"))
    torch.testing.assert_close(vectors, official_golden["instr.embeddings"], rtol=0, atol=2e-6)


def test_loaded_weights_do_not_depend_on_the_file(
    official_folder: Path, official_golden: dict[str, Tensor]
) -> None:
    model = load_nvembed(official_folder)
    (official_folder / WEIGHTS).write_bytes(bytes((official_folder / WEIGHTS).stat().st_size))
    with torch.no_grad():
        vectors = model(**batch(official_golden, "plain"))
    torch.testing.assert_close(vectors, official_golden["plain.embeddings"], rtol=0, atol=2e-6)


def test_a_missing_shard_is_named(official_folder: Path) -> None:
    lost = shard(official_folder, 3)[1]
    lost.unlink()
    with pytest.raises(EmbedforgeError, match=rf"{lost.name}.*download"):
        load_nvembed(official_folder)


@pytest.mark.parametrize("kept", [0, 5, 100, 50_000, -1])
def test_a_cut_off_shard_is_named_with_its_sizes(official_folder: Path, tmp_path: Path, kept: int) -> None:
    damaged = shard(official_folder, 3)[2]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:kept])
    size = damaged.stat().st_size
    with pytest.raises(
        EmbedforgeError, match=rf"{damaged.name}.*{size} bytes(.|\n)*download it again"
    ) as caught:
        convert_nvembed(official_folder, tmp_path / "out")
    assert kept in (0, 5, 100) or str(len(whole)) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_placeholder_of_git_lfs_is_no_download(official_folder: Path) -> None:
    (official_folder / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1160072\n"
    )
    with pytest.raises(EmbedforgeError, match="placeholder"):
        load_nvembed(official_folder)


def test_no_weights(official_folder: Path) -> None:
    (official_folder / WEIGHTS).unlink()
    with pytest.raises(EmbedforgeError, match="only safetensors are read"):
        load_nvembed(official_folder)


def test_tensors_that_do_not_fit_are_listed(official_folder: Path) -> None:
    tensors = load_file(official_folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors.pop("embedding_model.norm.weight")
    tensors["latent_attention_model.latents"] = torch.zeros(3, 64)
    save_file(tensors, official_folder / WEIGHTS)
    with pytest.raises(EmbedforgeError) as caught:
        load_nvembed(official_folder)
    message = str(caught.value)
    assert "1 missing: embedding_model.norm.weight" in message
    assert "1 unexpected: lm_head.weight" in message
    assert "latent_attention_model.latents has shape [3, 64] instead of [16, 64]" in message
