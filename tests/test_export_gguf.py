"""Export as GGUF: llama.cpp gives the contract's token ids and vectors, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from conftest import GOLDEN, spread_weights
from embedforge import EmbedforgeError
from embedforge.export import forms, gguf_files
from embedforge.export.gguf_files import obstacle
from embedforge.export.gguf_tokens import SPLITS
from embedforge.export.run import export_to
from embedforge.model.encoder import build, embedding_model, load, save
from embedforge.text.contract import Contract

for package in forms.NEEDS["gguf"]:
    pytest.importorskip(package, reason="pip install 'embedforge[llamacpp]'")

PIECES = GOLDEN / "llm2vec_tiny" / "mistral"
"""A decoder with a tokenizer of SentencePiece's kind."""
CORPUS = [
    "how deep is the river? It's 12345 metres, they'll say",
    "Übung macht den Meister; déjà vu",
    "a\n\n b  c",
]
NO_INSTRUCTION = {"default_instruction": ""}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = [
        "how deep is the river?",
        " led by a space",
        "In 2024 it's 12345 m;\tdéjà   vu  ",
        "CamelCase日本語🙂",
    ]
    file.write_text("\n".join(lines * 2), encoding="utf-8")
    return file


def saved(folder: Path, base: Path, **settings: Any) -> Path:
    save(build(base=str(base), contract=Contract(**({"max_tokens": 64} | settings))), folder)
    return folder


def write_family(
    folder: Path, kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerFast, **more: Any
) -> Path:
    """Write a random decoder of a family."""
    config = kind(
        vocab_size=len(tokenizer) + 3,  # more rows than tokens, as many published models have
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
    model = AutoModel.from_config(config)
    spread_weights(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (LlamaConfig, {"attention_bias": True}),
        (LlamaConfig, {"rope_parameters": LLAMA3}),
        (MistralConfig, {"sliding_window": None}),
        (Qwen2Config, {}),
        (Qwen3Config, {}),
    ],
)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_every_family_gives_its_vectors(
    kind: type[PreTrainedConfig],
    more: dict[str, Any],
    attention: str,
    tiny_tokenizer: PreTrainedTokenizerFast,
    few: Path,
    tmp_path: Path,
) -> None:
    base = write_family(tmp_path / "base", kind, tiny_tokenizer, **more)
    model = saved(tmp_path / "model", base, pooling="last", attention=attention)
    export = export_to(str(model), tmp_path / "out", "gguf", texts=few)
    assert export.rows[-1].tokens_equal == export.texts == 18
    assert export.rows[-1].cosine_min > 0.9999


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("tiny", {"pooling": "mean", **NO_INSTRUCTION}),
        ("tiny", {"pooling": "cls", "normalize": False, **NO_INSTRUCTION}),
        (
            "tiny",
            {"pooling": "mean", "pool_instruction": True, "pool_bos": "always", "isolate_prefix": False},
        ),
        ("tiny", {"pooling": "last", "add_bos": False, "chat_template": "[INST] {text} [/INST]"}),
        (
            "tiny",
            {"pooling": "last", "add_bos": False, "add_eos": False, "pool_eos": False, **NO_INSTRUCTION},
        ),
        ("tiny", {"pooling": "last", "add_bos": False, "add_eos": False, "pool_eos": False}),
        ("pieces", {"pooling": "last", "attention": "causal"}),
        ("pieces", {"pooling": "last", "attention": "causal", "isolate_prefix": False}),
        ("pieces", {"pooling": "mean", **NO_INSTRUCTION}),
    ],
)
def test_every_contract_that_it_holds(
    base: str, settings: dict[str, Any], tiny_base: Path, few: Path, tmp_path: Path
) -> None:
    model = saved(tmp_path / "model", tiny_base if base == "tiny" else PIECES, **settings)
    export = export_to(str(model), tmp_path / "out", "gguf", texts=few)
    assert export.rows[-1].cosine_min > 0.9999


