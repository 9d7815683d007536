from __future__ import annotations

import functools
import json
import tempfile
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from embedforge.errors import EmbedforgeError
from embedforge.text.contract import Contract
from embedforge.text.render import Renderer
from embedforge.text.tokenizer import contract_tokenizer
from tokenizers_for_tests import GOLDEN, KINDS, byte_level, prepended_space_mark, wrap

PREFIX = Contract().query_prefix("Given a question, retrieve passages")
ODD = [
    "",
    " ",
    "  two",
    "judo",
    " judo",
    "\nQuery: x",
    "a\nQuery: b\nQuery: ",
    "\n",
    "Query: ",
    "uery: x",
    "42",
    "1,000",
    "日本語",
    "שלום עולם",
    "مرحبا",
    "🙂👩‍👩‍👧",
    "e\u0301te\u0301",
    "\u0301x",
    "\x00\x07\u200b\ufeff",
    "\t\r\n tab",
    "▁mark ▁",
    "a</s>b",
    "<s>",
    ".",
    "ﬁ½",
    "a b\u00a0c\u3000d",
]
odd_texts = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text("ab QueryInstct:\n▁ 1é日🙂", max_size=60),
)
kinds = st.sampled_from(sorted(KINDS))
quick = settings(max_examples=100, deadline=None, database=None, derandomize=True)


@functools.cache
def renderer(kind: str, **fields) -> Renderer:
    return Renderer(KINDS[kind](), Contract(**fields))


@functools.cache
def reloaded(kind: str, **fields):
    with tempfile.TemporaryDirectory() as folder:
        renderer(kind, **fields).tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


# --- invariants over odd texts -----------------------------------------------------------------


@quick
@given(kinds, odd_texts, st.sampled_from(["", PREFIX]), st.integers(1, 40), st.booleans())
def test_length_eos_and_masks(kind, text, prefix, room, isolate):
    subject = renderer(kind, isolate_prefix=isolate)
    tokenizer = subject.tokenizer
    fixed = len(subject.render([""], prefix)[0].input_ids)
    row = subject.render([text], prefix, max_tokens=fixed + room)[0]
    assert len(row.input_ids) == len(row.pooling_mask) <= fixed + room
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert row.pooling_mask[-1] == 1
    assert row.pooling_mask[0] == (0 if prefix else 1)
    assert sorted(row.pooling_mask[1:]) == row.pooling_mask[1:]  # the instruction first, then the text


@quick
@given(kinds, odd_texts)
def test_isolated_text_has_the_same_tokens_after_every_prefix(kind, text):
    subject = renderer(kind)
    alone = subject.render([text])[0]
    query = subject.render([text], PREFIX)[0]
    prefix = subject.render([""], PREFIX)[0].input_ids[:-1]
    assert query.input_ids == prefix + alone.input_ids[1:]
    assert query.pooling_mask == [0] * len(prefix) + alone.pooling_mask[1:]


@quick
@given(kinds, odd_texts, st.sampled_from(["", PREFIX]), st.integers(0, 60), st.booleans())
def test_saved_tokenizer_in_a_plain_library_makes_the_same_ids(kind, text, prefix, room, isolate):
    subject, plain = renderer(kind, isolate_prefix=isolate), reloaded(kind, isolate_prefix=isolate)
    limit = len(subject.render([""], prefix)[0].input_ids) + 1 + room
    ours = subject.render([text], prefix, max_tokens=limit)[0].input_ids
    assert ours == plain(prefix + text, truncation=True, max_length=limit)["input_ids"]


@quick
@given(kinds, odd_texts, st.sampled_from(["", PREFIX]), st.booleans())
def test_pool_is_decided_by_character_offsets(kind, text, prefix, isolate):
    subject = renderer(kind, isolate_prefix=isolate)
    encoded = subject.tokenizer(prefix + text, add_special_tokens=False, return_offsets_mapping=True)
    marks_start = kind in ("byte_level_prefix_space", "prepended_space_mark", "metaspace_first")
    boundary = len(prefix.rstrip(" ")) if marks_start and not isolate else len(prefix)
    expected = [int(not prefix or end > boundary) for _, end in encoded["offset_mapping"]]
    assert subject.render([text], prefix)[0].pooling_mask[1:-1] == expected


