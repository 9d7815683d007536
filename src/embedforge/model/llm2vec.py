"""Published LLM2Vec checkpoints (BehnamGhader et al. 2024): base, adapters and settings to one model.

Such a model comes as a base decoder, an adapter from masked next-token prediction, and one from SimCSE or
from supervised training on top of that. Each is merged in turn. Its package puts a separator between
instruction and text, and pools as many tokens from the end as the text alone has; here character offsets
decide instead. Where the two differ (docs/llm2vec.md) the package pools something else than it means to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.model.attention import ensure_attention
from embedforge.model.decoder import load_decoder, read_tokenizer, state_width, torch_dtype
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.folder import find_folder
from embedforge.model.lora_folder import base_of, is_adapter, merge_adapter
from embedforge.model.pooling import build_pooler
from embedforge.model.precision import stored_dtype
from embedforge.model.special_tokens import add_asked_specials, adds_specials
from embedforge.text.contract import Contract
from embedforge.text.goldens import GOLDEN_TEXTS
from embedforge.text.render import Renderer
from embedforge.validation import explain

SETTINGS = "llm2vec_config.json"

POOLINGS = {
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "eos_token": "last",
    "last_token": "last",
    "bos_token": "cls",
}
"""LLM2Vec's pooling modes in our terms; eos_token differs from last_token by an EOS behind the text."""

_EOS_TEXT = {"llama": " </s>", "mistral": " </s>", "gemma": "<eos>", "qwen2": "<|endoftext|>"}
"""What LLM2Vec appends by model type in mode eos_token. The space is a token of its own in SentencePiece."""

_ENDS_FOR_ALL = "<|eot_id|>"
"""Llama 3's end of a turn. Behind a chat template that ends in it, LLM2Vec's code appends no EOS: it returns
before it comes to that, and eos_token pools the state of this token. Behind all others it appends one."""


