"""Decoders that a model is built on, and every refusal on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, T5Config, T5Model

from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import build, load_decoder
from embedforge.text.contract import Contract


def test_a_download_that_was_interrupted_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    index = {"metadata": {}, "weight_map": {"norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EmbedforgeError, match=r"00002.*download"):
        load_decoder(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EmbedforgeError, match=r"lack 1 .*norm\.weight"):
        load_decoder(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EmbedforgeError, match="safetensors"):
        load_decoder(str(folder))


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (
            BertModel(
                BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
            ),
            "encoder",
        ),
        (T5Model(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)), "encoder-decoder"),
    ],
    ids=["bert", "t5"],
)
def test_only_decoders_are_taken(tmp_path: Path, tiny_tokenizer, model, what: str) -> None:
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EmbedforgeError, match=what):
        build(base=str(tmp_path), contract=Contract(max_tokens=64))


def test_a_tokenizer_without_eos_is_refused_and_without_pad_pads_with_eos(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in settings.items() if key != "pad_token"}))
    _, tokenizer = load_decoder(str(folder))
    assert tokenizer.pad_token == "</s>"
    file.write_text(json.dumps({key: value for key, value in settings.items() if key != "eos_token"}))
    with pytest.raises(EmbedforgeError, match="EOS"):
        load_decoder(str(folder))


def test_code_of_a_model_is_not_run_and_nobody_is_asked(tiny_base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "code.py").write_text("raise SystemExit('the code ran')")
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    load_decoder(str(folder))  # transformers' own Mistral, not the folder's code
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "home-made"}))
    with pytest.raises(EmbedforgeError, match="trust_remote_code"):
        load_decoder(str(folder))
    with pytest.raises(EmbedforgeError, match="trust_remote_code"):
        build(base=str(folder), contract=Contract(max_tokens=64))
    (folder / "config.json").write_text(json.dumps({"model_type": "mistrall"}))
    with pytest.raises(EmbedforgeError, match="Did you mean 'mistral'"):
        load_decoder(str(folder))


def test_a_base_that_is_not_there(tiny_base: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(EmbedforgeError, match=f"Did you mean '{tiny_base}'"):
        load_decoder(f"{tiny_base}x")
    with pytest.raises(EmbedforgeError, match="hub"):
        load_decoder("nobody/no-such-model")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(EmbedforgeError, match=r"no config\.json.*notes\.txt"):
        load_decoder(str(tmp_path))
    with pytest.raises(EmbedforgeError, match="folder"):
        load_decoder(str(tmp_path / "notes.txt"))
    monkeypatch.setattr("embedforge.model.folder.resources.files", lambda _: tmp_path)
    with pytest.raises(EmbedforgeError, match="embedforge:base"):
        load_decoder("embedforge:base")
    shutil.copytree(tiny_base, tmp_path / "base")
    assert load_decoder("embedforge:base")[0].config.hidden_size == 32


def test_a_base_from_the_hub_is_taken_from_the_cache(tiny_base: Path, tmp_path: Path, monkeypatch) -> None:
    stored = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_base, stored / "snapshots" / "0123abcd")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_decoder("somebody/tiny")[0].config.hidden_size == 32


def test_a_contract_longer_than_the_decoder_reads_is_refused(tiny_base: Path) -> None:
    with pytest.raises(EmbedforgeError, match="256"):
        build(base=str(tiny_base), contract=Contract(max_tokens=512))


def test_unknown_dtype_and_attention_are_refused(tiny_base: Path) -> None:
    with pytest.raises(EmbedforgeError, match="Did you mean 'bfloat16'"):
        load_decoder(str(tiny_base), dtype="bfloat")
    with pytest.raises(EmbedforgeError, match="attention"):
        load_decoder(str(tiny_base), attention_implementation="no_such_attention")
    eager, _ = load_decoder(str(tiny_base), attention_implementation="eager")
    assert eager.config._attn_implementation == "eager"
