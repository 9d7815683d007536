"""Building, saving and loading an embedding model, and every refusal on the way."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    StableLmConfig,
    StableLmForCausalLM,
    T5Config,
    T5Model,
)

import embedforge
from conftest import GOLDEN, spread_weights
from embedforge.errors import EmbedforgeError
from embedforge.model import layout
from embedforge.model.encoder import (
    EmbeddingModel,
    build,
    embedding_model,
    load,
    load_decoder,
    save,
    to_sentence_transformer,
)
from embedforge.text.contract import Contract

SHAPE = {"latents": 8, "heads": 2, "head_dim": 16, "feed_forward_multiple": 2}
KINDS = ["last", "mean", "weighted_mean", "cls", "latent", "self_attention"]
TEXTS = ["how deep is the river?", "", " odd\n🙂", "bread and music " * 40]


def make(base: Path, kind: str = "mean", **settings) -> EmbeddingModel:
    return build(
        base=str(base), contract=Contract(max_tokens=64, **settings), pooling={"kind": kind, **SHAPE}
    ).eval()


@torch.no_grad()
def embed(model: EmbeddingModel, texts: list[str], prefix: str = "", side: str | None = None) -> np.ndarray:
    return model(**model.renderer.pad(model.renderer.render(texts, prefix), side=side)).numpy()


@pytest.fixture(scope="module")
def saved_latent(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "latent"
    save(make(tiny_base, "latent"), folder, {"name": "tiny", "model": {"base": str(tiny_base)}})
    return folder


@pytest.fixture
def saved(saved_latent: Path, tmp_path: Path) -> Path:
    """A copy of a saved latent model, to be damaged."""
    return Path(shutil.copytree(saved_latent, tmp_path / "model"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"attention": "causal", "normalize": False}])
def test_a_saved_model_gives_the_same_vectors(
    tiny_base: Path, tmp_path: Path, kind: str, settings: dict
) -> None:
    model = make(tiny_base, kind, **settings)
    expected = embed(model, TEXTS, model.contract.query_prefix())
    assert expected.dtype == np.float32
    assert expected.shape == (len(TEXTS), 32)
    if model.contract.normalize:
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    save(model, tmp_path / "model")
    st = load(str(tmp_path / "model"), "cpu")
    np.testing.assert_allclose(st.encode_query(TEXTS, batch_size=2), expected, atol=1e-6, rtol=1e-6)
    inner = embedding_model(st)
    assert inner.contract.pooling == kind
    assert next(inner.decoder.parameters()) is next(st.parameters())
    np.testing.assert_array_equal(embed(inner, TEXTS), embed(embedding_model(st), TEXTS))


def test_the_seed_decides_the_pooler_and_nothing_else(tiny_base: Path) -> None:
    state = torch.random.get_rng_state()
    contract = Contract(max_tokens=64)
    first, same, other = (
        build(base=str(tiny_base), contract=contract, pooling={"kind": "latent", **SHAPE}, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.pooler.latents, same.pooler.latents)
    assert not torch.equal(first.pooler.latents, other.pooler.latents)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_half_precision_is_saved_and_loaded_as_such(tiny_base: Path, tmp_path: Path) -> None:
    model = make(tiny_base, "latent", dtype="bfloat16")
    save(model, tmp_path / "model")
    assert Contract.load(tmp_path / "model").dtype == "bfloat16"
    assert load_file(tmp_path / "model" / "model.safetensors")["norm.weight"].dtype == torch.bfloat16
    st = load(str(tmp_path / "model"), "cpu")
    assert st.dtype == torch.bfloat16
    assert st.encode(TEXTS).dtype == np.float32
    exact = load(str(tmp_path / "model"), "cpu", "float32")
    assert exact.dtype == torch.float32
    assert (st.encode(TEXTS) * exact.encode(TEXTS)).sum(axis=1).min() > 0.99


def test_query_and_document_prompts_come_from_the_contract(saved_latent: Path) -> None:
    st = load(str(saved_latent), "cpu")
    inner = embedding_model(st)
    contract = inner.contract
    np.testing.assert_allclose(
        st.encode_query(TEXTS), embed(inner, TEXTS, contract.query_prefix()), atol=1e-6
    )
    np.testing.assert_allclose(st.encode_document(TEXTS), embed(inner, TEXTS), atol=1e-6)
    songs = contract.query_prefix("Find songs")
    np.testing.assert_allclose(st.encode(TEXTS, prompt=songs), embed(inner, TEXTS, songs), atol=1e-6)
    assert np.abs(st.encode_query(TEXTS) - st.encode(TEXTS, prompt=songs)).max() > 0.01
    assert st.similarity_fn_name == "cosine"


def test_what_the_template_has_after_the_text_is_added_to_queries_only(tiny_base: Path) -> None:
    model = make(tiny_base, query_template="Instruct: {instruction}\nQuery: {text} [end]")
    st = to_sentence_transformer(model)
    plain = st.preprocess(["river"])["input_ids"]
    end = model.tokenizer(" [end]", add_special_tokens=False)["input_ids"]
    for features in (
        st.preprocess(["river"], prompt=model.contract.query_prefix(), task="query"),
        st.preprocess(["river"], prompt=model.contract.query_prefix("Find songs")),
    ):
        assert features["input_ids"][0, -1 - len(end) : -1].tolist() == end
    assert torch.equal(st.preprocess(["river"], prompt="", task="query")["input_ids"], plain)
    assert torch.equal(st.preprocess(["river"], task="document")["input_ids"], plain)


def test_options_of_encode_are_honoured_or_refused(saved_latent: Path) -> None:
    st = load(str(saved_latent), "cpu")
    assert st.encode(TEXTS, truncate_dim=8).shape == (4, 8)
    assert st.get_embedding_dimension() == 32
    st.max_seq_length = 16
    assert st.preprocess(TEXTS)["input_ids"].shape == (4, 16)
    with pytest.raises(EmbedforgeError, match="at most the contract's 64"):
        st.max_seq_length = 100
    with pytest.raises(EmbedforgeError, match="processing_kwargs"):
        st.encode(TEXTS, processing_kwargs={"text": {"max_length": 3}})
    with pytest.raises(EmbedforgeError, match="string"):
        st.preprocess([3])


def test_worker_processes_can_take_the_model(saved_latent: Path) -> None:
    st = load(str(saved_latent), "cpu")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(st)).encode(TEXTS), st.encode(TEXTS))


def test_sentence_transformers_loads_our_modules_when_told_to_trust_them(saved_latent: Path) -> None:
    st = SentenceTransformer(str(saved_latent), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(
        st.encode_query(TEXTS), load(str(saved_latent), "cpu").encode_query(TEXTS), atol=1e-6
    )
    with pytest.raises(EmbedforgeError, match="processor_kwargs"):
        SentenceTransformer(
            str(saved_latent), trust_remote_code=True, processor_kwargs={"padding_side": "left"}
        )


@pytest.mark.parametrize("kind", ["mean", "latent"])
def test_saving_by_sentence_transformers_keeps_the_model(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    save(make(tiny_base, kind), tmp_path / "model")
    st = load(str(tmp_path / "model"), "cpu")
    with torch.no_grad():
        next(st.parameters()).mul_(1.5)  # as further training would
    st.save(str(tmp_path / "again"))
    again = load(str(tmp_path / "again"), "cpu")
    np.testing.assert_allclose(again.encode_query(TEXTS), st.encode_query(TEXTS), atol=1e-6)


def test_the_side_of_the_padding_does_not_matter(tiny_base: Path, tmp_path: Path, tiny_tokenizer) -> None:
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    absolute = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), **size))
    spread_weights(absolute)
    absolute.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for base in (tiny_base, tmp_path):
        for kind in KINDS:
            model = make(base, kind)
            right, left = (embed(model, TEXTS, side=side) for side in ("right", "left"))
            np.testing.assert_allclose(right, left, atol=2e-6)
            np.testing.assert_allclose(embed(model, TEXTS[:1]), right[:1], atol=2e-6)


def test_left_padding_of_absolute_positions_needs_embedforge(
    tmp_path: Path, tiny_tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), **size))
    spread_weights(decoder)
    decoder.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    save(make(tmp_path / "base", padding_side="left"), tmp_path / "model")
    assert "away" in caplog.text
    assert not (tmp_path / "model" / "sentence_bert_config.json").exists()
    load(str(tmp_path / "model"), "cpu")


def test_a_family_that_needs_module_flags_needs_embedforge(
    tmp_path: Path, tiny_tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    decoder = StableLmForCausalLM(StableLmConfig(vocab_size=len(tiny_tokenizer), **size, **heads))
    spread_weights(decoder)
    decoder.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    model = make(tmp_path / "base")
    save(model, tmp_path / "model")
    assert "causal again" in caplog.text
    st = load(str(tmp_path / "model"), "cpu")
    for text in TEXTS:
        np.testing.assert_allclose(st.encode([text]), embed(model, [text]), atol=1e-6)


@pytest.mark.parametrize("sliding_window", ["off", "keep"])
def test_a_window_stays_as_it_was_trained(tiny_base: Path, tmp_path: Path, sliding_window: str) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 3}))
    contract = Contract(max_tokens=64)
    model = build(base=str(folder), contract=contract, sliding_window=sliding_window).eval()
    unlimited = embed(make(tiny_base), TEXTS)
    assert (np.abs(embed(model, TEXTS) - unlimited).max() < 1e-6) == (sliding_window == "off")
    save(model, tmp_path / "model")
    np.testing.assert_allclose(
        load(str(tmp_path / "model"), "cpu").encode(TEXTS), embed(model, TEXTS), atol=1e-6
    )
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(plain.encode(TEXTS), embed(model, TEXTS), atol=1e-6)


def test_an_adapter_runs_is_not_saved_and_is_saved_when_merged(tiny_base: Path, tmp_path: Path) -> None:
    model = make(tiny_base)
    bare = embed(model, TEXTS)
    model.decoder = get_peft_model(model.decoder, LoraConfig(r=4, target_modules="all-linear"))
    spread_weights(model.decoder, seed=1)
    adapted = embed(model.eval(), TEXTS)
    assert np.abs(adapted - bare).max() > 0.01
    np.testing.assert_allclose(embed(model, TEXTS, side="left"), adapted, atol=2e-6)
    with pytest.raises(EmbedforgeError, match="merge"):
        save(model, tmp_path / "model")
    model.decoder = model.decoder.merge_and_unload()
    save(model, tmp_path / "model")
    np.testing.assert_allclose(load(str(tmp_path / "model"), "cpu").encode(TEXTS), adapted, atol=1e-5)


def test_saving_leaves_the_model_in_memory_as_it_was(tiny_base: Path, tmp_path: Path) -> None:
    model = make(tiny_base, "latent", dtype="bfloat16").train()
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict().items()}
    save(model, tmp_path / "model")
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.data_ptr() == before[name][1]


def test_the_folder_says_what_it_is(saved_latent: Path, tiny_base: Path) -> None:
    card = (saved_latent / "README.md").read_text()
    assert "recipe 'tiny'" in card
    assert tiny_base.name in card
    assert str(tiny_base.parent) not in card
    assert json.loads((saved_latent / "recipe.json").read_text())["name"] == "tiny"
    contract = Contract.load(saved_latent)
    assert contract.goldens
    assert all(len(golden.vector) == 16 for golden in contract.goldens)
    for file in saved_latent.rglob("*.json"):
        assert ".partial" not in file.read_text()


def test_a_changed_golden_is_found(saved: Path) -> None:
    file = saved / "contract.json"
    for key, index, change in (("input_ids", 1, 1), ("pooling_mask", -1, -1), ("vector", 3, 0.01)):
        original = file.read_text()
        values = json.loads(original)
        values["goldens"][0][key][index] += change
        file.write_text(json.dumps(values))
        with pytest.raises(EmbedforgeError, match=r"(?s)contract\.json.*expected.*found"):
            load(str(saved), "cpu")
        file.write_text(original)
    load(str(saved), "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changed_weights_are_found(saved: Path, dtype: str) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["layers.1.mlp.down_proj.weight"] *= -1
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(EmbedforgeError, match="vector"):
        load(str(saved), "cpu", dtype)


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pool/model.safetensors"])
def test_a_weights_file_that_is_cut_off_is_named(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for size in (len(whole) - 5, 20, 0):
        (saved / name).write_bytes(whole[:size])
        with pytest.raises(EmbedforgeError, match=r"model\.safetensors"):
            load(str(saved), "cpu")


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


def test_a_full_disk_leaves_the_older_folder(tiny_base: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "model"
    save(make(tiny_base), folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "write_text", no_space)
    with pytest.raises(EmbedforgeError, match="No space left"):
        save(make(tiny_base, "last"), folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert list(tmp_path.iterdir()) == [folder]


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
    monkeypatch.setattr("embedforge.model.decoder.resources.files", lambda _: tmp_path)
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


def test_other_folders_are_not_overwritten(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EmbedforgeError, match="something else"):
        save(make(tiny_base), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


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


def test_load_takes_other_models_as_they_are_and_refuses_bare_decoders(
    tiny_base: Path, tmp_path: Path, tiny_tokenizer
) -> None:
    with pytest.raises(EmbedforgeError, match="embedforge train"):
        load(str(tiny_base), "cpu")
    bert = BertModel(
        BertConfig(
            vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )
    bert.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    logging.disable(logging.WARNING)
    SentenceTransformer(str(tmp_path), device="cpu").save(str(tmp_path / "st"))
    other = load(str(tmp_path / "st"), "cpu")
    logging.disable(logging.NOTSET)
    assert other.encode(["text"]).shape == (1, 16)
    with pytest.raises(EmbedforgeError, match="Transformer, Pooling"):
        embedding_model(other)


def test_load_is_a_public_name(saved_latent: Path) -> None:
    assert embedforge.load is load
    assert embedforge.load(str(saved_latent)).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_official_nv_embed_folder(tmp_path: Path) -> None:
    folder = GOLDEN / "nvembed_tiny"
    facts = json.loads((folder / "golden.json").read_text())
    expected = load_file(folder / "golden.safetensors")
    st = load(str(folder), "cpu")
    texts = facts["texts"]
    np.testing.assert_allclose(st.encode(texts), expected["plain.embeddings"].numpy(), atol=1e-5)
    instruction = facts["cases"]["instr"]["instruction"]
    np.testing.assert_allclose(
        st.encode(texts, prompt=instruction), expected["instr.embeddings"].numpy(), atol=1e-5
    )
    save(embedding_model(st), tmp_path / "model")
    again = load(str(tmp_path / "model"), "cpu")
    np.testing.assert_allclose(again.encode(texts), expected["plain.embeddings"].numpy(), atol=1e-5)
