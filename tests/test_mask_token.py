"""Mask tokens found by name, or added without touching anything else."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from embedforge.errors import EmbedforgeError
from embedforge.model.adapter import add_lora
from embedforge.model.decoder import load_decoder
from embedforge.model.encoder import build, load, save
from embedforge.model.mask_token import add_mask_token, mask_token_id
from embedforge.text.contract import Contract
from models_for_tests import TEXTS, embed
from tokenizers_for_tests import KINDS, SPECIALS

_spec = importlib.util.spec_from_file_location(
    "probe_families", Path(__file__).parent.parent / "scripts" / "probe_families.py"
)
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)

MANY = 10**6


def test_eos_and_literal_entries_are_found(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tiny_tokenizer.get_vocab()
    assert mask_token_id(tiny_tokenizer, "eos", MANY) == tiny_tokenizer.eos_token_id
    assert mask_token_id(tiny_tokenizer, "_", MANY) == ids["_"]
    assert mask_token_id(tiny_tokenizer, "<pad>", MANY) == ids["<pad>"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_refused_and_never_becomes_the_unknown_token(kind: str) -> None:
    tokenizer = KINDS[kind]()
    with pytest.raises(
        EmbedforgeError, match=r"'<mask>' is not in the vocabulary.*eos.*add_mask_token: true"
    ):
        mask_token_id(tokenizer, "<mask>", MANY)
    assert mask_token_id(tokenizer, "eos", MANY) == tokenizer.eos_token_id


def test_the_refusal_names_the_pieces_and_what_would_do(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        EmbedforgeError, match=r"'___zq' .* it is \d tokens \(_.*\. Use '_', eos, or set add_m"
    ):
        mask_token_id(tiny_tokenizer, "___zq", MANY)
    with pytest.raises(EmbedforgeError, match="0 tokens"):
        mask_token_id(tiny_tokenizer, "", MANY)


def test_an_id_beyond_the_embeddings_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    last = max(tiny_tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    with pytest.raises(
        EmbedforgeError, match=rf"has the id {last[1]}, and the decoder has only {last[1]} emb"
    ):
        mask_token_id(tiny_tokenizer, last[0], last[1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_added_token_leaves_all_other_text_as_it_was(kind: str) -> None:
    tokenizer = deepcopy(KINDS[kind]())
    before = [tokenizer(text)["input_ids"] for text in [*TEXTS, *SPECIALS, "a < mask > b", "mask"]]
    decoder = load_decoder("embedforge:base")[0]
    added = add_mask_token(decoder, tokenizer, "<mask>")
    assert added == len(tokenizer) - 1
    assert tokenizer.mask_token_id == added == mask_token_id(tokenizer, "<mask>", MANY)
    assert [tokenizer(text)["input_ids"] for text in [*TEXTS, *SPECIALS, "a < mask > b", "mask"]] == before


def test_the_new_row_is_the_mean_and_the_others_keep_their_bits(tiny_base: Path) -> None:
    decoder, tokenizer = load_decoder(str(tiny_base))
    weight = decoder.get_input_embeddings().weight
    before, rows = weight.detach().clone(), len(weight)
    random_state = torch.random.get_rng_state()
    added = add_mask_token(decoder, tokenizer, "<mask>")
    assert torch.equal(torch.random.get_rng_state(), random_state)
    after = decoder.get_input_embeddings().weight
    assert added == rows
    assert after.shape == (rows + 1, 32)
    assert decoder.config.vocab_size == decoder.get_input_embeddings().num_embeddings == rows + 1
    assert after is weight
    assert torch.equal(after[:rows], before)
    assert torch.allclose(after[rows], before.mean(0), atol=1e-6)
    assert add_mask_token(decoder, tokenizer, "<mask>") == added
    assert len(decoder.get_input_embeddings().weight) == rows + 1


def test_a_padded_matrix_gives_a_spare_row(tiny_base: Path) -> None:
    decoder, tokenizer = load_decoder(str(tiny_base))
    known = len(tokenizer)
    decoder.resize_token_embeddings(known + 5, mean_resizing=False)
    before = decoder.get_input_embeddings().weight.detach().clone()
    assert add_mask_token(decoder, tokenizer, "[M]") == known
    after = decoder.get_input_embeddings().weight
    kept = torch.arange(known + 5) != known
    assert after.shape == before.shape
    assert torch.equal(after[kept], before[kept])
    assert torch.allclose(after[known], before[:known].mean(0), atol=1e-6)


def test_under_lora_the_frozen_embeddings_stay_frozen(tiny_base: Path) -> None:
    decoder, tokenizer = load_decoder(str(tiny_base))
    wrapped = add_lora(decoder, rank=2)
    added = add_mask_token(wrapped, tokenizer, "<mask>")
    weight = wrapped.get_input_embeddings().weight
    assert len(weight) == added + 1
    assert not weight.requires_grad


def test_vectors_of_text_stay_as_they_were_also_after_saving(tiny_base: Path, tmp_path: Path) -> None:
    model = build(base=str(tiny_base), contract=Contract(max_tokens=64)).eval()
    before = embed(model, TEXTS)
    add_mask_token(model.decoder, model.tokenizer, "<mask>")
    assert (embed(model, TEXTS) == before).all()
    save(model, tmp_path / "model")
    loaded = load(str(tmp_path / "model"), device="cpu")
    assert abs(loaded.encode(TEXTS) - before).max() < 1e-6
    assert loaded.tokenizer.mask_token == "<mask>"


@pytest.mark.parametrize("name", ["bloom", "gemma3n_text", "gemma4_text", "gpt2", "mpt", "opt", "xglm"])
def test_families_read_the_added_token(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Also those with a second table of embeddings (gemma3n, gemma4), or scaled ones."""
    if name not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"this transformers has no {name}")
    size = len(tiny_tokenizer)
    decoder = families.build(name, None, vocab_size=size, vocab_size_per_layer_input=size)
    added = add_mask_token(decoder, deepcopy(tiny_tokenizer), "<mask>")
    ids = torch.tensor([[5, added, 7]])
    with torch.no_grad():
        states = decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
    assert states.isfinite().all()


@pytest.mark.parametrize("name", ["maskword", "_mask", "<two words>", "<>", "mask>"])
def test_a_name_that_texts_may_hold_is_not_added(tiny_base: Path, name: str) -> None:
    decoder, tokenizer = load_decoder(str(tiny_base))
    rows, known = len(decoder.get_input_embeddings().weight), len(tokenizer)
    with pytest.raises(EmbedforgeError, match="in brackets"):
        add_mask_token(decoder, tokenizer, name)
    assert (rows, known) == (len(decoder.get_input_embeddings().weight), len(tokenizer))
