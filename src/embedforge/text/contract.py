"""The embedding contract: everything that decides how a text becomes a vector, in one file.

Saved as `contract.json` with the model, and checked by its goldens whenever the model is loaded,
merged, exported or served. Training, evaluation and serving read the same contract.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from embedforge.errors import EmbedforgeError
from embedforge.files import read_json, write_json
from embedforge.validation import explain, refuse_switch

FILE_NAME = "contract.json"


class Golden(BaseModel):
    """What one text must become: its token ids, its pooling mask and the first numbers of its vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    prefix: str
    """The rendered instruction before the text ("" for a document)."""
    suffix: str = ""
    """What the template has after the text; mostly ""."""
    input_ids: tuple[int, ...]
    pooling_mask: tuple[int, ...]
    vector: tuple[float, ...] = ()
    """The first 16 numbers of the unit-length embedding, computed in float32 on the saved weights."""


class Contract(BaseModel):
    """How text becomes a vector. Every field is honoured by training, evaluation and serving alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    query_template: str = "Instruct: {instruction}\nQuery: {text}"
    """Applied to a query that has an instruction; without one the bare text is used (arXiv 2405.17428)."""
    document_template: str = "{text}"
    chat_template: str = "{text}"
    """Put round what the other templates give, with and without an instruction: "[INST] {text} [/INST]"."""
    default_instruction: str = "Given a query, retrieve passages that answer the query"
    """The instruction of `encode_query` when the caller gives none; "" for none."""
    max_tokens: Annotated[int, Field(ge=4, le=10**7)] = 512
    """Tokens of a rendered text, template, BOS and EOS included."""
    text_max_tokens: Annotated[int, Field(ge=1, le=10**7)] | None = None
    """Words are taken from the end of a text until it has at most so many tokens by itself (LLM2Vec)."""
    strip_text_end: bool = False
    """White space at a text's end is dropped, as LLM2Vec does where a chat template goes on."""
    add_bos: bool = True
    add_eos: bool = True
    eos_survives_truncation: bool = True
    """False cuts what follows the text too, EOS first: official NV-Embed and LLM2Vec add it as text."""
    pool_instruction: bool = False
    """True lets the tokens of the template and the instruction into the pool."""
    pool_bos: Literal["always", "never", "without_instruction"] = "without_instruction"
    """NV-Embed and sentence-transformers pool BOS only where no instruction stands before the text."""
    pool_eos: bool = True
    isolate_prefix: bool = True
    """A token never spans the end of the instruction, so the text's tokens do not depend on it.

    False for official checkpoints, where "Query: judo" has the token "▁judo" across the boundary.
    """
    prefix_tokens: Literal["by_position", "counted"] = "by_position"
    """Which tokens are the prefix's: those that end in it, or, from the first token on and BOS included, as
    many as it has by itself without BOS.

    The latter is official NV-Embed's rule: with "Query:" in place of "Query: " it pools the colon.
    """
    padding_side: Literal["right", "left"] = "right"
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    pooling: str = "mean"
    normalize: bool = True
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """The dtype of the saved weights; the base's, where a recipe does not set it.

    int8 is what `embedforge compress weights --int8` makes; CPUs may multiply them as bytes.
    """
    goldens: tuple[Golden, ...] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        return refuse_switch(cls, value, info.field_name or "")

    @field_validator("query_template", "document_template", "chat_template")
    @classmethod
    def _has_text(cls, template: str) -> str:
        if template.count("{text}") != 1:
            raise ValueError(f"a template holds '{{text}}' exactly once, this one does not: {template!r}")
        if "{instruction}" in template.split("{text}")[1]:
            raise ValueError(f"'{{instruction}}' stands before '{{text}}' in a template, not in {template!r}")
        return template

    @field_validator("document_template")
    @classmethod
    def _has_no_instruction(cls, template: str) -> str:
        if "{instruction}" in template:
            raise ValueError(
                "documents of symmetric data get their instruction through query_template; "
                f"leave '{{instruction}}' out of document_template: {template!r}"
            )
        return template

    @field_validator("chat_template")
    @classmethod
    def _knows_no_instruction(cls, template: str) -> str:
        if "{instruction}" in template:
            raise ValueError(
                "chat_template goes round the query and document templates, and query_template holds the "
                f"instruction; leave '{{instruction}}' out of it: {template!r}"
            )
        return template

    @model_validator(mode="after")
    def _counts_from_the_first_token(self) -> Contract:
        if self.prefix_tokens == "counted" and self.isolate_prefix:
            raise ValueError(
                "prefix_tokens 'counted' is for official NV-Embed checkpoints, where a token may span the "
                "instruction's end: set isolate_prefix to false, or leave prefix_tokens out"
            )
        return self

    @model_validator(mode="after")
    def _text_limit_has_an_effect(self) -> Contract:
        if self.text_max_tokens is not None and self.text_max_tokens >= self.max_tokens:
            raise ValueError(
                f"text_max_tokens ({self.text_max_tokens}) has no effect, since max_tokens "
                f"({self.max_tokens}) limits text and templates together: lower it, or leave it out"
            )
        return self

    def query_prefix(self, instruction: str | None = None) -> str:
        r"""Return what stands before a query's text; None asks for the default instruction.

        White space around an instruction is dropped: it never means anything.

        >>> Contract().query_prefix("Find the answer")
        'Instruct: Find the answer\nQuery: '
        >>> Contract(chat_template="[INST] {text} [/INST]").query_prefix("")
        '[INST] '
        """
        return self._query_frame(instruction)[0]

    def document_prefix(self, instruction: str = "") -> str:
        """Return what stands before a document's text; documents of symmetric data carry the instruction."""
        return self._document_frame(instruction)[0]

    def query_suffix(self, instruction: str | None = None) -> str:
        """Return what stands after a query's text (a chat template's end, say); mostly "".

        >>> Contract(query_template="<q>{instruction}: {text}</q>").query_suffix("Find the answer")
        '</q>'
        """
        return self._query_frame(instruction)[1]

    def document_suffix(self, instruction: str = "") -> str:
        """Return what stands after a document's text; mostly ""."""
        return self._document_frame(instruction)[1]

    def chat_frame(self) -> tuple[str, str]:
        """Return what the chat template has before and after everything else; mostly two empty strings."""
        return _halves(self.chat_template)

    def _query_frame(self, instruction: str | None) -> tuple[str, str]:
        return self._frame(
            self.query_template, self.default_instruction if instruction is None else instruction
        )

    def _document_frame(self, instruction: str) -> tuple[str, str]:
        return self._frame(
            self.query_template if instruction.strip() else self.document_template, instruction
        )

    def _frame(self, template: str, instruction: str) -> tuple[str, str]:
        """Return what stands before and after a text; without an instruction only the chat template does."""
        instruction = instruction.strip()
        start, end = self.chat_frame()
        if not instruction and "{instruction}" in template:
            return start, end
        before, after = _halves(template)
        return start + before.replace("{instruction}", instruction), after + end

    @property
    def fingerprint(self) -> str:
        """A hash of how the model turns text into vectors: 64 hexadecimal digits.

        The goldens hold numbers of its vectors, so models that differ in their weights differ here as well;
        without such goldens (`knows_weights`) only the settings are told apart.
        """
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def knows_weights(self) -> bool:
        """Whether the fingerprint tells the weights: goldens with vectors, checked when the model is loaded.

        Those of a model that sentence-transformers saved, or that was converted, hold token ids alone.
        """
        return bool(self.goldens) and all(golden.vector for golden in self.goldens)

    def save(self, folder: Path) -> None:
        """Write `contract.json` into `folder`."""
        write_json(folder / FILE_NAME, self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Contract:
        """Read `contract.json` of a model folder."""
        try:
            return cls.model_validate(read_json(folder / FILE_NAME))
        except ValidationError as error:
            raise EmbedforgeError(f"{folder / FILE_NAME}:\n{explain(error, cls)}") from None


def _halves(template: str) -> tuple[str, str]:
    before, after = template.split("{text}")
    return before, after
