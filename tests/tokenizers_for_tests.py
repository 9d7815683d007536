"""Small tokenizers of the kinds that decoder models ship with, built here or read from tests/golden."""

from __future__ import annotations

import functools
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

GOLDEN = Path(__file__).parent / "golden"
SPECIALS = ["<s>", "</s>", "<unk>"]
CORPUS = [
    "Instruct: Given a question, retrieve passages\nQuery: are judo throws allowed in wrestling?",
    "the river bank was closed; 100 degrees, 42 or 2026",
    "A judo throw. The query asks how to train a technician.  Two spaces\n\nand two lines",
    "Übung café déjà vu 日本語 テキスト 🙂 שלום عربي",
] * 8


def wrap(backend: Tokenizer, **settings) -> PreTrainedTokenizerFast:
    named = {"bos_token": "<s>", "eos_token": "</s>"} | settings
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def trained_bpe(pre_tokenizer, normalizer=None, **settings) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token=None if pre_tokenizer_is_bytes(pre_tokenizer) else "<unk>"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    if pre_tokenizer_is_bytes(pre_tokenizer):
        backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if pre_tokenizer_is_bytes(pre_tokenizer) else [],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrap(backend, **settings)


def pre_tokenizer_is_bytes(pre_tokenizer) -> bool:
    return "ByteLevel" in repr(pre_tokenizer)


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind; no pad token."""
    return trained_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))


def byte_level_prefix_space() -> PreTrainedTokenizerFast:
    return trained_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True), pad_token="</s>")


def byte_level_regex() -> PreTrainedTokenizerFast:
    """Llama 3's and Qwen's kind: composed characters, a word pattern, then bytes."""
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    steps = [
        pre_tokenizers.Split(Regex(words), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return trained_bpe(pre_tokenizers.Sequence(steps), normalizers.NFC())


def prepended_space_mark() -> PreTrainedTokenizerFast:
    """Llama 2's and Mistral's kind: the normalizer marks the start; byte fallback, no pre-tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(GOLDEN / "nvembed_tiny")


def metaspace_first() -> PreTrainedTokenizerFast:
    """SentencePiece unigram, as converted by newer libraries."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrap(backend, pad_token="<unk>")


def space_replaced() -> PreTrainedTokenizerFast:
    """Gemma's kind: the normalizer turns spaces into marks, words end in a mark."""
    split = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    return trained_bpe(split, normalizers.Replace(" ", "▁"), unk_token="<unk>")


def word_pieces() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return wrap(backend, unk_token="<unk>")


KINDS = {
    kind.__name__: functools.cache(kind)
    for kind in (
        byte_level,
        byte_level_prefix_space,
        byte_level_regex,
        prepended_space_mark,
        metaspace_first,
        space_replaced,
        word_pieces,
    )
}
