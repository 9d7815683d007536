"""The objectives that a stage of a recipe can have, and what each needs to be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Contrastive(Section):
    """InfoNCE over own hard negatives and, where the source allows it, the batch (arXiv 2405.17428)."""

    kind: Literal["contrastive"] = "contrastive"
    temperature: Annotated[float, Field(gt=0)] = 0.02
    in_batch: Literal["none", "positives", "all"] = "positives"
    """Candidates from other rows: none, their positives, or their hard negatives as well."""
    gather: bool = True
    """Candidates also from the other ranks of a distributed run."""
    mask_false_negatives: bool = True
    """A document equal (by id or text) to one of the query's positives is no negative."""


class Mntp(Section):
    """Masked next token prediction: a hidden token is predicted from the state before it (LLM2Vec, 2.1)."""

    kind: Literal["mntp"] = "mntp"
    mask_token: Annotated[str, Field(min_length=1)] = "_"
    """What stands in a hidden token's place: a token of the vocabulary, or `eos`."""
    add_mask_token: bool = False
    """Add `mask_token` to the vocabulary, with the mean of all embeddings as its own."""
    probability: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a text's tokens to predict; special tokens and instructions are never among them."""
    style: Literal["bert", "all_mask"] = "bert"
    """Of the tokens to predict, 80 % are hidden, 10 % exchanged, 10 % left; or all are hidden."""
    chunk_tokens: Annotated[int, Field(ge=2)] | None = None
    """Texts are joined and cut into chunks of so many tokens; `contract.max_tokens` when absent."""

    @model_validator(mode="after")
    def _adds_a_word(self) -> Mntp:
        if self.add_mask_token and self.mask_token == "eos":
            raise ValueError("mask_token 'eos' is the EOS token, which is there: name the token to add")
        return self


class SimCSE(Section):
    """A text against itself under other dropout, the batch as negatives (arXiv 2104.08821, equation 1)."""

    kind: Literal["simcse"] = "simcse"
    temperature: Annotated[float, Field(gt=0)] = 0.05
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """In this stage only; language models come with 0, which leaves the adapter's dropout alone (LLM2Vec)."""
    gather: bool = True
    """Candidates also from the other ranks of a distributed run."""
    mask_false_negatives: bool = True
    """A text that stands twice in the batch is not its own negative."""


class MineAgain(Section):
    """Hard negatives found anew, before the stage begins, by the model as it then is (SimLM, E5)."""

    candidates: PositiveInt = 100
    """Nearest documents of a query that the rule chooses from."""
    rule: Literal["percentage", "margin", "absolute", "shifted", "top_k"] = "percentage"
    """Which of them are safely no answer (NV-Retriever, arXiv 2407.15831)."""
    value: float | None = None
    """Of the rule; the paper's best when absent."""
    sample_from: PositiveInt | None = None
    """Draw from so many best survivors; the best are taken when absent."""
    corpus: str = ""
    """A file of documents or a BEIR folder, for all sources; each source's own documents when empty."""
    memory_gb: Annotated[float, Field(ge=1)] = 4.0
    """What mining may take besides the model."""


def _kind(value: Any) -> str:
    """An objective without a kind is contrastive."""
    kind = value.get("kind", "contrastive") if isinstance(value, dict) else getattr(value, "kind", None)
    return str(kind)


Objective = Annotated[
    Annotated[Contrastive, Tag("contrastive")]
    | Annotated[Mntp, Tag("mntp")]
    | Annotated[SimCSE, Tag("simcse")],
    Discriminator(_kind),
]
