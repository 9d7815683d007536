"""Losses of a step's vectors beside the contrastive one: distillation, regularisers, and their sums."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from embedforge.endpoint import is_address, require_address, split_address
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.recipe.base import PositiveInt, Section
from embedforge.recipe.objectives import Objective, VectorObjective

if TYPE_CHECKING:
    from embedforge.recipe.stage import Stage

FILE_PREFIX = "file:"
"""Of a teacher whose vectors are in a file."""
Term = Annotated[Objective, WithJsonSchema({"type": "object", "description": "An objective on vectors."})]
"""Its own JSON schema would hold itself without end; `recipe.schema` puts the kinds in its place."""
Share = Annotated[float, Field(ge=0, le=1e6)]


class Teacher(Section):
    """A model whose vectors are the targets of distillation."""

    model: str
    """A folder, a hub id, an endpoint `http://HOST/v1#MODEL`, or `file:PATH` with vectors of texts."""
    query_prompt: str | None = None
    """Put before queries where the model has no contract; may hold `{instruction}`."""
    document_prompt: str | None = None
    max_tokens: PositiveInt | None = None
    """Shorter than the model's own limit."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of its weights; as saved when absent."""

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Teacher:
        theirs: tuple[str, ...] = ()
        if self.model.startswith(FILE_PREFIX):
            theirs = ("query_prompt", "document_prompt", "max_tokens", "dtype")
        elif is_address(self.model):
            theirs = ("max_tokens", "dtype")
            _check_address(self.model)
        for key in theirs:
            if getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect on teacher '{self.model}': leave it out")
        return self


def _check_address(model: str) -> None:
    """Refuse an address with a password: a recipe is saved with its model."""
    try:
        require_address(split_address(model)[0], "model", "http://localhost:8000/v1#MODEL")
    except EmbedforgeError as error:
        raise ValueError(str(error)) from None