@quick
@given(kinds, st.lists(odd_texts, min_size=1, max_size=4), st.sampled_from([1, 8]))
def test_padding(kind, texts, multiple):
    subject = renderer(kind)
    rows = subject.render(texts, PREFIX)
    for side in ("left", "right"):
        batch = subject.pad(rows, side=side, multiple_of=multiple)
        assert all(value.dtype == torch.int64 for value in batch.values())
        assert batch["input_ids"].shape[1] % multiple == 0
        assert bool((batch["pooling_mask"] <= batch["attention_mask"]).all())
        assert bool(batch["pooling_mask"].any(dim=1).all())
        for i, row in enumerate(rows):
            real = batch["attention_mask"][i].bool()
            assert batch["input_ids"][i][real].tolist() == row.input_ids
            assert batch["pooling_mask"][i][real].tolist() == row.pooling_mask
            padding = len(real) - len(row.input_ids)
            assert not real[:padding].any() if side == "left" else not real[len(real) - padding :].any()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_very_long_texts_are_cut_without_a_warning(kind, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = renderer(kind).render(["the river bank " * 7_000], PREFIX)[0]
        one_word = renderer(kind).render(["日" * 100_000], PREFIX)[0]
    assert len(row.input_ids) == 512
    assert len(one_word.input_ids) <= 512
    assert row.input_ids[-1] == renderer(kind).tokenizer.eos_token_id
    assert not caplog.records


# --- the prepared tokenizer --------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_preparing_is_idempotent_and_leaves_the_given_tokenizer_alone(kind):
    given_one = KINDS[kind]()
    before = given_one.backend_tokenizer.to_str()
    once = contract_tokenizer(given_one, Contract())
    twice = contract_tokenizer(once, Contract())
    assert given_one.backend_tokenizer.to_str() == before
    assert twice.backend_tokenizer.to_str() == once.backend_tokenizer.to_str()
    again = contract_tokenizer(reloaded(kind), Contract())
    assert again.backend_tokenizer.to_str() == once.backend_tokenizer.to_str()


@pytest.mark.parametrize(
    ("model_type", "arguments"),
    [
        ("llama", {}),
        ("mistral", {}),
        ("qwen3", {}),
        ("gemma", {}),
        # The library forces its own pipeline on this model type; another type's name keeps the saved one.
        ("qwen2", {"tokenizer_type": "jamba"}),
    ],
)
def test_prepared_tokenizer_survives_reloading_beside_a_model_config(model_type, arguments, tmp_path):
    subject = Renderer(prepended_space_mark(), Contract())
    subject.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for plain in (
        AutoTokenizer.from_pretrained(tmp_path, **arguments),
        PreTrainedTokenizerFast.from_pretrained(tmp_path),
    ):
        for text in ODD:
            assert plain(PREFIX + text)["input_ids"] == subject.render([text], PREFIX)[0].input_ids
        assert plain.padding_side == "right"
        assert plain.model_max_length == 512
        assert plain.pad_token == "</s>"


def test_document_and_query_templates_without_an_instruction():
    contract = Contract(query_template="query: {text}", document_template="passage: {text}")
    for kind in KINDS.values():
        subject = Renderer(kind(), contract)
        for text in ODD:
            alone = subject.render([text])[0]
            for prefix in ("query: ", "passage: "):
                row = subject.render([text], prefix)[0]
                assert row.input_ids[len(row.input_ids) - len(alone.input_ids) + 1 :] == alone.input_ids[1:]


def test_without_bos_or_eos():
    subject = Renderer(byte_level(), Contract(add_bos=False, add_eos=False))
    row = subject.render(["judo"], PREFIX)[0]
    assert row.input_ids == subject.tokenizer(PREFIX + "judo")["input_ids"]
    assert subject.render([""], PREFIX)[0].pooling_mask[-1] == 1, "nothing to pool: the last token"
    assert subject.render([""])[0].pooling_mask == [1], "no token at all: one pad token"


def test_pad_equal_to_eos_does_not_hide_eos():
    subject = renderer("prepended_space_mark")
    assert subject.pad_id == subject.tokenizer.eos_token_id
    batch = subject.batch(["judo", "judo throws in the river"])
    assert batch["attention_mask"].sum(1).tolist() == [
        len(r.input_ids) for r in subject.render(["judo", "judo throws in the river"])
    ]


# --- the contract's switches -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool_bos", "prefix", "pooled"),
    [
        ("always", "", 1),
        ("always", PREFIX, 1),
        ("never", "", 0),
        ("never", PREFIX, 0),
        ("without_instruction", "", 1),
        ("without_instruction", PREFIX, 0),
    ],
)
def test_pool_bos(pool_bos, prefix, pooled):
    row = renderer("byte_level", pool_bos=pool_bos).render(["judo"], prefix)[0]
    assert row.pooling_mask[0] == pooled


