"""The model of an index: how long a passage may be, what becomes of it, and whether its words are known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedforge.documents.chunks import chunk_characters
from embedforge.errors import EmbedforgeError
from embedforge.lexical import words
from embedforge.model.folder import find_folder, require_model
from embedforge.ranking import Floats
from embedforge.static import StaticEmbedder, open_static
from embedforge.text.contract import FILE_NAME, Contract
from embedforge.text.render import Renderer
from embedforge.text.saved_tokenizer import SavedTokenizer

if TYPE_CHECKING:
    from embedforge.model.embedding_model import EmbeddingModel

ROOM = 0.8
"""Passages are up to 1.25 times as long as they are meant to be."""
FEWEST_CHARACTERS = 200
_SAMPLE = 10_000
"""Characters of a file by which its tokens are counted."""
_WINDOW = 4096
"""Texts that are tokens at the same time."""
_WORDS = 2000
_LETTERS = 4
"""Shorter words are tokens in many languages."""
STRANGE = 1.75
"""Tokens a word from which a vocabulary is not of a text's language; see docs/search.md."""


class Embedder:
    """A model, loaded when the first text is to be embedded; its contract is read before, where it can be.

    Args:
        name: a model folder or hub id.
        device: as for `load`.
    """

    def __init__(self, name: str, device: str | None) -> None:
        require_model(name)
        self.name = str(Path(name).resolve()) if Path(name).is_dir() else name
        self._device = device
        self.cut = 0
        """Texts whose ends were cut, so far."""

    @property
    def contract(self) -> Contract:
        """The model's; without torch for a folder that embedforge saved."""
        folder = find_folder(self.name)
        return Contract.load(folder) if (folder / FILE_NAME).exists() else self._model.contract

    def characters(self, text: str) -> int:
        """Return how long the passages of a text should be, so that the model reads them to their end.

        A token is worth four characters of English, three of code, one of Chinese; so it is counted.
        """
        sample = text[:_SAMPLE]
        (rendered,) = self._renderer.render([sample], self.contract.document_prefix())
        most = self.contract.max_tokens
        fitting = int(ROOM * most * len(sample) / max(1, len(rendered.input_ids) + rendered.cut))
        return max(FEWEST_CHARACTERS, min(chunk_characters(most), fitting))

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Embed documents, [texts, dimensions]."""
        parts = [self._embedded(texts[start : start + _WINDOW]) for start in range(0, len(texts), _WINDOW)]
        return np.concatenate(parts)

    def tokens_a_word(self, texts: Sequence[str]) -> float | None:
        """Return how many tokens of a static embedder a word has, 0 without a word; None of other models.

        A static embedder knows a word by its own token. One that falls into pieces, as those of another
        language do, means little to it.
        """
        if not isinstance(self._model, StaticEmbedder):
            return None
        found = [
            word
            for text in texts[:: max(1, len(texts) // _WORDS)]
            for word in words(text)
            if word.isalpha() and (len(word) >= _LETTERS or not word.isascii())
        ]
        drawn = found[:: max(1, len(found) // _WORDS)]
        tokenizer = self._renderer.tokenizer
        return sum(len(tokenizer.tokenize(f" {word}")) for word in drawn) / max(1, len(drawn))

    @cached_property
    def _model(self) -> EmbeddingModel | StaticEmbedder:
        return open_model(self.name, self._device)

    @cached_property
    def _renderer(self) -> Renderer:
        """The model's; without torch for a folder that embedforge saved."""
        folder = find_folder(self.name)
        if (folder / FILE_NAME).exists():
            try:
                return Renderer(SavedTokenizer(folder), self.contract)
            except EmbedforgeError:
                pass  # a tokenizer of another form; what is wrong with it is for `load` to say
        return self._model.renderer

    def _embedded(self, texts: Sequence[str]) -> Floats:
        prefix, suffix = self.contract.document_prefix(), self.contract.document_suffix()
        rendered = self._renderer.render(texts, prefix, suffix=suffix)
        self.cut += sum(text.cut > 0 for text in rendered)
        model = self._model
        if isinstance(model, StaticEmbedder):
            return model.embed(rendered)
        from embedforge.encode import encode

        return encode(model, texts, prefix, suffix=suffix)


def open_model(name: str, device: str | None) -> EmbeddingModel | StaticEmbedder:
    """Open the model of an index: a static one without torch, where nobody asks for a device."""
    if device in (None, "cpu") and (static := open_static(find_folder(name))) is not None:
        return static
    from embedforge.model.encoder import embedding_model, load
    from embedforge.runtime import pick_device

    return embedding_model(load(name, device=str(pick_device(device))))
