"""The objectives that a stage of a recipe can have, what each is told, and what it has no use for."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from embedforge.recipe.base import Kinds

if TYPE_CHECKING:
    from embedforge.recipe.stage import Stage


class Objective(Kinds):
    """What a stage learns. `train.stages.work_of` knows how a kind is trained."""

    default_kind: ClassVar[str] = "contrastive"
    unit: ClassVar[Literal["queries", "texts", "chunks", "models"]] = "queries"
    """What a step is made of: queries with their documents, texts, or chunks of joined texts. A stage of
    models has no steps."""
    ignores: ClassVar[tuple[str, ...]] = ()
    """Keys of a stage that this objective has no use for: a recipe that sets one is refused."""
    trains_pooling: ClassVar[bool] = True
    """False where the decoder is trained alone, under a head of its own."""

    @property
    def learns_from(self) -> Literal["pairs", "texts", "either", "nothing"]:
        """What the sources hold: pairs of every kind, or texts alone."""
        return "pairs" if self.unit == "queries" else "texts"

    def check(self, sources: Collection[str]) -> None:
        """Raise ValueError where a setting does not fit a stage, whose sources have these names."""

    @property
    def token_limits(self) -> dict[str, int | None]:
        """Own keys that limit texts, none of which may be above the contract's `max_tokens`."""
        return {}

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Return what `show` says of a step, after "steps x 128"; `max_tokens` is the contract's."""
        return f"{self.unit}, {self.kind}"


class VectorObjective(Objective):
    """A loss of a step's vectors, which may be a term of a sum (`recipe.terms.Sum`)."""

    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """In a sum: what the loss is multiplied by."""

    def check(self, sources: Collection[str]) -> None:
        """Refuse a weight where there is nothing to weigh against."""
        if self.weight != 1:
            raise ValueError(
                f"weight ({self.weight:g}) has an effect on the terms of a sum only: leave it out"
            )


