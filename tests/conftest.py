"""Shared fixtures: a tiny tokenizer, a tiny decoder on disk, and an embedding model made of them."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # Tests never look for a hub; read when huggingface_hub is imported.

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from datasets_for_tests import write_datasets
from embedforge import cli
from embedforge.model.encoder import EmbeddingModel, build, save
from embedforge.model.nvembed import load_nvembed
from embedforge.text.contract import Contract
from models_for_tests import make

gc.freeze()  # A Trainer collects garbage at its end: most of a tiny run's time, with all that imports made.

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL = GOLDEN / "nvembed_tiny"
Run = Callable[..., tuple[int, str, str]]


def spread_weights(model: nn.Module, seed: int = 0) -> None:
    """Give a model weights large enough that attention is not uniform, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.2 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * 1.3 / parameter.shape[-1] ** 0.5)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 600 entries; <s>, </s>, <pad>."""
    return PreTrainedTokenizerFast.from_pretrained(GOLDEN / "tokenizer")


def write_base(folder: Path, tokenizer: PreTrainedTokenizerFast, *, tied: bool) -> Path:
    """Write a random Mistral causal language model: hidden 32, 2 layers; return its folder."""
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )
    model = MistralForCausalLM(config)
    spread_weights(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a random decoder whose head is untied; see `write_base`."""
    return write_base(tmp_path_factory.mktemp("tiny_base"), tiny_tokenizer, tied=False)


@pytest.fixture
def tiny_model(tiny_base: Path) -> EmbeddingModel:
    """A fresh bidirectional, mean-pooled model of at most 64 tokens a text."""
    return build(base=str(tiny_base), contract=Contract(max_tokens=64))


@pytest.fixture(scope="session")
def saved_latent(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A folder with a saved latent model; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "latent"
    save(make(tiny_base, "latent"), folder, {"name": "tiny", "model": {"base": str(tiny_base)}})
    return folder


@pytest.fixture
def saved(saved_latent: Path, tmp_path: Path) -> Path:
    """A copy of a saved latent model, to be damaged."""
    return Path(shutil.copytree(saved_latent, tmp_path / "model"))


@pytest.fixture(scope="session")
def official_golden() -> dict[str, Tensor]:
    """What the official NV-Embed code made of a tiny checkpoint and some texts."""
    return load_file(OFFICIAL / "golden.safetensors")


@pytest.fixture(scope="session")
def official_model() -> EmbeddingModel:
    """That checkpoint, loaded; not to be changed."""
    return load_nvembed(OFFICIAL)


@pytest.fixture
def official_folder(tmp_path: Path) -> Path:
    """A copy of that checkpoint, which a test may change."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in OFFICIAL.iterdir():
        if not file.name.startswith("golden"):
            shutil.copy(file, copy)
    return copy


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the entry point in this process; exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embedforge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small datasets, one of every type that evaluation reads."""
    folder = tmp_path_factory.mktemp("data")
    write_datasets(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of at most 48 tokens a text."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(build(base=str(tiny_base), contract=Contract(max_tokens=48)), folder)
    return folder