def trained(cut: Any, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """Return a small byte-level tokenizer that cuts texts by a rule."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = cut
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def split(pattern: str) -> Any:
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


@pytest.mark.parametrize(
    ("cut", "normalizer"),
    [
        (DIGITS, None),
        *((split(pattern), None) for pattern in SPLITS),
        (split(next(iter(SPLITS))), normalizers.NFC()),
    ],
)
def test_llama_cpp_cuts_texts_as_the_tokenizer_does(
    cut: Any, normalizer: Any, few: Path, tmp_path: Path
) -> None:
    base = write_family(tmp_path / "base", LlamaConfig, trained(cut, normalizer))
    model = saved(tmp_path / "model", base, pooling="last", max_tokens=128)
    texts = tmp_path / "texts.txt"
    texts.write_text(few.read_text(encoding="utf-8") + "\nde\u0301ja\u0300 vu", encoding="utf-8")
    export = export_to(str(model), tmp_path / "out", "gguf", texts=texts)
    assert export.rows[-1].tokens_equal == export.texts
    asked = "NFC" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert asked == (normalizer is not None)


def test_the_folder(tiny_base: Path, few: Path, tmp_path: Path) -> None:
    import gguf

    model = saved(tmp_path / "model", tiny_base, pooling="last", max_tokens=60, dtype="bfloat16")
    export = export_to(str(model), tmp_path / "out", "gguf", int8=True, texts=few)
    assert [row.name for row in export.rows][1:] == ["llama.cpp, float16", "llama.cpp, int8"]
    assert 0.98 < export.rows[2].cosine_min < export.rows[1].cosine_min
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "contract.json", "export.json", "model.gguf"}
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["llama-embed.context_length"].contents() == 60  # and a longer text is refused
    assert fields["llama-embed.attention.causal"].contents() is False
    assert fields["tokenizer.ggml.add_eos_token"].contents() is True
    contract = Contract.load(model)
    assert fields["embedforge.fingerprint"].contents() == contract.fingerprint
    assert json.loads(fields["embedforge.contract"].contents())["pooling"] == "last"
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "A query is sent in pieces" in readme
    assert '{"input": ["how deep is the river?"]}' in readme


def test_transformers_reads_the_weights_back(tiny_base: Path, few: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", tiny_base, pooling="last", attention="causal", **NO_INSTRUCTION)
    export_to(str(model), tmp_path / "out", "gguf", texts=few)
    again = AutoModel.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    own = embedding_model(load(model, device="cpu")).decoder.state_dict()
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, own[name]), name


def test_texts_that_the_contract_would_cut_are_counted(
    run, tiny_base: Path, few: Path, tmp_path: Path
) -> None:
    model = saved(tmp_path / "model", tiny_base, pooling="last", max_tokens=48)
    long = tmp_path / "long.txt"
    long.write_text(few.read_text(encoding="utf-8") + "\n" + "bread and music " * 40, encoding="utf-8")
    code, _, error = run("export", model, tmp_path / "out", "--to", "gguf", "--texts", long)
    assert code == 0, error
    left_out = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))["check"]["left_out"]
    assert left_out >= 1
    assert f"{left_out} texts of the check were left out" in error
    assert f"({left_out} more have more tokens" in (tmp_path / "out" / "README.md").read_text(
        encoding="utf-8"
    )


REFUSED = [
    ({"pooling": "weighted_mean"}, "no pooling 'weighted_mean'"),
    ({"pooling": "mean"}, "of a query the contract leaves out"),
    ({"pooling": "last", "pool_eos": False}, "of a document the contract leaves out 1"),
    ({"pooling": "last", "strip_text_end": True}, "shortened by words or stripped"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_it_cannot_hold_is_named(settings: dict[str, Any], reason: str, tiny_base: Path) -> None:
    model = build(base=str(tiny_base), contract=Contract(**({"max_tokens": 64} | settings)))
    assert reason in str(obstacle(model))


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        (GemmaConfig, {}, "its decoder is a gemma"),
        (LlamaConfig, {"hidden_act": "gelu"}, "not with gelu"),
        (Qwen2Config, {"rope_parameters": LLAMA3}, "rotary embeddings of the kind llama3"),
        (MistralConfig, {"sliding_window": 16}, "see 16 others at most"),
    ],
)
def test_decoders_that_it_cannot_hold(
    kind: type[PreTrainedConfig],
    more: dict[str, Any],
    reason: str,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    base = write_family(tmp_path / "base", kind, tiny_tokenizer, **more)
    contract = Contract(max_tokens=64, pooling="last", attention="causal")
    assert reason in str(obstacle(build(base=str(base), contract=contract)))


def test_static_embedders_and_unknown_tokenizers() -> None:
    assert "it has no layers" in str(obstacle(embedding_model(load("embedforge:forge-tiny", device="cpu"))))
    bundled = build(base="embedforge:base", contract=Contract(max_tokens=64, pooling="last"))
    assert "cuts texts by a rule that llama.cpp does not have" in str(obstacle(bundled))


def test_a_file_that_llama_cpp_cannot_open(
    tiny_base: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gguf_files, "write_gguf", lambda _m, _v, file, _d: file.write_bytes(b"GGUF" + bytes(64))
    )
    model = saved(tmp_path / "model", tiny_base, pooling="last")
    with pytest.raises(EmbedforgeError, match="cannot open what was written"):
        export_to(str(model), tmp_path / "out", "gguf", texts=few)
    assert not (tmp_path / "out").exists()


def test_llama_cpp_python_gives_the_same(tiny_base: Path, few: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python has to be compiled")
    model = saved(tmp_path / "model", tiny_base, pooling="mean", **NO_INSTRUCTION)
    export_to(str(model), tmp_path / "out", "gguf", texts=few)
    theirs = llama_cpp.Llama(
        str(tmp_path / "out" / "model.gguf"), embedding=True, verbose=False, n_ctx=64, n_batch=64, n_ubatch=64
    )
    texts = few.read_text(encoding="utf-8").splitlines()
    expected = SentenceTransformer(str(model), device="cpu").encode(texts)
    assert np.allclose(theirs.embed(texts, normalize=True), expected, atol=1e-3)
