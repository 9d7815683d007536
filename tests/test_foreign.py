"""Models of others as published: a tokenizer whose configuration asks for BOS or EOS."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from conftest import spread_weights
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.encoders import Encoder
from embedforge.mine import teachers
from embedforge.mine.settings import Prompts
from embedforge.mine.teachers import open_model
from embedforge.model.encoder import load, save
from embedforge.model.llm2vec import load_llm2vec
from llm2vec_for_tests import base_folder, edit
from models_for_tests import embed, make

TEXTS = ["judo", "", "how deep is the river?"]


def publish(folder: Path, json_adds: str, **asked: object) -> Path:
    """E5-Mistral's layout: last token pooling, EOS asked for by the tokenizer's configuration alone."""
    base = base_folder("mistral", folder.parent / "base")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.add_bos_token, tokenizer.add_eos_token = "bos" in json_adds, "eos" in json_adds
    tokenizer.save_pretrained(base)
    stock = Transformer(str(base), model_kwargs={"dtype": "float32"})
    SentenceTransformer(modules=[stock, Pooling(32, "lasttoken"), Normalize()], device="cpu").save(
        str(folder), create_model_card=False
    )
    edit(folder / "tokenizer_config.json", **asked)
    return folder


def expected(folder: Path, bos: bool, eos: bool) -> np.ndarray:
    """What the authors' code makes: the last token's state, without padding."""
    decoder = AutoModel.from_pretrained(folder, dtype="float32").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [tokenizer.bos_token_id] * bos + ids + [tokenizer.eos_token_id] * eos
        with torch.no_grad():
            state = decoder(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        rows.append(state / state.norm())
    return torch.stack(rows).numpy()


@pytest.mark.parametrize(
    ("json_adds", "asked", "bos", "eos"),
    [
        ("bos", {"add_bos_token": True, "add_eos_token": True}, True, True),
        ("eos", {"add_bos_token": True}, True, True),
        ("", {"add_eos_token": True}, False, True),
        ("bos eos", {"add_bos_token": False, "add_eos_token": None}, True, True),
        ("bos", {"add_bos_token": True}, True, False),
    ],
)
def test_what_a_tokenizer_configuration_asks_for_is_added(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, json_adds: str, asked: dict, bos: bool, eos: bool
) -> None:
    folder = publish(tmp_path / "model", json_adds, **asked)
    st = load(str(folder), "cpu")
    mended = (bos and "bos" not in json_adds) or (eos and "eos" not in json_adds)
    assert ("asks for" in caplog.text) == mended
    np.testing.assert_allclose(
        st.encode([text for text in TEXTS if text or bos]),
        [row for row, text in zip(expected(folder, bos, eos), TEXTS, strict=True) if text or bos],
        atol=2e-6,
    )
    st.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    logging.disable(logging.WARNING)
    plain = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    logging.disable(logging.NOTSET)
    np.testing.assert_allclose(plain.encode(TEXTS[::2]), st.encode(TEXTS[::2]), atol=1e-6)


def test_every_verb_reads_them_alike(tmp_path: Path) -> None:
    folder = publish(tmp_path / "model", "bos", add_bos_token=True, add_eos_token=True)
    want = expected(folder, True, True)
    np.testing.assert_allclose(Encoder(str(folder), device="cpu")._st.encode(TEXTS), want, atol=2e-6)
    teacher = open_model(str(folder), prompts=Prompts(), device="cpu", dtype="float32")
    np.testing.assert_allclose(teacher.documents(TEXTS), want, atol=2e-6)
    assert load_llm2vec(str(folder)).contract.add_eos


def test_a_teacher_computes_in_bfloat16_where_that_is_fast_and_no_dtype_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(tmp_path / "model", "bos", add_bos_token=True, add_eos_token=True)
    found, identities = [], []
    for fast, dtype in ((False, None), (True, "float32"), (True, None)):
        monkeypatch.setattr(teachers, "fast_bfloat16", lambda _, fast=fast: fast)
        teacher = open_model(str(folder), prompts=Prompts(), device="cpu", dtype=dtype)
        found.append(teacher.documents(TEXTS))
        identities.append(teacher.identity)
    np.testing.assert_array_equal(found[0], found[1])
    assert identities[0] == identities[1] != identities[2]
    assert (found[0] != found[2]).any()
    assert (found[0] * found[2]).sum(axis=1).min() > 0.999


def test_what_cannot_be_mended_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "model", "", add_eos_token=True)
    state = json.loads((folder / "tokenizer.json").read_text())
    unk = {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}
    single = [{"SpecialToken": {"id": "<unk>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<unk>": unk},
    }
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(EmbedforgeError, match="add_eos_token is true, and the post-processor"):
        load(str(folder), "cpu")
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(EmbedforgeError, match="there is no eos_token"):
        load(str(folder), "cpu")
    for word in ("true", 1):
        edit(folder / "tokenizer_config.json", add_eos_token=word)
        with pytest.raises(
            EmbedforgeError, match=r"tokenizer_config\.json: 'add_eos_token' is .*; write true"
        ):
            load(str(folder), "cpu")


def test_llm2vec_appends_no_eos_behind_the_end_of_a_llama_3_turn(tmp_path: Path) -> None:
    """Its code returns for Meta-Llama-3-8B-Instruct before it comes to EOS; for all others it goes on."""
    base = base_folder("llama", tmp_path / "base")
    frame = "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
    for template, end in ((frame, ""), ("<|im_start|>user\n{text}<|im_end|>", " </s>")):
        model = load_llm2vec(str(base), pooling="eos_token", chat_template=template)
        assert model.contract.chat_template == template + end


def test_a_decoder_that_projects_its_states_is_as_wide_as_what_it_gives(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """OPT-350m computes in 1,024 numbers and gives 512."""
    config = OPTConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    decoder = OPTForCausalLM(config)
    spread_weights(decoder)
    decoder.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    for kind in ("mean", "latent"):
        model = make(tmp_path / "base", kind)
        save(model, tmp_path / kind)
        st = load(str(tmp_path / kind), "cpu")
        assert (model.dim, st.get_embedding_dimension(), st.encode(TEXTS).shape[1]) == (16, 16, 16)
        np.testing.assert_allclose(st.encode(TEXTS), embed(model, TEXTS), atol=1e-6)
    file = tmp_path / "mean" / "1_Pooling" / "config.json"
    assert not file.exists() or json.loads(file.read_text())["embedding_dimension"] == 16
