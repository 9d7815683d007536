"""The contract's chat template, and its limits on a text by itself: in strings, tokens, pools and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

import embedforge
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import save, to_sentence_transformer
from embedforge.model.layout import obstacle_to_stock, prompts
from embedforge.text.contract import FILE_NAME, Contract
from embedforge.text.goldens import GOLDEN_TEXTS, check_goldens, make_goldens
from embedforge.text.render import Renderer
from embedforge.text.tokenizer import prefix_endings
from models_for_tests import TEXTS, embed, make
from tokenizers_for_tests import KINDS, byte_level

CHAT = "[INST] {text} [/INST]"
TURN = "<|im_start|>user\n{text}<|im_end|>"
LONG = "the river bank was closed and nobody knew why it had to be so "


def ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- strings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("templates", "query", "bare_query", "document"),
    [
        ({}, "[INST] Instruct: find\nQuery: |[/INST]", "[INST] |[/INST]", "[INST] |[/INST]"),
        (
            {"query_template": "<q>{instruction}: {text}</q>", "document_template": "<d>{text}</d>"},
            "[INST] <q>find: |</q>[/INST]",
            "[INST] |[/INST]",
            "[INST] <d>|</d>[/INST]",
        ),
        (
            {"query_template": "query: {text}"},
            "[INST] query: |[/INST]",
            "[INST] query: |[/INST]",
            "[INST] |[/INST]",
        ),
    ],
)
def test_it_goes_round_queries_and_documents_with_and_without_instruction(
    templates, query, bare_query, document
) -> None:
    contract = Contract(chat_template="[INST] {text}[/INST]", **templates)
    assert contract.query_prefix("find") + "|" + contract.query_suffix("find") == query
    assert contract.query_prefix(" find\n") + "|" + contract.query_suffix(" find\n") == query
    assert contract.query_prefix("") + "|" + contract.query_suffix("") == bare_query
    assert contract.query_prefix("  ") + "|" + contract.query_suffix("  ") == bare_query
    assert contract.document_prefix() + "|" + contract.document_suffix() == document
    assert contract.document_prefix(" ") + "|" + contract.document_suffix(" ") == document
    assert contract.document_prefix("find") + "|" + contract.document_suffix("find") == query


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat_template": "[INST]"}, "exactly once"),
        ({"chat_template": "{text}{text}"}, "exactly once"),
        ({"chat_template": "{instruction} {text}"}, "query_template holds the instruction"),
        ({"text_max_tokens": 0}, "greater than or equal to 1"),
        ({"text_max_tokens": 64, "max_tokens": 64}, r"text_max_tokens \(64\) has no effect"),
    ],
)
def test_bad_values_are_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        Contract(**values)


def test_a_contract_file_from_before_these_fields_loads(tmp_path: Path) -> None:
    old = Contract(max_tokens=64).model_dump(mode="json")
    for field in ("chat_template", "text_max_tokens", "strip_text_end"):
        del old[field]
    (tmp_path / FILE_NAME).write_text(json.dumps(old))
    assert Contract.load(tmp_path) == Contract(max_tokens=64)


# --- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_isolated_a_text_has_the_same_tokens_behind_chat_template_and_instruction(kind: str) -> None:
    contract = Contract(chat_template="[INST] {text}", add_bos=False, add_eos=False)
    assert prefix_endings(contract) == ("\nQuery: ", "[INST] ")
    renderer = Renderer(KINDS[kind](), contract)
    for text in ("judo", " judo", "\nline", "[INST] x", "日本"):
        for prefix in (contract.query_prefix("Find songs"), contract.query_prefix("")):
            row = renderer.render([text], prefix)[0]
            before = ids(renderer.tokenizer, prefix)
            assert row.input_ids == before + ids(renderer.tokenizer, text)
            assert row.pooling_mask == [0] * len(before) + [1] * (len(row.input_ids) - len(before))


def test_isolated_behind_a_special_token() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(each, special=True) for each in ("<|im_start|>", "<|im_end|>")
            ]
        }
    )
    contract = Contract(chat_template=TURN, document_template="<|im_end|>{text}")
    renderer = Renderer(tokenizer, contract)
    twice = Renderer(renderer.tokenizer, contract)
    assert twice.tokenizer.backend_tokenizer.to_str() == renderer.tokenizer.backend_tokenizer.to_str()
    for prefix in (contract.query_prefix(""), contract.query_prefix("Find"), contract.document_prefix()):
        row = renderer.render(["\nline"], prefix, suffix=contract.query_suffix())[0]
        inside = ids(renderer.tokenizer, "\nline")
        assert row.input_ids[1:-2] == [*ids(renderer.tokenizer, prefix), *inside]
        assert renderer.tokenizer.convert_ids_to_tokens(row.input_ids)[-2:] == ["<|im_end|>", "</s>"]
        assert sum(row.pooling_mask) == len(inside) + 2, "the closing token is pooled"
    with pytest.raises(EmbedforgeError, match=r"contract.isolate_prefix=false"):
        Renderer(tokenizer, Contract(chat_template="<|im_start|>\n\n{text}"))


def test_what_follows_the_text_is_cut_too_unless_it_survives() -> None:
    settings = {"chat_template": CHAT, "max_tokens": 24, "default_instruction": "", "add_eos": False}
    for survives in (True, False):
        contract = Contract(eos_survives_truncation=survives, **settings)
        renderer = Renderer(byte_level(), contract)
        frame = (contract.query_prefix(), contract.query_suffix())
        short = renderer.render(["judo"], frame[0], suffix=frame[1])[0]
        long = renderer.render([LONG], frame[0], suffix=frame[1])[0]
        assert renderer.tokenizer.decode(short.input_ids).endswith("judo [/INST]")
        assert len(long.input_ids) == 24
        assert renderer.tokenizer.decode(long.input_ids).endswith(" [/INST]") is survives
        whole = ids(renderer.tokenizer, frame[0] + LONG + frame[1])
        assert (long.input_ids[1:] == whole[:23]) is not survives
        assert long.pooling_mask[-1] == 1
    slightly = renderer.render(["judo"], frame[0], suffix=frame[1], max_tokens=len(short.input_ids) - 2)[0]
    assert slightly.input_ids == short.input_ids[:-2]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_text_is_shortened_by_words_before_it_is_framed(kind: str) -> None:
    contract = Contract(text_max_tokens=8, max_tokens=64, isolate_prefix=False)
    renderer = Renderer(KINDS[kind](), contract)
    texts = [LONG, "judo", "", " ", "x" * 100, "日本語" * 40, " " * 60]
    prepared = renderer.prepare(texts)
    assert LONG.startswith(prepared[0])
    assert prepared[0].split() == LONG.split()[: len(prepared[0].split())]
    assert prepared[1:4] == texts[1:4]
    for text, short in zip(texts, prepared, strict=True):
        assert len(ids(renderer.tokenizer, short)) <= 8
        assert short or not ids(renderer.tokenizer, text)
    assert renderer.prepare(prepared) == prepared
    query = contract.query_prefix()
    whole, shortened = (
        [(row.input_ids, row.pooling_mask) for row in renderer.render(part, query)]
        for part in (texts, prepared)
    )
    assert whole == shortened  # ids and mask; only the first has lost tokens


def test_white_space_at_the_end_goes_where_the_contract_says_so() -> None:
    contract = Contract(chat_template=CHAT, strip_text_end=True)
    renderer = Renderer(byte_level(), contract)
    assert renderer.prepare(["judo \n", " judo", "\t"]) == ["judo", " judo", ""]
    assert Renderer(byte_level(), Contract()).prepare(["judo \n"]) == ["judo \n"]
    with pytest.raises(EmbedforgeError, match="text 1 is a int"):
        renderer.render(["a", 3])  # type: ignore[list-item]


def test_goldens_are_stored_as_prepared_and_checked_with_the_template() -> None:
    contract = Contract(chat_template=CHAT, strip_text_end=True, default_instruction="")
    renderer = Renderer(byte_level(), contract)
    goldens = make_goldens(renderer)
    assert [golden.text for golden in goldens] == [text.rstrip() for text in GOLDEN_TEXTS]
    assert {(golden.prefix, golden.suffix) for golden in goldens} == {("[INST] ", " [/INST]")}
    check_goldens(renderer, contract.model_copy(update={"goldens": goldens}))


# --- models ----------------------------------------------------------------------------------------


def test_prompts_of_sentence_transformers(tiny_base: Path) -> None:
    """Wrapped are texts with any prompt and with none, by task or without."""
    model = make(tiny_base, chat_template=CHAT, query_template="Instruct: {instruction}\nQuery: {text} ?")
    contract = model.contract
    st = to_sentence_transformer(model)
    assert st.prompts == prompts(contract) == {"query": contract.query_prefix(), "document": "[INST] "}

    def strings(**options) -> str:
        return model.tokenizer.decode(st[0].preprocess(["river"], **options)["input_ids"][0])

    query = f"<s>{contract.query_prefix('Find')}river ? [/INST]</s>"
    assert strings(prompt=contract.query_prefix("Find"), task="query") == query
    assert strings(prompt=contract.query_prefix("Find")) == query
    assert strings(prompt="Instruct: Find\nQuery: ") == query
    assert strings(prompt="Instruct: Find\nQuery: ", task="query") == query
    bare = "<s>[INST] river [/INST]</s>"
    for options in ({}, {"prompt": "[INST] "}, {"task": "document"}, {"prompt": "", "task": "query"}):
        assert strings(**options) == bare


def test_a_saved_model_wraps_as_the_one_in_memory(tiny_base: Path, tmp_path: Path) -> None:
    model = make(tiny_base, chat_template=CHAT, strip_text_end=True, text_max_tokens=12)
    query = model.renderer.render(TEXTS, model.contract.query_prefix(), suffix=model.contract.query_suffix())
    with torch.no_grad():
        expected = model(**model.renderer.pad(query)).numpy()
    save(model, tmp_path / "model")
    st = embedforge.load(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(st.encode_query(TEXTS), expected, atol=1e-6)
    assert np.abs(st.encode(TEXTS) - embed(model, TEXTS)).max() > 0.01, "without frame it is another vector"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "after a document stands ' [/INST]'" in card
    assert "would not get the chat template" in card


@pytest.mark.parametrize(
    ("settings", "obstacle"),
    [
        ({}, None),
        ({"chat_template": "[INST] {text}"}, "chat template"),
        ({"text_max_tokens": 9}, "shortened by words"),
        ({"strip_text_end": True}, "stripped"),
    ],
)
def test_obstacles_to_plain_sentence_transformers(settings, obstacle) -> None:
    found = obstacle_to_stock(Contract(**settings))
    assert found is None if obstacle is None else obstacle in str(found)