def test_pool_instruction_and_pool_eos():
    row = renderer("byte_level", pool_instruction=True, pool_eos=False).render(["judo"], PREFIX)[0]
    assert row.pooling_mask[1:-1] == [1] * (len(row.input_ids) - 2)
    assert row.pooling_mask[-1] == 0


def test_suffix_is_kept_and_pooled_when_the_text_is_cut():
    subject = renderer("byte_level")
    full = subject.render(["the river bank " * 30], PREFIX, suffix=" end.")[0]
    cut = subject.render(["the river bank " * 30], PREFIX, suffix=" end.", max_tokens=60)[0]
    assert len(cut.input_ids) == 60
    assert subject.tokenizer.decode(cut.input_ids).endswith(" end.</s>")
    assert cut.input_ids[:40] == full.input_ids[:40]
    assert cut.pooling_mask[-4:] == [1] * 4


def test_a_prefix_for_each_text():
    subject = renderer("byte_level")
    rows = subject.render(["judo", "judo"], ["", PREFIX])
    assert rows == subject.render(["judo"]) + subject.render(["judo"], PREFIX)
    assert subject.render([]) == []


def test_contract_limit_cannot_be_raised_by_the_argument():
    assert len(renderer("byte_level", max_tokens=8).render(["judo " * 50], max_tokens=99)[0].input_ids) == 8


# --- official NV-Embed -------------------------------------------------------------------------


@functools.cache
def official(prefix_tokens: str) -> tuple[Renderer, dict, dict]:
    contract = Contract(
        isolate_prefix=False, eos_survives_truncation=False, max_tokens=4096, prefix_tokens=prefix_tokens
    )
    folder = GOLDEN / "nvembed_tiny"
    golden = json.loads((folder / "golden.json").read_text())
    return Renderer(prepended_space_mark(), contract), golden, load_file(folder / "golden.safetensors")


@pytest.mark.parametrize("prefix_tokens", ["counted", "by_position"])
@pytest.mark.parametrize("case", ["plain", "instr", "instr_nospace", "plain_trunc12", "instr_trunc32"])
def test_official_ids_and_masks(case, prefix_tokens):
    subject, golden, tensors = official(prefix_tokens)
    settings_of_case = golden["cases"][case]
    batch = subject.batch(
        golden["texts"], settings_of_case["instruction"], max_tokens=settings_of_case["max_length"]
    )
    expected = tensors[f"{case}.pool_mask"].long()
    assert torch.equal(batch["input_ids"], tensors[f"{case}.input_ids"].long())
    assert torch.equal(batch["attention_mask"], tensors[f"{case}.attention_mask"].long())
    if case == "instr_nospace" and prefix_tokens == "by_position":
        # Upstream counts the prefix's tokens without BOS but masks from BOS on, so the last token of an
        # instruction that does not end in a space (":") slips into its pool.
        colon = settings_of_case["instruction_lens"]
        assert set(subject.tokenizer.convert_ids_to_tokens(batch["input_ids"][:, colon].tolist())) == {":"}
        assert bool((expected[:, colon] == 1).all())
        expected[:, colon] = 0
    assert torch.equal(batch["pooling_mask"], expected)