class Distill(VectorObjective):
    """The student's vectors become those of a teacher (LEAF, arXiv 2509.12539; jina-v5, arXiv 2602.15547)."""

    kind: Literal["distill"] = "distill"
    teacher: Annotated[tuple[Teacher, ...], Field(min_length=1)]
    """Whose vectors; of several they are put side by side, with equal weight."""
    loss: Literal["cosine", "mse", "none"] = "cosine"
    """Between a text's vector and the teacher's: 1 - cosine, squared distance of unit vectors, or none."""
    relational: Share = 0.0
    """Weight of the relational loss: the batch's similarities against the teacher's; needs no map."""
    relational_loss: Literal["mse", "kl"] = "mse"
    """Squared difference of cosines, or KL divergence of the softmax over the other texts of the step."""
    relational_temperature: Annotated[float, Field(ge=1e-4, le=1e4)] = 0.05
    """Of that softmax, for both."""
    texts: Annotated[tuple[Literal["queries", "positives", "negatives"], ...], Field(min_length=1)] = (
        "queries",
        "positives",
        "negatives",
    )
    """Which texts of a step have targets."""
    projection: Literal["keep", "drop", "none"] = "keep"
    """The linear map from the student to the teacher: saved with the model, of this stage only, or none."""
    ridge_texts: Annotated[int, Field(ge=0, le=10**9)] = 4096
    """The map's first weights are the ridge regression on so many texts of the stage; random when 0."""
    ridge_lambda: Annotated[float, Field(gt=0, le=1e6)] = 0.03
    """Of that regression, as a share of the mean variance of the student's numbers."""
    instructions: Mapping[str, str] = {}
    """By source: the instruction that the teacher gets, in place of the text's own."""
    cache: str = ""
    """A folder of teacher vectors that runs share, from where sources start; the run's own when empty."""

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        """Take a name, a section, or a list of either."""
        several = given if isinstance(given, list | tuple) else [given]
        return [{"model": one} if isinstance(one, str) else one for one in several]

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Distill:
        if self.loss == "none" and not self.relational:
            raise ValueError("loss is none and relational 0, so nothing is learned: set one of them")
        if self.loss == "none" and self.projection == "drop":
            raise ValueError(
                "projection 'drop' has no effect with loss none, for the relational loss compares the "
                "student's own vectors: set projection to none"
            )
        alone = type(self).model_fields
        useless = [] if self.relational else ["relational_loss"]
        if not self.relational or self.relational_loss != "kl":
            useless.append("relational_temperature")
        if self.projection == "none":
            useless += ["ridge_texts", "ridge_lambda"]
        for key in useless:
            if getattr(self, key) != alone[key].default:
                raise ValueError(f"{key} ({getattr(self, key)}) has no effect here: leave it out")
        if len({teacher.model_dump_json() for teacher in self.teacher}) < len(self.teacher):
            raise ValueError("a teacher is named twice")
        return self

    @property
    def learns_from(self) -> Literal["either"]:
        """A teacher's vector is all that a text needs."""
        return "either"

    def check(self, sources: Collection[str]) -> None:
        """Refuse instructions for sources that the stage does not have."""
        super().check(sources)
        for name in self.instructions:
            if name not in sources:
                raise ValueError(
                    f"instructions: the stage has no source '{name}', only {', '.join(sources)}."
                    f"{did_you_mean(name, sources)}"
                )

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Say whose vectors are learned, by what, and where the map goes."""
        return f"texts and pairs, {self.label}"

    @property
    def label(self) -> str:
        """What `show` says of it."""
        losses: list[str] = [] if self.loss == "none" else [self.loss]
        if self.relational:
            losses.append(f"{self.relational:g} relational {self.relational_loss}")
        kept = {"keep": "map kept", "drop": "map dropped", "none": "no map"}[self.projection]
        names = " and ".join(teacher.model for teacher in self.teacher)
        return f"distill from {names}: {' + '.join(losses)}, {kept}"


class SpreadOut(VectorObjective):
    """The global orthogonal regulariser: vectors of different texts are as far apart as on a whole sphere.

    The squared mean of the cosines of non-matching pairs, and how far the mean of their squares is above
    1 / dimensions (arXiv 1708.06320; EmbeddingGemma, arXiv 2509.20354). A term of a sum.
    """

    kind: Literal["spread_out"] = "spread_out"

    @property
    def learns_from(self) -> Literal["either"]:
        """Any texts will do."""
        return "either"

    def check(self, sources: Collection[str]) -> None:
        """Refuse to stand alone: far apart is nothing to learn by itself."""
        raise ValueError("spread_out teaches nothing by itself: make it a term of kind: sum")


class Cosent(VectorObjective):
    """Of two scored pairs, the one with the higher score is to have the higher cosine (CoSENT; STS data)."""

    kind: Literal["cosent"] = "cosent"
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Differences of cosines are divided by it; 1 / 20 in sentence-transformers."""

    @property
    def learns_from(self) -> Literal["pairs"]:
        """Pairs with a score, that is."""
        return "pairs"

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Say what is ordered."""
        return "scored pairs, cosent: cosines in the order of the scores"


class Matryoshka(VectorObjective):
    """A loss on the whole vector and on its beginnings, each scaled to unit length (arXiv 2205.13147)."""

    kind: Literal["matryoshka"] = "matryoshka"
    dims: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Lengths of the beginnings; the whole vector is always there."""
    weights: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] | None = None
    """One for each of `dims`, beside the 1 of the whole vector; 1 when absent. The mean is trained on."""
    objective: Term
    """The loss: contrastive, distill, a sum, or one of your own on vectors."""

    @model_validator(mode="after")
    def _fits(self) -> Matryoshka:
        if len(set(self.dims)) < len(self.dims):
            raise ValueError(f"dims {list(self.dims)}: a length stands twice")
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ValueError(f"{len(self.weights)} weights for {len(self.dims)} dims: give one for each")
        _require_vectors(self, self.objective, type(self))
        return self

    @property
    def learns_from(self) -> Literal["pairs", "texts", "either", "nothing"]:
        """What its objective learns from."""
        return self.objective.learns_from

    def check(self, sources: Collection[str]) -> None:
        """Check its objective as if it stood alone."""
        super().check(sources)
        self.objective.check(sources)

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Say what is cut to which lengths."""
        lengths = ", ".join(map(str, sorted(self.dims)))
        return f"{self.objective.describe(stage, max_tokens)}; also of the first {lengths} dimensions"


class Sum(VectorObjective):
    """Several losses of the same vectors, each with its weight."""

    kind: Literal["sum"] = "sum"
    terms: Annotated[tuple[Term, ...], Field(min_length=2)]
    """Objectives on vectors, each with its `weight`."""

    @model_validator(mode="after")
    def _fits(self) -> Sum:
        for term in self.terms:
            _require_vectors(self, term, type(self))
        if sum(isinstance(part, Distill) for part in parts_of(self)) > 1:
            raise ValueError("one distill a stage: give it a list of teachers instead")
        return self

    @property
    def learns_from(self) -> Literal["pairs", "either"]:
        """Pairs, where a term needs them."""
        return "pairs" if any(term.learns_from == "pairs" for term in self.terms) else "either"

    def check(self, sources: Collection[str]) -> None:
        """Check each term, whose weight has an effect here."""
        super().check(sources)
        for term in self.terms:
            if not isinstance(term, SpreadOut):
                term.model_copy(update={"weight": 1.0}).check(sources)

    def describe(self, stage: Stage, max_tokens: int) -> str:
        """Say each term with its weight."""
        told = (f"{term.weight:g} ({term.describe(stage, max_tokens)})" for term in vector_terms(self))
        return f"sum: {' + '.join(told)}"


def vector_terms(objective: Sum) -> list[VectorObjective]:
    """Return the terms of a sum."""
    return [term for term in objective.terms if isinstance(term, VectorObjective)]


def parts_of(objective: Objective) -> Iterator[Objective]:
    """Yield an objective and those that it is made of."""
    yield objective
    inner = objective.terms if isinstance(objective, Sum) else ()
    for part in (*inner, *([objective.objective] if isinstance(objective, Matryoshka) else [])):
        yield from parts_of(part)


def learns_scores(objective: Objective) -> bool:
    """Tell whether an objective has a use for pairs with scores."""
    return any(isinstance(part, Cosent | Distill) for part in parts_of(objective))


def needs_scores(objective: Objective) -> bool:
    """Tell whether an objective can learn nothing without pairs with scores."""
    return any(isinstance(part, Cosent) for part in parts_of(objective))


def distillation_of(objective: Objective) -> Distill | None:
    """Return the distillation that an objective holds, if any."""
    return next((part for part in parts_of(objective) if isinstance(part, Distill)), None)


def _require_vectors(whole: Objective, part: Objective, itself: type[Objective]) -> None:
    if not isinstance(part, VectorObjective):
        raise ValueError(
            f"objective '{part.kind}' is no loss of a step's vectors and cannot be part of {whole.kind}"
        )
    if any(isinstance(inner, itself) for inner in parts_of(part)):
        raise ValueError(f"{whole.kind} within {whole.kind}: put its parts into the outer one")
