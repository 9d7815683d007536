"""LLM2Vec's chain of adapters: merged as by peft, refused when it does not fit, saved as one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import MistralConfig, MistralModel

import embedforge
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import embedding_model, save
from embedforge.model.export import export
from embedforge.model.llm2vec import load_llm2vec
from embedforge.model.pooling import MeanPooler
from llm2vec_for_tests import (
    GOLDEN,
    INSTRUCTION,
    LLAMA_2_CHAT,
    TEXTS,
    base_folder,
    batch,
    edit,
    merged_by_peft,
    vectors,
    write_adapter,
)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module", params=["llama", "mistral"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base, an adapter trained on it, and one trained on their merge; not to be changed."""
    folder = tmp_path_factory.mktemp(request.param)
    base = base_folder(request.param, folder / "base")
    return [base, write_adapter(base, folder / "mntp", 1), write_adapter(base, folder / "simcse", 2, r=2)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder("mistral", tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(base, tmp_path / "adapter", 1)


# --- merging -----------------------------------------------------------------------------------------


def test_a_chain_gives_the_vectors_of_pefts_own_sequential_merge(chain: list[Path]) -> None:
    base, *adapters = chain
    model = load_llm2vec(
        str(base), [str(folder) for folder in adapters], chat_template=LLAMA_2_CHAT, normalize=False
    )
    reference = merged_by_peft(base, adapters, torch.float64)
    inputs = batch(model, INSTRUCTION)
    with torch.no_grad():
        states = reference(inputs["input_ids"], inputs["attention_mask"], use_cache=False).last_hidden_state
    expected = MeanPooler(64)(states, inputs["pooling_mask"]).float()
    torch.testing.assert_close(vectors(model, INSTRUCTION), expected, atol=1e-5, rtol=0)
    for others in (adapters[:1], adapters[1:], []):
        fewer = load_llm2vec(
            str(base), [str(folder) for folder in others], chat_template=LLAMA_2_CHAT, normalize=False
        )
        assert (vectors(fewer, INSTRUCTION) - expected).abs().max() > 0.01


def test_the_base_is_the_one_that_the_first_adapter_names(chain: list[Path]) -> None:
    base, mntp, simcse = map(str, chain)
    expected = vectors(load_llm2vec(base, [mntp, simcse]))
    torch.testing.assert_close(vectors(load_llm2vec(None, [mntp, simcse])), expected)
    # As in the package's README: the MNTP folder stands in the base's place.
    torch.testing.assert_close(vectors(load_llm2vec(mntp, [simcse])), expected)


def test_an_adapter_may_name_another_adapter_as_its_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    last = write_adapter(base, tmp_path / "last", 2)
    expected = vectors(load_llm2vec(str(base), [str(adapter), str(last)]))
    edit(last / CONFIG, base_model_name_or_path=str(adapter))
    torch.testing.assert_close(vectors(load_llm2vec(None, [str(last)])), expected)
    edit(adapter / CONFIG, base_model_name_or_path=str(tmp_path / "elsewhere"))
    with pytest.raises(
        EmbedforgeError, match=r"(?s)adapter: its base is not here; give it as well.*elsewhere"
    ):
        load_llm2vec(None, [str(last)])
    torch.testing.assert_close(vectors(load_llm2vec(str(base), [str(adapter), str(last)])), expected)


def test_published_mntp_folders_carry_code_and_a_tokenizer(base: Path, adapter: Path) -> None:
    """The code is not run, config.json is not read, and the tokenizer is theirs."""
    config = json.loads((base / "config.json").read_text())
    auto_map = {"AutoModel": "modeling_mistral_encoder.MistralEncoderModel"}
    (adapter / "config.json").write_text(json.dumps(config | {"auto_map": auto_map, "hidden_size": 9999}))
    (adapter / "modeling_mistral_encoder.py").write_text("raise SystemExit('this must not run')")
    for file in base.glob("*token*"):
        shutil.copy(file, adapter)
    edit(base / "tokenizer.json", post_processor=None)  # the base's tokenizer no longer puts BOS in front
    model = load_llm2vec(str(base), [str(adapter)])
    assert model.contract.add_bos
    torch.testing.assert_close(vectors(load_llm2vec(None, [str(adapter)])), vectors(model))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_an_adapter_saved_from_a_language_model_with_its_head(base: Path, tmp_path: Path, targets) -> None:
    headed = write_adapter(base, tmp_path / "headed", 5, head=True, target_modules=targets)
    plain = write_adapter(base, tmp_path / "plain", 5, target_modules=targets)
    assert all(".model.model." in name for name in load_file(headed / WEIGHTS))
    torch.testing.assert_close(
        vectors(load_llm2vec(str(base), [str(headed)])), vectors(load_llm2vec(str(base), [str(plain)]))
    )


def test_merged_in_float32_and_stored_as_the_base_is(base: Path, adapter: Path) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    model = load_llm2vec(str(base), [str(adapter)])
    exact = load_llm2vec(str(base), [str(adapter)], dtype="float32")
    assert model.contract.dtype == "bfloat16"
    assert exact.contract.dtype == "float32"
    pairs = zip(model.decoder.parameters(), exact.decoder.parameters(), strict=True)
    assert all(torch.equal(rounded, whole.to(torch.bfloat16)) for rounded, whole in pairs)


def test_settings_come_from_the_last_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    last = write_adapter(base, tmp_path / "last", 2)
    (adapter / "llm2vec_config.json").write_text(json.dumps({"max_length": 32, "doc_max_length": 16}))
    (last / "llm2vec_config.json").write_text(json.dumps({"pooling_mode": "last_token"}))
    contract = load_llm2vec(str(base), [str(adapter), str(last)]).contract
    assert (contract.pooling, contract.max_tokens, contract.text_max_tokens) == ("last", 512, 400)


# --- what is refused -----------------------------------------------------------------------------------


def rename(adapter: Path, old: str, new: str) -> None:
    file = adapter / WEIGHTS
    save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)


def zero_b(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: t * (0 if "lora_B" in name else 1) for name, t in tensors.items()}, adapter / WEIGHTS)


