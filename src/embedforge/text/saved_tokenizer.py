"""The tokenizer of a folder that embedforge saved, by `tokenizers` alone: no transformers, no torch.

It can do what `Renderer` asks of a tokenizer. What the contract says is in the saved tokenizer.json already,
see `contract_tokenizer`, so nothing is prepared here; the contract's goldens tell whether that is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object


class SavedTokenizer:
    """Ids and character offsets of texts; the special tokens' ids.

    Raises:
        EmbedforgeError: tokenizer.json or tokenizer_config.json is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # The library raises bare Exception.
            raise EmbedforgeError(f"{file}: cannot be read, download it again ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = read_object(folder / "tokenizer_config.json")
        self.bos_token_id: Any = self._id(settings.get("bos_token"))
        self.eos_token_id: Any = self._id(settings.get("eos_token"))
        self.pad_token_id: Any = self._id(settings.get("pad_token"))

    def _id(self, token: Any) -> int | None:
        content = token.get("content") if isinstance(token, dict) else token
        return None if content is None else self._tokenizer.token_to_id(content)

    def tokenize(self, text: str, **_: Any) -> list[str]:
        """Return a text's tokens, as the vocabulary spells them."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).tokens)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """Return tokens by their ids."""
        return [self._tokenizer.id_to_token(number) for number in ids]

    def __call__(
        self, texts: list[str], *, return_offsets_mapping: bool = False, **_: Any
    ) -> dict[str, list[Any]]:
        """Return each text's `input_ids`, and `offset_mapping` if asked; no special tokens, no limit."""
        located = return_offsets_mapping
        encode = self._tokenizer.encode_batch if located else self._tokenizer.encode_batch_fast
        found = encode(texts, add_special_tokens=False)
        ids = {"input_ids": [row.ids for row in found]}
        return ids | {"offset_mapping": [row.offsets for row in found]} if located else ids