# --- errors ------------------------------------------------------------------------------------


def test_missing_special_tokens_and_slow_tokenizers_are_refused():
    bare = wrap(byte_level().backend_tokenizer, bos_token=None, eos_token=None)
    with pytest.raises(EmbedforgeError, match=r"contract.add_bos=false"):
        Renderer(bare, Contract())
    with pytest.raises(EmbedforgeError, match=r"contract.add_eos=false"):
        Renderer(bare, Contract(add_bos=False))
    assert Renderer(bare, Contract(add_bos=False, add_eos=False)).pad_id == 0
    with pytest.raises(EmbedforgeError, match="no character offsets"):
        Renderer(object(), Contract())  # type: ignore[arg-type]


def test_no_room_for_text_names_both_numbers():
    with pytest.raises(EmbedforgeError, match=r"take \d+ tokens of max_tokens=8 .*shorten the instruction"):
        renderer("byte_level").render(["judo"], PREFIX, max_tokens=8)


@pytest.mark.parametrize(
    "template", ["{instruction}{text}", "Do {instruction} {text}", "{instruction}\n\n{text}"]
)
def test_templates_without_a_separator_are_refused(template):
    with pytest.raises(EmbedforgeError, match=r"contract\.isolate_prefix=false"):
        Renderer(byte_level(), Contract(query_template=template))
    Renderer(byte_level(), Contract(query_template=template, isolate_prefix=False))


def test_separators_that_overlap_themselves():
    contract = Contract(query_template="{instruction} | {text}")
    subject = Renderer(byte_level(), contract)
    for text in ["| x", " | x", "x"]:
        for prefix in (contract.query_prefix("find"), contract.query_prefix("find |")):
            alone, query = subject.render([text])[0], subject.render([text], prefix)[0]
            assert query.input_ids[-len(alone.input_ids) + 1 :] == alone.input_ids[1:]
    ambiguous = Contract(query_template="{instruction}:{text}", document_template=": {text}")
    with pytest.raises(EmbedforgeError, match="choose another separator"):
        Renderer(byte_level(), ambiguous)


def test_tokenizers_that_cannot_be_isolated_are_refused():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "judo": 1, "<s>": 2, "</s>": 3}, unk_token="<unk>"))
    backend.normalizer = normalizers.Strip()  # strips the prefix's last space only where no text follows
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    with pytest.raises(EmbedforgeError, match=r"cannot be isolated.*contract.isolate_prefix=false"):
        Renderer(wrap(backend, unk_token="<unk>"), Contract())


def test_a_prefix_that_is_not_the_templates_is_refused_when_isolated():
    with pytest.raises(EmbedforgeError, match=r"does not end in '\\nQuery: '"):
        renderer("byte_level").render(["judo"], "Represent this: ")
    renderer("byte_level", isolate_prefix=False).render(["judo"], "Represent this: ")


def test_bad_arguments():
    subject = renderer("byte_level")
    with pytest.raises(EmbedforgeError, match="2 texts were given 1 prefixes"):
        subject.render(["a", "b"], [""])
    with pytest.raises(EmbedforgeError, match="text 1 is not valid Unicode"):
        subject.render(["a", "b\ud800"])
    with pytest.raises(EmbedforgeError, match="padding side"):
        subject.pad(subject.render(["a"]), side="middle")
