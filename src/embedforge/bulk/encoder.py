"""The model of an encode run: rows to vectors, by the one path of `embedforge.encode`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sentence_transformers import SentenceTransformer

from embedforge.bulk.rows import Row
from embedforge.bulk.settings import EncodeSettings
from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.model.encoder import EmbeddingModel, embedding_model, load
from embedforge.model.identity import identity_of
from embedforge.quantize import cut_dimensions
from embedforge.ranking import Floats
from embedforge.runtime import fast_bfloat16, pick_device, require_finite


class Encoder:
    """A model that is loaded, and what it does with a text.

    Args:
        model: a folder or a hub id.
        settings: of the run.
        device: cpu, cuda, ...

    Raises:
        EmbedforgeError: see `load`; an instruction for a model that has no contract, so no place for it.
    """

    def __init__(self, model: str, settings: EncodeSettings, device: str | None = None) -> None:
        self._settings = settings
        self._st = load(model, device=str(pick_device(device)), dtype=settings.dtype)
        self.fingerprint = identity_of(self._st)
        self._model = _own_model(self._st.eval())
        self._bfloat16 = settings.dtype in (None, "bfloat16") and fast_bfloat16(self._st.device)
        if self._model is None:
            if settings.instruction is not None or settings.instruction_column is not None:
                raise EmbedforgeError(
                    f"{model}: has no embedding contract, so no template to put an instruction into; leave "
                    "--instruction out: its own prompts are used, that of queries with --query"
                )
            if settings.max_tokens is not None:
                own = self._st.max_seq_length or settings.max_tokens
                self._st.max_seq_length = min(settings.max_tokens, own)

    def __call__(self, rows: Sequence[Row]) -> Floats:
        """Embed the rows' texts: float32 [rows, dim], in their order.

        Raises:
            EmbedforgeError: see `encode`; a vector that is not finite.
        """
        texts = [row.text for row in rows]
        vectors = self._plain(texts) if self._model is None else self._by_contract(self._model, rows)
        require_finite(vectors, texts)
        return vectors if self._settings.dim is None else cut_dimensions(vectors, self._settings.dim)

    def _by_contract(self, model: EmbeddingModel, rows: Sequence[Row]) -> Floats:
        """Those of one instruction together."""
        settings, contract = self._settings, model.contract
        vectors = np.empty((len(rows), model.dim), dtype=np.float32)
        for instruction in dict.fromkeys(row.instruction for row in rows):
            places = [place for place, row in enumerate(rows) if row.instruction == instruction]
            wanted = settings.instruction if settings.instruction_column is None else instruction
            if settings.query:
                prefix, suffix = contract.query_prefix(wanted), contract.query_suffix(wanted)
            else:
                prefix, suffix = (
                    contract.document_prefix(wanted or ""),
                    contract.document_suffix(wanted or ""),
                )
            vectors[places] = encode(
                model,
                [rows[place].text for place in places],
                prefix,
                suffix=suffix,
                max_tokens=settings.max_tokens,
                bfloat16=self._bfloat16,
            )
        return vectors

    def _plain(self, texts: list[str]) -> Floats:
        embed = self._st.encode_query if self._settings.query else self._st.encode_document
        return np.asarray(embed(texts, show_progress_bar=False, convert_to_numpy=True), dtype=np.float32)


def _own_model(st: SentenceTransformer) -> EmbeddingModel | None:
    try:
        return embedding_model(st)
    except EmbedforgeError:
        return None
