"""LLM2Vec checkpoints: agreement with the official package, and where we differ on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from embedforge.errors import EmbedforgeError
from embedforge.model.llm2vec import load_llm2vec
from embedforge.text.contract import Contract
from embedforge.text.render import Renderer
from llm2vec_for_tests import (
    FACTS,
    GOLDEN,
    INSTRUCTION,
    LLAMA_2_CHAT,
    TEXTS,
    base_folder,
    batch,
    cases,
    edit,
    instruction_of,
    official_case,
    tensors,
    vectors,
)

TOLERANCE = 1e-5


def pools_by_count(name: str) -> set[int]:
    """Rows whose official pool is not the text's: without a text, or as long as a text that was cut."""
    counted = {"I.mean.skip.maxlen20": {0, 5}, "I.eos_token.skip.maxlen20": {0, 3, 4, 5}}
    return counted.get(name, set())


def rows(family: str, name: str, *without: set[int]) -> list[int]:
    left_out = set(FACTS["cases"][family][name]["rows_with_empty_mask"]).union(*without)
    return [row for row in range(len(TEXTS)) if row not in left_out]


# --- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), list(cases()))
def test_vectors_agree_on_either_padding_side(family: str, name: str, side: str) -> None:
    """Where the pool is the last token, a cut text agrees too: only means see the counted pool."""
    found = vectors(official_case(family, name), instruction_of(family, name), side)
    means = pools_by_count(name) if ".mean." in name else set()
    kept = rows(family, name, means)
    assert len(kept) >= 5
    expected = tensors(family)[f"{name}.embeddings"]
    torch.testing.assert_close(found[kept], expected[kept], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("family", "name"), [case for case in cases() if f"{case[1]}.input_ids" in tensors(case[0])]
)
def test_ids_and_pooling_masks_agree(family: str, name: str) -> None:
    found, golden = batch(official_case(family, name), instruction_of(family, name)), tensors(family)
    real = golden[f"{name}.attention_mask"].long()
    assert torch.equal(found["attention_mask"], real)
    assert torch.equal(found["input_ids"] * real, golden[f"{name}.input_ids"] * real)
    kept = rows(family, name, pools_by_count(name))
    assert torch.equal(found["pooling_mask"][kept], golden[f"{name}.embed_mask"].long()[kept])


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("name", ["I.mean.skip", "P.mean.skip", "I.eos_token.skip"])
def test_hidden_states_agree(family: str, name: str) -> None:
    model = official_case(family, name)
    inputs = batch(model, instruction_of(family, name))
    with torch.no_grad():
        found = model.token_states(inputs["input_ids"], inputs["attention_mask"])
    expected = tensors(family)[f"{name}.last_hidden_state"]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_text_alone_has_the_vector_it_has_in_a_batch(family: str) -> None:
    model = official_case(family, "I.mean.skip.chat")
    together = vectors(model, INSTRUCTION)
    prefix, suffix = model.contract.query_prefix(INSTRUCTION), model.contract.query_suffix(INSTRUCTION)
    with torch.no_grad():
        for row, text in enumerate(TEXTS):
            alone = model(**model.renderer.batch([text], prefix, suffix=suffix))
            torch.testing.assert_close(alone[0], together[row], atol=TOLERANCE, rtol=0)


CHATS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
        "",  # The package never appends EOS to this one.
    ),
    "mistralai/Mistral-7B-Instruct-v0.2": (LLAMA_2_CHAT, " </s>"),
    "meta-llama/Llama-2-7b-chat-hf": (LLAMA_2_CHAT, " </s>"),
    "google/gemma-2-9b-it": ("<bos><start_of_turn>user\n{text}<end_of_turn>", "<eos>"),
    "Qwen/Qwen2-1.5B-Instruct": ("<|im_start|>user\n{text}<|im_end|>", "<|endoftext|>"),
    "Qwen/Qwen2-7B-Instruct": ("<|im_start|>user\n{text}<|im_end|>", "<|endoftext|>"),
    "meta-llama/Meta-Llama-3-8B": ("{text}", "<|end_of_text|>"),
}
EOS = {
    "LlamaConfig": " </s>",
    "MistralConfig": " </s>",
    "GemmaConfig": "<eos>",
    "Qwen2Config": "<|endoftext|>",
}


