"""A saved model with stock pooling loads where embedforge is not installed, and gives the same vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from conftest import GOLDEN, spread_weights
from embedforge.model import auto_tokenizer
from embedforge.model.encoder import build, load, save
from embedforge.text.contract import Contract
from tokenizers_for_tests import KINDS

TEXTS = [
    "which river is the longest?",
    "",
    " leading space, Tab\tand\nlines\n",
    "judo",
    "日本語 🙂 «déjà vu» e\u0301",
    "</s> <s> Query: a text that looks like a template\nQuery: again",
    "a long text about rivers and bread that has to be cut " * 20,
]
CUSTOM = "Instruct: Find songs\nQuery: "
CONTRACTS = {
    "masked": {},
    "pooled": {"pool_instruction": True, "pool_bos": "always"},
    "causal": {"attention": "causal"},
    "raw": {"normalize": False},
    "no_bos": {"add_bos": False, "padding_side": "left"},
    "e5": {
        "query_template": "query: {text}",
        "document_template": "passage: {text}",
        "pool_bos": "without_instruction",
    },
    "bfloat16": {"dtype": "bfloat16"},
}
CASES = [("mean", name) for name in CONTRACTS]
CASES += [
    ("last", "masked"),
    ("last", "pooled"),
    ("cls", "masked"),
    ("cls", "pooled"),
    ("weighted_mean", "pooled"),
]

# Runs in its own process, in which `import embedforge` fails.
PLAIN = """
import json, sys
sys.modules["embedforge"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
root, texts, custom, names = json.load(sys.stdin)
vectors = {}
for name in names:
    model = SentenceTransformer(f"{root}/{name}", device="cpu", model_kwargs={"dtype": "float32"})
    vectors[f"{name} query"] = model.encode_query(texts)
    vectors[f"{name} document"] = model.encode_document(texts)
    if not name.endswith("e5"):
        vectors[f"{name} custom"] = model.encode(texts, prompt=custom, batch_size=2)
assert not any(name.startswith("embedforge.") for name in sys.modules)
np.savez(f"{root}/plain.npz", **vectors)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    root = tmp_path_factory.mktemp("saved")
    for kind, name in CASES:
        contract = Contract(max_tokens=64, pooling=kind, **CONTRACTS[name])
        save(build(base=str(tiny_base), contract=contract), root / f"{kind}-{name}")
    return root


@pytest.fixture(scope="module")
def plain(saved: Path) -> dict[str, np.ndarray]:
    request = json.dumps([str(saved), TEXTS, CUSTOM, [f"{kind}-{name}" for kind, name in CASES]])
    run = subprocess.run([sys.executable, "-c", PLAIN], input=request, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(np.load(saved / "plain.npz"))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_gives_the_same_vectors_without_embedforge(
    saved: Path, plain: dict[str, np.ndarray], kind: str, name: str
) -> None:
    case = f"{kind}-{name}"
    ours = load(str(saved / case), "cpu", "float32")
    np.testing.assert_allclose(ours.encode_query(TEXTS), plain[f"{case} query"], atol=2e-6, rtol=1e-6)
    np.testing.assert_allclose(ours.encode_document(TEXTS), plain[f"{case} document"], atol=2e-6, rtol=1e-6)
    if f"{case} custom" in plain:
        np.testing.assert_allclose(
            ours.encode(TEXTS, prompt=CUSTOM), plain[f"{case} custom"], atol=2e-6, rtol=1e-6
        )


def test_the_instruction_matters(plain: dict[str, np.ndarray]) -> None:
    assert np.abs(plain["mean-masked query"] - plain["mean-masked document"]).max() > 0.05
    assert np.abs(plain["mean-masked query"] - plain["mean-pooled query"]).max() > 0.05


@pytest.mark.parametrize(
    ("pooling", "settings", "why"),
    [
        ("weighted_mean", {}, "tokens of the instruction too"),
        ("mean", {"pool_bos": "never"}, "BOS"),
        ("mean", {"pool_instruction": True}, "BOS"),
        ("cls", {"pool_bos": "always"}, "BOS"),
        ("mean", {"isolate_prefix": False}, "span"),
        ("weighted_mean", {"default_instruction": ""}, "tokens of the instruction too"),
        ("mean", {"pool_eos": False}, "EOS"),
        ("last", {"eos_survives_truncation": False}, "EOS"),
        ("mean", {"query_template": "Instruct: {instruction}\nQuery: {text} [end]"}, "follow the text"),
    ],
)
def test_says_why_plain_sentence_transformers_will_not_do(
    tiny_base: Path, tmp_path: Path, caplog, pooling: str, settings: dict, why: str
) -> None:
    contract = Contract(max_tokens=64, pooling=pooling, **settings)
    model = build(base=str(tiny_base), contract=contract)
    save(model, tmp_path / "model")
    assert why in caplog.text
    assert "embedforge.load" in (tmp_path / "model" / "README.md").read_text()
    types = [module["type"] for module in json.loads((tmp_path / "model" / "modules.json").read_text())]
    assert types[0] == "embedforge.model.modules.TextEncoder"
    ours = load(str(tmp_path / "model"), "cpu").encode_query(TEXTS)
    batch = model.renderer.batch(TEXTS, contract.query_prefix(), suffix=contract.query_suffix())
    np.testing.assert_allclose(ours, model.eval()(**batch).detach().numpy(), atol=1e-6)


def test_last_token_pooling_needs_no_rule_about_the_instruction(tiny_base: Path, tmp_path: Path) -> None:
    contract = Contract(max_tokens=64, pooling="last", isolate_prefix=False, pool_bos="never")
    save(build(base=str(tiny_base), contract=contract), tmp_path / "model")
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours = load(str(tmp_path / "model"), "cpu")
    assert type(plain[0]).__name__ == "Transformer"
    np.testing.assert_allclose(ours.encode_query(TEXTS), plain.encode_query(TEXTS), atol=1e-6)


def write_base(folder: Path, family: type, tokenizer: PreTrainedTokenizerBase) -> str:
    """Write a tiny random decoder of a family with a tokenizer that need not be the family's own."""
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
    }
    decoder = AutoModelForCausalLM.from_config(family(vocab_size=len(tokenizer), **size))
    spread_weights(decoder)
    decoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", [LlamaConfig, Qwen3Config, GPT2Config])
def test_families_and_a_tokenizer_that_marks_spaces(tmp_path: Path, family: type) -> None:
    """AutoTokenizer rebuilds the tokenizers of some families; the saved one must survive that."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(GOLDEN / "nvembed_tiny")
    base = write_base(tmp_path / "base", family, tokenizer)
    save(build(base=base, contract=Contract(max_tokens=64)), tmp_path / "model")
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours = load(str(tmp_path / "model"), "cpu")
    assert type(plain[0]).__name__ == "Transformer"
    np.testing.assert_allclose(ours.encode_query(TEXTS), plain.encode_query(TEXTS), atol=2e-6)
    np.testing.assert_allclose(ours.encode_document(TEXTS), plain.encode_document(TEXTS), atol=2e-6)


@pytest.mark.parametrize("kind", ["byte_level_regex", "prepended_space_mark"])
def test_a_family_whose_tokenizer_is_built_anew(tmp_path: Path, kind: str) -> None:
    """Whatever is saved, AutoTokenizer makes a Qwen2Tokenizer for a Qwen2 model, and other token ids."""
    base = write_base(tmp_path / "base", Qwen2Config, KINDS[kind]())
    save(build(base=base, contract=Contract(max_tokens=64)), tmp_path / "model")
    saved = tmp_path / "model"
    plain = SentenceTransformer(str(saved), device="cpu")
    ours = load(str(saved), "cpu")
    text = Contract.load(saved).query_prefix() + "judo"
    assert AutoTokenizer.from_pretrained(saved)(text)["input_ids"] != ours.tokenizer(text)["input_ids"]
    assert plain.tokenizer(text)["input_ids"] == ours.tokenizer(text)["input_ids"]
    assert type(plain[0]).__name__ == "Transformer"
    np.testing.assert_allclose(ours.encode_query(TEXTS), plain.encode_query(TEXTS), atol=2e-6)
    np.testing.assert_allclose(ours.encode_document(TEXTS), plain.encode_document(TEXTS), atol=2e-6)
    assert "AutoTokenizer" in (saved / "README.md").read_text()


def test_a_tokenizer_that_nothing_brings_back_needs_embedforge(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(auto_tokenizer, "NEUTRAL_TYPE", "qwen2")
    base = write_base(tmp_path / "base", Qwen2Config, KINDS["byte_level_regex"]())
    model = build(base=base, contract=Contract(max_tokens=64))
    save(model, tmp_path / "model")
    assert "AutoTokenizer makes other token ids" in caplog.text
    batch = model.renderer.batch(TEXTS, model.contract.query_prefix())
    expected = model.eval()(**batch).detach().numpy()
    np.testing.assert_allclose(load(str(tmp_path / "model"), "cpu").encode_query(TEXTS), expected, atol=2e-6)
