"""A loaded model as mteb sees it: the instruction of the task on the right texts, batches by tokens.

Needs mteb.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from mteb.models.model_meta import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.instructions import instruction_of, instructs_documents
from embedforge.evaluate.untrained import load_untrained, split_name
from embedforge.model.encoder import EmbeddingModel, embedding_model, load
from embedforge.runtime import fast_bfloat16, pick_device

SEARCH_TYPES = frozenset({"Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"})
"""Types with queries and documents; in all others every text is of one kind and gets the instruction."""


class Encoder:
    """mteb's encoder protocol over a model that `embedforge.load` reads.

    A model with a contract gets the instruction of the task, through its own template, on queries and on
    every text of symmetric tasks, never on documents. A plain sentence-transformers model keeps its own
    query and document prompts.
    """

    def __init__(
        self,
        name: str,
        *,
        instructions: Mapping[str, str] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        tokens_per_batch: int = 16_384,
        max_tokens: int | None = None,
    ) -> None:
        self.name = name
        self.progress: Callable[[int], None] = lambda _: None
        opener = load_untrained if split_name(name) else load
        self._st = opener(name, device=str(pick_device(device)), dtype=dtype)
        self._model = _own_model(self._st)
        self._instructions = dict(instructions or {})
        self._tokens_per_batch = tokens_per_batch
        self._bfloat16 = dtype in (None, "bfloat16") and fast_bfloat16(self._st.device)
        own_limit = self._st.max_seq_length if self._model is None else self._model.contract.max_tokens
        self._max_tokens = min(own_limit or 512, max_tokens or own_limit or 512)
        if self._model is None:
            self._st.max_seq_length = self._max_tokens
            if self._instructions:
                raise EmbedforgeError(
                    f"{name}: has no embedding contract, so no template to put an instruction into; "
                    "leave --instruction out to use the model's own prompts"
                )

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The name under which mteb files the results."""
        label = self.name.strip("/").rsplit("/", 1)[-1] or "model"
        return ModelMeta.create_empty({"name": f"embedforge/{label}", "revision": "local"})

    def settings(self) -> dict[str, Any]:
        """Return what decides about the vectors, besides the weights; it goes into the results."""
        has_contract = self._model is not None
        return {
            "dtype": str(next(self._st.parameters()).dtype).removeprefix("torch."),
            "autocast": "bfloat16" if has_contract and self._bfloat16 else "off",
            "device": self._st.device.type,
            "max_tokens": self._max_tokens,
            "batches": f"at most {self._tokens_per_batch} tokens, sorted by length",
            "prompts": "contract" if has_contract else "the model's own",
        }

    def instruction(self, task_metadata: Any) -> str | None:
        """Return the instruction that the texts of a task get; "" for none, None for models without one."""
        if self._model is None:
            return None
        published = task_metadata.prompt
        if isinstance(published, dict):
            published = published.get("query")
        instruction = instruction_of(task_metadata.name, task_metadata.type, self._instructions, published)
        return self._model.contract.default_instruction if instruction is None else instruction

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> NDArray[np.float32]:
        """Embed the texts of a data loader: [texts, dim] float32."""
        texts = [text for batch in inputs for text in batch["text"]]
        is_document = prompt_type == PromptType.document
        if self._model is None:
            return self._encode_plain(texts, task_metadata.type, is_document)
        contract = self._model.contract
        if is_document and not instructs_documents(task_metadata.name):
            prefix, suffix = contract.document_prefix(), contract.document_suffix()
        else:
            instruction = self.instruction(task_metadata)
            prefix, suffix = contract.query_prefix(instruction), contract.query_suffix(instruction)
        return encode(
            self._model,
            texts,
            prefix,
            suffix=suffix,
            max_tokens=self._max_tokens,
            tokens_per_batch=self._tokens_per_batch,
            bfloat16=self._bfloat16,
            progress=self.progress,
        )

    def similarity(self, a: Any, b: Any) -> Any:
        """Cosine of every pair: [n, dim] and [m, dim] to [n, m]."""
        return cos_sim(a, b)

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        """Cosine of row i with row i: [n, dim] twice to [n]."""
        return pairwise_cos_sim(a, b)

    def _encode_plain(self, texts: list[str], task_type: str, is_document: bool) -> NDArray[np.float32]:
        embed = self._st.encode
        if task_type in SEARCH_TYPES:
            embed = self._st.encode_document if is_document else self._st.encode_query
        batch_size = max(1, self._tokens_per_batch // self._max_tokens)
        vectors = embed(texts, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
        self.progress(len(texts))
        return np.asarray(vectors, dtype=np.float32)


def _own_model(st: SentenceTransformer) -> EmbeddingModel | None:
    try:
        return embedding_model(st)
    except EmbedforgeError:
        return None
