"""Models that judge by vectors: what embedforge or sentence-transformers loads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from embedforge.encode import encode
from embedforge.endpoint import is_address
from embedforge.errors import EmbedforgeError
from embedforge.files import hash_of
from embedforge.mine.embedder import Embedder, Prompts
from embedforge.mine.endpoint import EndpointTeacher
from embedforge.model.encoder import EmbeddingModel, embedding_model, load
from embedforge.model.identity import weights_hash
from embedforge.ranking import Floats
from embedforge.recipe import Teacher
from embedforge.runtime import bfloat16_autocast, fast_bfloat16, pick_device

logger = logging.getLogger(__name__)


def open_model(
    name: str,
    *,
    prompts: Prompts,
    document_instruction: str = "",
    device: str | None = None,
    dtype: str | None = None,
    max_tokens: int | None = None,
) -> Embedder:
    """Load a model as a teacher.

    Args:
        name: a folder or a hub id.
        prompts: for a model without a contract.
        document_instruction: the instruction that documents carry (symmetric sources); "" for none.
        device: as for `load`.
        dtype: of the weights; as saved when None.
        max_tokens: cut texts shorter than the model does.

    Raises:
        EmbedforgeError: the model cannot be loaded, or prompts for one that has a contract.
    """
    st = load(name, device=str(pick_device(device)), dtype=dtype)
    fast = fast_bfloat16(st.device)
    if not _is_ours(st):
        return PlainTeacher(name, st, prompts, max_tokens, bfloat16=fast and dtype is None)
    if prompts != Prompts():
        raise EmbedforgeError(
            f"{name}: has a contract, whose templates say what stands before a text; "
            "leave out --query-prompt and --document-prompt"
        )
    return ContractTeacher(
        name,
        embedding_model(st),
        document_instruction=document_instruction,
        bfloat16=fast and dtype in (None, "bfloat16"),
        max_tokens=max_tokens,
    )


def open_teacher(settings: Teacher, device: str | None = None) -> Embedder:
    """Open a teacher of distillation: what `train` is given as `teachers`.

    Raises:
        EmbedforgeError: see `open_model` and `EndpointTeacher`.
    """
    prompts = Prompts(settings.query_prompt, settings.document_prompt)
    if is_address(settings.model):
        return EndpointTeacher(settings.model, prompts)
    return open_model(
        settings.model, prompts=prompts, device=device, dtype=settings.dtype, max_tokens=settings.max_tokens
    )


class ContractTeacher:
    """A model with a contract, which says where a query's instruction goes.

    Args:
        name: for messages.
        model: on its device.
        document_instruction: what the documents of a symmetric source carry.
        bfloat16: autocast, see `encode`.
        max_tokens: shorter than the contract's limit.
    """

    def __init__(
        self,
        name: str,
        model: EmbeddingModel,
        *,
        document_instruction: str = "",
        bfloat16: bool | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.name = name
        self._model = model
        self._document_instruction = document_instruction
        self._options: dict[str, Any] = {"bfloat16": bfloat16, "max_tokens": max_tokens}
        self.identity = {
            "teacher": name,
            "contract": hash_of(model.contract.model_dump(mode="json")),
            "dtype": str(model.decoder.dtype),
            "document instruction": document_instruction,
            **self._options,
            "weights": "" if model.contract.knows_weights else weights_hash(model),
        }

    def queries(self, texts: Sequence[str], instructions: Sequence[str]) -> Floats:
        """Embed queries through the contract's template, those of one instruction together."""
        vectors = np.empty((len(texts), self._model.dim), dtype=np.float32)
        contract = self._model.contract
        for instruction in dict.fromkeys(instructions):
            rows = [row for row, own in enumerate(instructions) if own == instruction]
            prefix, suffix = contract.query_prefix(instruction), contract.query_suffix(instruction)
            vectors[rows] = encode(
                self._model, [texts[row] for row in rows], prefix, suffix=suffix, **self._options
            )
        return _unit(vectors)

    def documents(self, texts: Sequence[str]) -> Floats:
        """Embed documents through the contract's template."""
        contract, instruction = self._model.contract, self._document_instruction
        prefix, suffix = contract.document_prefix(instruction), contract.document_suffix(instruction)
        return _unit(encode(self._model, texts, prefix, suffix=suffix, **self._options))


class PlainTeacher:
    """A sentence-transformers model, with its own prompts or those given.

    Args:
        name: for messages.
        model: on its device.
        prompts: instead of the model's own.
        max_tokens: shorter than the model's limit.
        bfloat16: autocast, as our own models are encoded where that is fast.
    """

    def __init__(
        self,
        name: str,
        model: SentenceTransformer,
        prompts: Prompts,
        max_tokens: int | None = None,
        *,
        bfloat16: bool = False,
    ) -> None:
        prompts.check()
        self.name = name
        self._model = model
        self._prompts = prompts
        self._bfloat16 = bfloat16
        if max_tokens is not None:
            model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
        self.identity = {
            "teacher": name,
            "dtype": str(next(model.parameters()).dtype),
            "max_tokens": model.max_seq_length,
            "query prompt": prompts.query,
            "document prompt": prompts.document,
            "model's own prompts": {key: value for key, value in model.prompts.items() if value},
            "weights": weights_hash(model),
        } | ({"bfloat16": True} if bfloat16 else {})

    def queries(self, texts: Sequence[str], instructions: Sequence[str]) -> Floats:
        """Embed queries; the model's own query prompt has no place for an instruction."""
        if self._prompts.query is None:
            if any(instructions):
                _warn_unused_instruction(self.name)
            return self._encoded(self._model.encode_query, texts)
        return self._encoded(self._model.encode, self._prompts.query_texts(texts, instructions), prompt="")

    def documents(self, texts: Sequence[str]) -> Floats:
        """Embed documents."""
        if self._prompts.document is None:
            return self._encoded(self._model.encode_document, texts)
        return self._encoded(self._model.encode, self._prompts.document_texts(texts), prompt="")

    def _encoded(self, embed: Callable[..., Any], texts: Sequence[str], **options: Any) -> Floats:
        with bfloat16_autocast(self._model.device, self._bfloat16):
            vectors = embed(list(texts), show_progress_bar=False, convert_to_numpy=True, **options)
        return _unit(np.asarray(vectors, dtype=np.float32))


def _warn_unused_instruction(name: str) -> None:
    logger.warning(
        "%s has no contract: its queries get its own prompt, and the source's instruction is not used. "
        "To put it before them: --query-prompt 'Instruct: {instruction}\\nQuery: '",
        name,
    )


def _is_ours(st: SentenceTransformer) -> bool:
    try:
        embedding_model(st)
    except EmbedforgeError:
        return False
    return True


def _unit(vectors: Floats) -> Floats:
    """Scale to unit length, so that inner products are cosines."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