class PublishedSettings(BaseModel):
    """What llm2vec_config.json holds, with the package's defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pooling_mode: Literal["mean", "weighted_mean", "eos_token", "last_token", "bos_token"] = "mean"
    max_length: Annotated[int, Field(ge=4)] = 512
    doc_max_length: Annotated[int, Field(ge=0)] = 400
    """Tokens to which a text by itself is shortened, word by word; 0 for no limit (ours)."""
    skip_instruction: bool = True


def load_llm2vec(
    base: str | None = None,
    adapters: Sequence[str] = (),
    *,
    pooling: str | None = None,
    chat_template: str = "{text}",
    instruction: str = "",
    max_tokens: int | None = None,
    text_max_tokens: int | None = None,
    skip_instruction: bool | None = None,
    normalize: bool = True,
    attention: Literal["bidirectional", "causal"] = "bidirectional",
    dtype: str | torch.dtype | None = None,
    merge_dtype: str | torch.dtype = "float32",
    attention_implementation: str = "auto",
    trust_remote_code: bool = False,
) -> EmbeddingModel:
    """Load an LLM2Vec checkpoint as one plain model, adapters merged, in eval mode.

    Code in the adapters' folders is never run, and their config.json is not read. The tokenizer is the first
    adapter's where it has one, as in the package, else the base's.

    Args:
        base: the decoder, a folder or a hub id. An adapter's folder here counts as the first adapter. When
            None, the base is the one that the first adapter names.
        adapters: folders or hub ids of LoRA adapters, in the order of training: MNTP, then SimCSE or
            supervised.
        pooling: mean, weighted_mean, eos_token, last_token or bos_token. This and the next ones that are None
            come from llm2vec_config.json beside the last adapter, else they are the package's defaults.
        chat_template: what the model was trained with, "[INST] {text} [/INST]" for Mistral-Instruct; the
            package guesses it from the model's name, here it is never guessed.
        instruction: the contract's default instruction, for `encode_query`.
        max_tokens: of the whole string (max_length, 512).
        text_max_tokens: to which a text by itself is shortened word by word (doc_max_length, 400); 0 for no
            limit.
        skip_instruction: leave instruction, chat template's beginning and BOS out of the pool.
        normalize: unit length, which the package leaves to its callers.
        attention: "causal" for models trained so (enable_bidirectional=False).
        dtype: of the finished weights; the base's stored one when None.
        merge_dtype: in which adapters are merged. float32 takes the memory of a float32 model.
        attention_implementation: sdpa, eager, flash_attention_2, or auto for transformers' choice.
        trust_remote_code: allow the base's repository to run its code, if transformers lacks its type.

    Raises:
        EmbedforgeError: no base; see `load_decoder`, `merge_adapter`, `ensure_attention`; unknown settings.
    """
    base, folders = _chain(base, [find_folder(adapter).resolve() for adapter in adapters])
    base_folder = find_folder(base)
    settings = _settings(
        (folders or [base_folder])[-1],
        pooling_mode=pooling,
        max_length=max_tokens,
        doc_max_length=text_max_tokens,
        skip_instruction=skip_instruction,
    )
    decoder, tokenizer = load_decoder(
        base,
        dtype=merge_dtype,
        attention_implementation=attention_implementation,
        trust_remote_code=trust_remote_code,
    )
    tokenizer_folder = base_folder
    if folders and (folders[0] / "tokenizer.json").exists():
        tokenizer_folder = folders[0]
        tokenizer = read_tokenizer(tokenizer_folder, decoder)
    add_asked_specials(tokenizer, tokenizer_folder)
    contract = _contract(
        settings,
        tokenizer,
        decoder,
        chat_template=chat_template,
        default_instruction=instruction,
        normalize=normalize,
        attention=attention,
    )
    decoder = _merge(decoder, tokenizer, folders, contract)
    ensure_attention(decoder, contract.attention, padding_side=contract.padding_side)
    target = torch_dtype(dtype or stored_dtype(base_folder))
    pooler = build_pooler(contract.pooling, state_width(decoder))
    contract = contract.model_copy(update={"dtype": str(target).removeprefix("torch.")})
    return EmbeddingModel(decoder, pooler, tokenizer, contract).to(target).eval()


def _chain(base: str | None, adapters: list[Path]) -> tuple[str, list[Path]]:
    """Return the decoder's name and all adapters: a base may be missing, or itself be an adapter's folder."""
    if base is None:
        if not adapters:
            raise EmbedforgeError("name a base, or an adapter that names its base")
        base = _named_base(adapters[0])
    while is_adapter(folder := find_folder(base).resolve()):
        if folder in adapters:
            raise EmbedforgeError(
                f"{folder}: this adapter is the base, or named as one, and an adapter again"
            )
        base, adapters = _named_base(folder), [folder, *adapters]
    return base, adapters


def _named_base(adapter: Path) -> str:
    base = base_of(adapter)
    try:
        find_folder(base)
    except EmbedforgeError as error:
        raise EmbedforgeError(f"{adapter}: its base is not here; give it as well. {error}") from None
    return base


def _settings(folder: Path, **given: Any) -> PublishedSettings:
    """Read llm2vec_config.json where there is one; what the caller gives comes first."""
    file = folder / SETTINGS
    stored = read_object(file) if file.exists() else {}
    chosen = {key: value for key, value in given.items() if value is not None}
    for origin, values in ((str(file), stored), ("LLM2Vec settings", stored | chosen)):
        try:
            settings = PublishedSettings.model_validate(values)
        except ValidationError as error:
            raise EmbedforgeError(f"{origin}:\n{explain(error, PublishedSettings)}") from None
    return settings


def _contract(
    settings: PublishedSettings,
    tokenizer: PreTrainedTokenizerBase,
    decoder: PreTrainedModel,
    **given: Any,
) -> Contract:
    """Say what the package does with these settings."""
    context = getattr(decoder.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and context < settings.max_length:
        raise EmbedforgeError(
            f"max_tokens is {settings.max_length}, and the base reads at most {context} tokens; set it lower"
        )
    add_bos, add_eos = adds_specials(tokenizer)
    from_bos = settings.pooling_mode == "bos_token"
    if from_bos and not add_bos:
        raise EmbedforgeError("pooling bos_token takes the state of BOS, and this tokenizer puts none there")
    values = {
        "query_template": "{instruction} {text}",
        "document_template": "{text}",
        "max_tokens": settings.max_length,
        # The package counts no more than max_length tokens of a text, so a higher limit does nothing.
        "text_max_tokens": settings.doc_max_length
        if 0 < settings.doc_max_length < settings.max_length
        else None,
        "add_bos": add_bos,
        "add_eos": add_eos,
        "eos_survives_truncation": False,
        "pool_instruction": not settings.skip_instruction,
        "pool_bos": "never" if settings.skip_instruction and not from_bos else "always",
        "isolate_prefix": False,
        "padding_side": "left",
        "pooling": POOLINGS[settings.pooling_mode],
    }
    try:
        contract = Contract.model_validate(values | given)
    except ValidationError as error:
        raise EmbedforgeError(f"LLM2Vec contract:\n{explain(error, Contract)}") from None
    template = contract.chat_template
    if settings.pooling_mode == "eos_token":
        template = _with_eos(template, tokenizer, decoder.config.model_type)
    goes_on = not template.endswith("{text}")
    return contract.model_copy(update={"chat_template": template, "strip_text_end": goes_on})


def _with_eos(template: str, tokenizer: PreTrainedTokenizerBase, model_type: str) -> str:
    """Append EOS as text, where the package does and as it spells it, or the tokenizer's own."""
    own = str(tokenizer.eos_token)
    if template.endswith((own, _ENDS_FOR_ALL)):
        return template
    official = _EOS_TEXT.get(model_type, own)
    return template + (official if official.strip() in tokenizer.get_vocab() else own)


def _merge(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folders: list[Path], contract: Contract
) -> PreTrainedModel:
    renderer = Renderer(tokenizer, contract)
    # Short enough for any limit; what it holds does not matter for a proof that outputs stay the same.
    batch = renderer.batch([text for text in GOLDEN_TEXTS if text], contract.document_prefix())
    for folder in folders:
        decoder = merge_adapter(decoder, folder, batch)
    return decoder