def pickle_only(adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")


def cut_off(adapter: Path) -> None:
    content = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(content[: len(content) // 2])


def lose_one(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    tensors.pop(next(iter(sorted(tensors))))
    save_file(tensors, adapter / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: rename(f, "self_attn", "attention"),
            r"silently do nothing: it has 'layers.0.attention.*has '",
        ),
        (lambda f: rename(f, "layers.", "h."), "names do not fit this mistral decoder"),
        (lambda f: rename(f, "lora_A", "magnitude"), r"6 missing.*\n.*6 left over: .*magnitude"),
        (lose_one, "1 missing: base_model.model.layers.0.mlp.down_proj.lora_A.weight"),
        (
            lambda f: edit(f / CONFIG, r=8),
            r"12 of another shape: .* has shape \[4, 32\] instead of \[8, 32\]",
        ),
        (lambda f: edit(f / CONFIG, target_modules=["c_attn"]), "cannot be put on the mistral decoder"),
        (lambda f: edit(f / CONFIG, peft_type="IA3"), "peft_type is 'IA3'; only 'LORA'"),
        (zero_b, "adds nothing, every B matrix"),
        (pickle_only, "only adapter_model.bin, a pickle.*save_pretrained"),
        (lambda f: (f / WEIGHTS).unlink(), "no adapter_model.safetensors; download it again"),
        (cut_off, "its header asks for"),
        (lambda f: (f / CONFIG).unlink(), "no adapter: there is no adapter_config.json"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(
    damage, message: str, base: Path, adapter: Path
) -> None:
    damage(adapter)
    with pytest.raises(EmbedforgeError, match=rf"(?s){adapter.name}.*(?:{message})"):
        load_llm2vec(str(base), [str(adapter)])


def test_an_adapter_of_a_wider_base_is_refused(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    wide = tmp_path / "wide"
    MistralModel(MistralConfig(**config | {"hidden_size": 64, "head_dim": 16})).save_pretrained(wide)
    adapter = write_adapter(wide, tmp_path / "of_wide", 1)
    with pytest.raises(
        EmbedforgeError, match=r"(?s)of_wide: .*hidden size 32:.*of another shape.*another base"
    ):
        load_llm2vec(str(base), [str(adapter)])


def test_folders_in_the_wrong_place_are_refused(base: Path, adapter: Path) -> None:
    with pytest.raises(EmbedforgeError, match="a whole model; if it is the base, name it as such"):
        load_llm2vec(str(base), [str(base)])
    with pytest.raises(EmbedforgeError, match="is the base, or named as one, and an adapter again"):
        load_llm2vec(str(adapter), [str(adapter)])
    with pytest.raises(EmbedforgeError, match="name a base, or an adapter"):
        load_llm2vec()
    edit(adapter / CONFIG, base_model_name_or_path=None)
    with pytest.raises(EmbedforgeError, match=r"adapter_config.json: base_model_name_or_path is None"):
        load_llm2vec(None, [str(adapter)])
    (adapter / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    for arguments in ((str(adapter),), (str(base), [str(adapter)])):
        with pytest.raises(EmbedforgeError, match="a model's weights and an adapter in one folder"):
            load_llm2vec(*arguments)


def test_loading_an_adapter_alone_names_the_command_that_merges_it(base: Path, adapter: Path) -> None:
    command = rf"embedforge export {base} OUT --adapter {adapter} --pooling mean --chat-template"
    with pytest.raises(EmbedforgeError, match=rf"(?s)LoRA adapter, not a model.*{command}"):
        embedforge.load(str(adapter))
    (adapter / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(EmbedforgeError, match="LoRA adapter, not a model"):
        embedforge.load(str(adapter))


# --- one folder ------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_gives_the_same_vectors(chain: list[Path], tmp_path: Path) -> None:
    base, *adapters = map(str, chain)
    model = load_llm2vec(base, adapters, chat_template=LLAMA_2_CHAT, instruction=INSTRUCTION)
    queries, documents = vectors(model, INSTRUCTION), vectors(model)
    save(model, tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))
    for st in (
        embedforge.load(str(tmp_path / "out"), device="cpu"),
        SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=True),
    ):
        np.testing.assert_allclose(st.encode_query(TEXTS), queries, atol=1e-6)
        np.testing.assert_allclose(st.encode_document(TEXTS), documents, atol=1e-6)
        np.testing.assert_allclose(st.encode(TEXTS), documents, atol=1e-6)
        np.testing.assert_allclose(st.encode(TEXTS, prompt=f"{INSTRUCTION} "), queries, atol=1e-6)


@pytest.mark.parametrize(("family", "pooling"), [("llama", "last_token"), ("mistral", "mean")])
def test_without_shortening_plain_sentence_transformers_loads_it(
    family: str, pooling: str, tmp_path: Path
) -> None:
    """Where the whole string is pooled and nothing follows the text, stock modules do the same."""
    model = load_llm2vec(
        str(GOLDEN / family),
        pooling=pooling,
        skip_instruction=False,
        text_max_tokens=0,
        instruction=INSTRUCTION,
    )
    save(model, tmp_path / "out")
    assert "embedforge" not in (tmp_path / "out" / "modules.json").read_text()
    st = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(st.encode_query(TEXTS), vectors(model, INSTRUCTION), atol=1e-5)


def test_export_merges_an_llm2vec_chain(chain: list[Path], tmp_path: Path) -> None:
    base, *adapters = map(str, chain)
    out = tmp_path / "out"
    export(base, out, adapters=adapters, chat_template=LLAMA_2_CHAT, pooling="weighted_mean", max_tokens=None)
    expected = load_llm2vec(base, adapters, chat_template=LLAMA_2_CHAT, pooling="weighted_mean")
    st = embedforge.load(str(out), device="cpu")
    np.testing.assert_allclose(st.encode(TEXTS), vectors(expected), atol=1e-6)


def test_export_of_a_finished_model_changes_its_dtype_only(
    saved: Path, official_folder: Path, tmp_path: Path
) -> None:
    for source in (saved, official_folder):
        out = tmp_path / f"out_{source.name}"
        export(str(source), out, dtype="bfloat16")
        model = embedding_model(embedforge.load(str(out), device="cpu", dtype="bfloat16"))
        assert model.decoder.dtype == torch.bfloat16
        assert model.contract.dtype == "bfloat16"
        with pytest.raises(EmbedforgeError, match=r"a finished model.*leave out adapters, pooling"):
            export(str(source), tmp_path / "other", adapters=["a"], pooling="mean")
        with pytest.raises(EmbedforgeError, match="would replace its source"):
            export(str(source), source, dtype="bfloat16")
    assert (tmp_path / f"out_{saved.name}" / "recipe.json").exists()
    export(str(official_folder), tmp_path / "copied")
    assert embedforge.load(str(tmp_path / "copied"), device="cpu").encode(["river"]).shape == (1, 64)