class PairObjective(VectorObjective):
    """A query and its positive against other documents: the base of Contrastive, and of losses like it.

    Subclass it, and say the loss with `train.contrastive.query_losses`.
    """

    temperature: Annotated[float, Field(ge=1e-4, le=1e4)] = 0.02
    in_batch: Literal["none", "positives", "all"] = "positives"
    """Candidates from other rows: none, their positives, or their hard negatives as well."""
    gather: bool = True
    """Candidates also from the other ranks of a distributed run."""
    mask_false_negatives: bool = True
    """A document equal (by id or text) to one of the query's positives is no negative."""

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Say which documents a query is compared with."""
        kind = "" if self.kind == self.default_kind else f" {self.kind}:"
        return f"queries,{kind} {stage.negatives} hard negatives, in-batch: {self.in_batch}"


class Contrastive(PairObjective):
    """InfoNCE over own hard negatives and, where the source allows it, the batch (arXiv 2405.17428)."""

    kind: Literal["contrastive"] = "contrastive"


class Mntp(Objective):
    """Masked next token prediction: a hidden token is predicted from the state before it (LLM2Vec, 2.1)."""

    unit = "chunks"
    ignores = ("negatives", "query_max_tokens", "document_max_tokens", "pooling_learning_rate")
    trains_pooling = False

    kind: Literal["mntp"] = "mntp"
    mask_token: Annotated[str, Field(min_length=1)] = "_"
    """What stands in a hidden token's place: a token of the vocabulary, or `eos`."""
    add_mask_token: bool = False
    """Add `mask_token` to the vocabulary, with the mean of all embeddings as its own."""
    probability: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a text's tokens to predict; special tokens and instructions are never among them."""
    style: Literal["bert", "all_mask"] = "bert"
    """Of the tokens to predict, 80 % are hidden, 10 % exchanged, 10 % left; or all are hidden."""
    chunk_tokens: Annotated[int, Field(ge=2, le=10**9)] | None = None
    """Texts are joined and cut into chunks of so many tokens; `contract.max_tokens` when absent."""

    @model_validator(mode="after")
    def _adds_a_word(self) -> Mntp:
        if self.add_mask_token and self.mask_token == "eos":
            raise ValueError("mask_token 'eos' is the EOS token, which is there: name the token to add")
        return self

    @property
    def token_limits(self) -> dict[str, int | None]:
        """The size of a chunk."""
        return {"chunk_tokens": self.chunk_tokens}

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Say how much of a chunk is hidden."""
        hidden = "all of them hidden" if self.style == "all_mask" else "80 % of them hidden"
        return (
            f"chunks of {self.chunk_tokens or max_tokens} tokens, mntp: {self.probability:.0%} to predict, "
            f"{hidden} by '{self.mask_token}'"
        )


class SimCSE(Objective):
    """A text against itself under other dropout, the batch as negatives (arXiv 2104.08821, equation 1)."""

    unit = "texts"
    ignores = ("negatives", "query_max_tokens")
    in_batch: ClassVar[Literal["positives"]] = "positives"

    kind: Literal["simcse"] = "simcse"
    temperature: Annotated[float, Field(ge=1e-4, le=1e4)] = 0.05
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """In this stage only; language models come with 0, which leaves the adapter's dropout alone (LLM2Vec)."""
    gather: bool = True
    """Candidates also from the other ranks of a distributed run."""
    mask_false_negatives: bool = True
    """A text that stands twice in the batch is not its own negative."""

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Say what makes the two views."""
        return (
            f"texts, simcse: temperature {self.temperature:g}, attention dropout {self.attention_dropout:g}"
        )


STAGE_PREFIX = "stage:"
"""Of a model of `merge` that is what an earlier stage of the recipe has left."""


class Merge(Objective):
    """No training: the mean of models, or the point between them on an arc (arXiv 2203.05482)."""

    unit = "models"
    ignores = (
        "mix",
        "steps",
        "earlier_adapter",
        "batch_queries",
        "negatives",
        "mine_again",
        "query_max_tokens",
        "document_max_tokens",
        "learning_rate",
        "pooling_learning_rate",
        "schedule",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "tokens_per_micro_batch",
        "tokens_held",
    )

    kind: Literal["merge"] = "merge"
    models: Annotated[tuple[str, ...], Field(min_length=2)]
    """`stage:NAME`, what an earlier stage has left, or a finished model, from where sources start."""
    how: Literal["mean", "slerp"] = "mean"
    """The mean of the weights, or spherical interpolation, tensor by tensor."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """One for each of `models`; all alike when empty."""
    dev: tuple[str, ...] = ()
    """Files of Examples: only models that do not lower MRR@10 on them are merged, from the best on."""

    @model_validator(mode="after")
    def _fits(self) -> Merge:
        if len(set(self.models)) < len(self.models):
            raise ValueError("models: one stands twice")
        if self.weights and self.dev:
            raise ValueError("weights are for all models, and dev chooses among them: leave one out")
        if self.weights and len(self.weights) != len(self.models):
            raise ValueError(f"{len(self.weights)} weights for {len(self.models)} models: give one for each")
        return self

    @property
    def learns_from(self) -> Literal["nothing"]:
        """Merging has no data."""
        return "nothing"

    @property
    def stages(self) -> list[str]:
        """Names of the stages whose results are merged."""
        return [one.removeprefix(STAGE_PREFIX) for one in self.models if one.startswith(STAGE_PREFIX)]

    @property
    def finished(self) -> list[str]:
        """Folders or hub ids of the finished models among them."""
        return [one for one in self.models if not one.startswith(STAGE_PREFIX)]

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Say what is merged, and how that is chosen."""
        chosen = f", chosen greedily on {', '.join(self.dev)}" if self.dev else ""
        return f"{self.how} of {', '.join(self.models)}{chosen}"