@pytest.mark.parametrize("form", FACTS["text_formats"], ids=lambda form: form["name"] + form["pooling_mode"])
def test_the_string_of_every_chat_template_agrees(form: dict) -> None:
    template, eos = CHATS.get(form["name"], ("{text}", EOS[form["config"]]))
    template += eos if form["pooling_mode"] == "eos_token" else ""
    contract = Contract(
        query_template="{instruction} {text}",
        chat_template=template,
        isolate_prefix=False,
        strip_text_end=not template.endswith("{text}"),
    )
    renderer = Renderer(PreTrainedTokenizerFast.from_pretrained(GOLDEN / "llama"), contract)
    for case in form["cases"]:
        text = renderer.prepare([case["text"]])[0]
        string = (
            contract.query_prefix(case["instruction"]) + text + contract.query_suffix(case["instruction"])
        )
        assert string == case["prepared"].replace(FACTS["separator"], "")


def test_texts_are_shortened_by_words_as_in_the_package() -> None:
    renderer = official_case("llama", "I.mean.skip.docmax6").renderer
    for case in FACTS["doc_max_length_6"]:
        expected = case["string"].split(FACTS["separator"])[1]
        if expected:
            assert renderer.prepare([case["text"]]) == [expected]
            assert renderer.prepare([expected]) == [expected]


