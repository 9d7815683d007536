"""The embedding contract: everything that decides how a text becomes a vector, in one file.

Saved as `contract.json` with the model, and checked by its goldens whenever the model is loaded,
merged, exported or served. Training, evaluation and serving read the same contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from embedforge.errors import EmbedforgeError
from embedforge.files import read_json, write_json
from embedforge.validation import explain

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
    default_instruction: str = "Given a query, retrieve passages that answer the query"
    """The instruction of `encode_query` when the caller gives none; "" for none."""
    max_tokens: Annotated[int, Field(ge=4)] = 512
    """Tokens of a rendered text, template, BOS and EOS included."""
    add_bos: bool = True
    add_eos: bool = True
    eos_survives_truncation: bool = True
    """False only for official NV-Embed checkpoints, whose code appends EOS as text and then cuts it."""
    pool_instruction: bool = False
    """True lets the tokens of the template and the instruction into the pool."""
    pool_bos: Literal["always", "never", "without_instruction"] = "without_instruction"
    """NV-Embed and sentence-transformers pool BOS only where no instruction stands before the text."""
    pool_eos: bool = True
    isolate_prefix: bool = True
    """A token never spans the end of the instruction, so the text's tokens do not depend on it.

    False for official checkpoints, where "Query: judo" has the token "▁judo" across the boundary.
    """
    padding_side: Literal["right", "left"] = "right"
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    pooling: str = "mean"
    normalize: bool = True
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype of the saved weights."""
    goldens: tuple[Golden, ...] = ()

    @field_validator("query_template", "document_template")
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

    def query_prefix(self, instruction: str | None = None) -> str:
        r"""Return what stands before a query's text; None asks for the default instruction.

        >>> Contract().query_prefix("Find the answer")
        'Instruct: Find the answer\nQuery: '
        """
        return _prefix(self.query_template, self.default_instruction if instruction is None else instruction)

    def document_prefix(self, instruction: str = "") -> str:
        """Return what stands before a document's text; documents of symmetric data carry the instruction."""
        if instruction:
            return _prefix(self.query_template, instruction)
        return self.document_template.split("{text}")[0]

    def query_suffix(self, instruction: str | None = None) -> str:
        """Return what stands after a query's text (a chat template's end, say); mostly "".

        >>> Contract(query_template="<q>{instruction}: {text}</q>").query_suffix("Find the answer")
        '</q>'
        """
        return _suffix(self.query_template, self.default_instruction if instruction is None else instruction)

    def document_suffix(self, instruction: str = "") -> str:
        """Return what stands after a document's text; mostly ""."""
        return _suffix(self.query_template if instruction else self.document_template, instruction)

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


def _prefix(template: str, instruction: str) -> str:
    if not instruction and "{instruction}" in template:
        return ""
    return template.split("{text}")[0].replace("{instruction}", instruction)


def _suffix(template: str, instruction: str) -> str:
    if not instruction and "{instruction}" in template:
        return ""
    return template.split("{text}")[1]
