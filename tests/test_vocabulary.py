"""A tokenizer cut to given texts: exact on them, whole on all others."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from embedforge.errors import EmbedforgeError
from embedforge.text.vocabulary import CutVocabulary, cut_vocabulary, prove_cut
from tokenizers_for_tests import CORPUS, KINDS, wrap

BYTES = ["byte_level", "byte_level_prefix_space", "byte_level_regex", "prepended_space_mark"]
TEXTS = CORPUS[:2]
OTHERS = [
    "",
    " ",
    "Übung\n\n\tund 日本語 🙂",
    "\x00\x7f",
    "wrestling Wrestling  WRESTLING",
    "a\u0301 ½",
    "<s> </s>",
]
MANY = 10**6


def read_again(
    cut: CutVocabulary, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> PreTrainedTokenizerFast:
    """Save a cut tokenizer as `prune` does, and load it."""
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(cut.tokenizer_json), encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", BYTES)
def test_given_texts_keep_their_tokens_and_others_can_still_be_written(kind: str, tmp_path: Path) -> None:
    whole = KINDS[kind]()
    cut = cut_vocabulary(whole, MANY, TEXTS)
    smaller = read_again(cut, whole, tmp_path)
    assert len(smaller) == len(cut.new_ids) < len(whole)
    for text in TEXTS:
        assert tokens(smaller, text) == tokens(whole, text)
        assert smaller(text)["input_ids"] == [cut.new_ids[number] for number in whole(text)["input_ids"]]
    for text in OTHERS:
        assert round_trip(smaller, text) == round_trip(whole, text)
    prove_cut(whole, smaller, cut)


@pytest.mark.parametrize("kind", BYTES)
def test_special_tokens_stay_and_the_order_too(kind: str, tmp_path: Path) -> None:
    whole = KINDS[kind]()
    cut = cut_vocabulary(whole, MANY, TEXTS)
    smaller = read_again(cut, whole, tmp_path)
    assert smaller.special_tokens_map == whole.special_tokens_map
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old = getattr(whole, name)
        assert getattr(smaller, name) == (None if old is None else cut.new_ids[old])
    assert list(cut.new_ids) == sorted(cut.new_ids)
    assert list(cut.new_ids.values()) == list(range(len(cut.new_ids)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.text(max_size=40))
def test_it_holds_for_any_text(texts: list[str], other: str) -> None:
    """Tokens by name, without saving: what the library makes of the cut content."""
    whole = KINDS["byte_level_regex"]()
    if not any(whole(text, add_special_tokens=False)["input_ids"] for text in texts):
        return
    cut = cut_vocabulary(whole, MANY, texts)
    smaller = Tokenizer.from_str(json.dumps(cut.tokenizer_json))
    for text in texts:
        assert smaller.encode(text).tokens == whole.backend_tokenizer.encode(text).tokens
    before, after = (each.decode(each.encode(other).ids) for each in (whole.backend_tokenizer, smaller))
    assert before == after


def test_texts_of_frequent_tokens_alone_stay_exact(tmp_path: Path) -> None:
    whole = KINDS["byte_level"]()
    texts = ["judo throws", "judo throws", "wrestling"]
    cut = cut_vocabulary(whole, MANY, texts, min_count=2)
    smaller = read_again(cut, whole, tmp_path)
    assert tokens(smaller, "judo throws") == tokens(whole, "judo throws")
    assert len(cut.new_ids) < len(cut_vocabulary(whole, MANY, texts).new_ids)
    assert len(tokens(smaller, "wrestling")) > len(tokens(whole, "wrestling"))
    assert round_trip(smaller, "wrestling") == "wrestling"
    kept = cut_vocabulary(whole, MANY, texts, min_count=2, always=["wrestling"])
    assert tokens(read_again(kept, whole, tmp_path), "wrestling") == tokens(whole, "wrestling")


def test_entries_beyond_the_embeddings_are_dropped(tmp_path: Path) -> None:
    whole = deepcopy(KINDS["byte_level"]())
    rows = len(whole)
    whole.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    cut = cut_vocabulary(whole, rows, TEXTS)
    assert rows not in cut.new_ids
    assert "<extra>" not in {entry["content"] for entry in cut.tokenizer_json["added_tokens"]}


def test_bytes_that_the_base_has_no_token_for_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """As in SmolLM2, whose alphabet is that of the text it was made on."""
    cut_vocabulary(KINDS["byte_level"](), MANY, TEXTS)
    assert not caplog.text
    state = json.loads(KINDS["byte_level"]().backend_tokenizer.to_str())
    del state["model"]["vocab"]["\u0100"]
    state["model"]["merges"] = []
    lacking = wrap(Tokenizer.from_str(json.dumps(state)))
    cut_vocabulary(lacking, MANY, TEXTS)
    assert "no token for the bytes 00:" in caplog.text


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("metaspace_first", "kind Unigram"),
        ("word_pieces", "kind WordPiece"),
        ("space_replaced", "no tokens for bytes"),
    ],
)
def test_what_would_lose_words_is_refused(kind: str, why: str) -> None:
    with pytest.raises(EmbedforgeError, match=f"{why}.*prune layers alone"):
        cut_vocabulary(KINDS[kind](), MANY, TEXTS)


def test_no_text_is_refused() -> None:
    with pytest.raises(EmbedforgeError, match="no text"):
        cut_vocabulary(KINDS["byte_level"](), MANY, [])


def test_a_tokenizer_that_is_another_one_is_found_out(tmp_path: Path) -> None:
    whole = KINDS["byte_level"]()
    cut = cut_vocabulary(whole, MANY, TEXTS)
    merges = cut.tokenizer_json["model"]["merges"]
    cut.tokenizer_json["model"]["merges"] = merges[::-1]
    with pytest.raises(EmbedforgeError, match="cannot be cut"):
        prove_cut(whole, read_again(cut, whole, tmp_path), cut)