# --- differences on purpose ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_cut_text_leaves_the_instruction_out_of_the_pool(family: str) -> None:
    """The package counts the tokens of the whole text back from the end, into the instruction."""
    name = "I.mean.skip.maxlen20"
    model, golden = official_case(family, name), tensors(family)
    inputs = batch(model, INSTRUCTION)
    expected, counted = golden[f"{name}.embeddings"], golden[f"{name}.embed_mask"].long()
    cut = sorted(pools_by_count(name))
    extra = counted - inputs["pooling_mask"]
    assert (extra[cut].sum(dim=1) > 0).all()
    names = model.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0][extra[0].bool()].tolist())
    assert names == [",", "▁retrieve", "▁passages", ":"]
    with torch.no_grad():
        found = model(**inputs | {"pooling_mask": counted})
    torch.testing.assert_close(found[cut], expected[cut], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_an_empty_text_does_not_depend_on_its_batch(family: str) -> None:
    """The package pools the whole row, padding included; we pool the last token that the model reads."""
    for name in ("I.mean.skip", "P.mean.skip"):
        model = official_case(family, name)
        assert rows(family, name) == [0, 1, 3, 4, 5, 6, 7]
        inputs = batch(model, instruction_of(family, name))
        assert inputs["pooling_mask"][2].tolist() == [0] * (inputs["pooling_mask"].shape[1] - 1) + [1]


def test_a_word_longer_than_the_limit_is_cut_and_not_dropped() -> None:
    renderer = official_case("llama", "I.mean.skip.docmax6").renderer
    case = FACTS["doc_max_length_6"][-1]
    assert case["string"].endswith(FACTS["separator"]), "the package leaves nothing"
    (text,) = renderer.prepare([case["text"]])
    assert text
    assert case["text"].startswith(text)
    (chinese,) = renderer.prepare(["日本語のテキスト"])
    assert "日本語のテキスト".startswith(chinese)
    assert 0 < len(renderer.tokenizer.tokenize(chinese)) <= 6


@pytest.mark.parametrize("name", sorted(FACTS["bytelevel"]))
def test_byte_level_tokenizers(name: str) -> None:
    """Row 8, "judo": 3 tokens alone and 1 behind a space, so the package pools 2 of the instruction."""
    facts = FACTS["bytelevel"][name]
    template = {"Meta-Llama-3-8B.eos_token.512": "{text}<|end_of_text|>"}.get(name, "{text}")
    if "Instruct" in name:
        template = CHATS["meta-llama/Meta-Llama-3-8B-Instruct"][0]
    contract = Contract(
        query_template="{instruction} {text}",
        chat_template=template,
        max_tokens=facts["max_length"],
        add_eos=False,
        eos_survives_truncation=False,
        pool_bos="never",
        isolate_prefix=False,
        padding_side="left",
        strip_text_end=not template.endswith("{text}"),
    )
    renderer = Renderer(PreTrainedTokenizerFast.from_pretrained(GOLDEN / "tok_bytelevel"), contract)
    texts, instructions = [*TEXTS, "judo throws", "judo throws"], [INSTRUCTION] * 9 + [""]
    found = renderer.batch(
        texts,
        [contract.query_prefix(each) for each in instructions],
        suffix=[contract.query_suffix(each) for each in instructions],
    )
    golden = tensors("tok_bytelevel")
    real = golden[f"{name}.attention_mask"].long()
    assert torch.equal(found["attention_mask"], real)
    assert torch.equal(found["input_ids"] * real, golden[f"{name}.input_ids"] * real)
    masks = golden[f"{name}.embed_mask"].long()
    differ = (found["pooling_mask"] != masks).any(dim=1).nonzero().flatten().tolist()
    empty = [] if template != "{text}" else [2]
    assert differ == sorted({*empty, 8} | ({0, 5} if facts["max_length"] == 20 else set()))
    assert (found["pooling_mask"][8] <= masks[8]).all()


# --- settings --------------------------------------------------------------------------------------


def test_llm2vec_config_is_read_and_arguments_come_first(tmp_path: Path) -> None:
    folder = base_folder("mistral", tmp_path / "base")
    values = {
        "pooling_mode": "weighted_mean",
        "max_length": 64,
        "doc_max_length": 32,
        "skip_instruction": False,
    }
    (folder / "llm2vec_config.json").write_text(json.dumps(values))
    contract = load_llm2vec(str(folder)).contract
    assert (contract.pooling, contract.max_tokens, contract.text_max_tokens) == ("weighted_mean", 64, 32)
    assert contract.pool_instruction
    assert contract.pool_bos == "always"
    contract = load_llm2vec(
        str(folder), pooling="mean", max_tokens=128, text_max_tokens=0, skip_instruction=True
    ).contract
    assert (contract.pooling, contract.max_tokens, contract.text_max_tokens) == ("mean", 128, None)
    assert not contract.pool_instruction


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"poolingmode": "mean"}, r"llm2vec_config.json:\n.*poolingmode: unknown key.*'pooling_mode'"),
        ({"pooling_mode": "latent"}, r"pooling_mode: .*'bos_token'.*'latent'"),
        ({"max_length": "many"}, "max_length"),
    ],
)
def test_settings_that_nobody_knows_are_refused(values: dict, message: str, tmp_path: Path) -> None:
    folder = base_folder("llama", tmp_path / "base")
    (folder / "llm2vec_config.json").write_text(json.dumps(values))
    with pytest.raises(EmbedforgeError, match=message):
        load_llm2vec(str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "latent"}, "LLM2Vec settings:\n.*pooling_mode"),
        ({"chat_template": "[INST]"}, "chat_template: a template holds '{text}' exactly once"),
        ({"chat_template": "{instruction} {text}"}, "leave '{instruction}' out of it"),
        ({"max_tokens": 1024}, "max_tokens is 1024, and the base reads at most 512 tokens"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(EmbedforgeError, match=message):
        load_llm2vec(str(GOLDEN / "llama"), **arguments)


def test_eos_token_appends_the_tokenizers_eos_unless_the_template_ends_in_it(tmp_path: Path) -> None:
    def template(folder: Path, given: str) -> str:
        return load_llm2vec(str(folder), pooling="eos_token", chat_template=given).contract.chat_template

    folder = base_folder("llama", tmp_path / "base")
    assert template(folder, LLAMA_2_CHAT) == "[INST] {text} [/INST] </s>"
    assert template(folder, "{text}</s>") == "{text}</s>"
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / file).write_text((folder / file).read_text().replace("</s>", "<end>"))
    assert template(folder, "{text}") == "{text}<end>", "Llama 3 has no </s>"


def test_bos_token_needs_a_tokenizer_that_puts_bos_in_front(tmp_path: Path) -> None:
    folder = base_folder("llama", tmp_path / "base")
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    edit(folder / "tokenizer_config.json", add_bos_token=False)
    with pytest.raises(EmbedforgeError, match="puts none there"):
        load_llm2vec(str(folder), pooling="bos_token")
    assert not load_llm2vec(str(folder)).contract.add_bos
