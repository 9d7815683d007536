"""Shared fixtures: a tiny tokenizer, a tiny decoder on disk, and an embedding model made of them."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # Tests never look for a hub; read when huggingface_hub is imported.

import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from embedforge.model.encoder import EmbeddingModel, build
from embedforge.text.contract import Contract

GOLDEN = Path(__file__).parent / "golden"


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


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a random Mistral causal language model: hidden 32, 2 layers, untied head."""
    config = MistralConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=None,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = MistralForCausalLM(config)
    spread_weights(model)
    folder = tmp_path_factory.mktemp("tiny_base")
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_base: Path) -> EmbeddingModel:
    """A fresh bidirectional, mean-pooled model of at most 64 tokens a text."""
    return build(base=str(tiny_base), contract=Contract(max_tokens=64))
