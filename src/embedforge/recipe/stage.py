"""A stage of a recipe: an objective, its data and a schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from embedforge.data.kinds import source_name
from embedforge.recipe.base import PositiveInt, Section
from embedforge.recipe.data import Mix
from embedforge.recipe.model import Lora
from embedforge.recipe.objectives import Contrastive, Objective


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
    memory_gb: Annotated[float, Field(ge=1, le=1e6)] = 4.0
    """What mining may take besides the model."""


class Stage(Section):
    """One pass of training: an objective, a mix and a schedule."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """Letters, digits, `_`, `-` and `.`: it names a folder of the run."""
    objective: Objective = Contrastive()
    mix: Annotated[Mix, Field(validate_default=True)] = Mix()
    """The data; needed by all that trains."""
    steps: Annotated[int, Field(ge=0, le=10**9, validate_default=True)] = 0
    """Optimizer steps; needed by all that trains."""
    earlier_adapter: Literal["continue", "merge", "stack"] = "continue"
    """What becomes of the adapter of the stages before: trained on, merged into the decoder and followed by
    a new one, or kept as it is below a new one."""
    adapter: Lora | None = None
    """Of the new adapter, where `earlier_adapter` makes one; the model's settings when absent."""
    layers: Annotated[int, Field(ge=0)] | None = None
    """Only so many of the decoder's first layers run, and are trained; all when absent. 0 is a static
    embedder: what a token adds to the vector does not depend on the others. The layers that a later stage
    adds begin without an effect."""
    batch_queries: PositiveInt = 128
    """Queries a step, over all ranks; texts for simcse, chunks for mntp."""
    negatives: Annotated[int, Field(ge=0, le=10**6)] = 7
    """Hard negatives a query; fewer where an Example has fewer."""
    mine_again: MineAgain | None = None
    """Replace the sources' negatives by those that the model itself finds when the stage begins."""
    query_max_tokens: PositiveInt | None = None
    """Shorter than the contract's limit, for training only."""
    document_max_tokens: PositiveInt | None = None
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 2e-5
    pooling_learning_rate: Annotated[float, Field(gt=0, le=100)] | None = None
    """Learning rate of the pooling block and a map after it; the stage's own when absent."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 50
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.03
    max_grad_norm: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    tokens_per_micro_batch: PositiveInt = 16_384
    """Tokens of one forward pass, padding included; a larger step is cut into several."""
    tokens_held: PositiveInt | None = None
    """A step of at most so many tokens is embedded once, all its graphs held; a larger one twice (GradCache).

    What fits the memory when absent, measured at the stage's first step. Several ranks always take GradCache
    for what is more than one micro-batch.
    """

    @field_validator("mix", "steps")
    @classmethod
    def _is_there_to_train(cls, value: Mix | int, info: ValidationInfo) -> Mix | int:
        """Refuse to train on nothing, or not at all."""
        objective = info.data.get("objective")
        is_empty = value == cls.model_fields[str(info.field_name)].default
        if is_empty and isinstance(objective, Objective) and objective.unit != "models":
            if info.field_name == "steps":
                raise PydanticCustomError("too_few_steps", "needed, and at least 1")
            raise PydanticCustomError("missing", "Field required")
        return value

    @model_validator(mode="after")
    def _holds_a_micro_batch(self) -> Stage:
        if self.tokens_held is not None and self.tokens_held < self.tokens_per_micro_batch:
            raise ValueError(
                f"tokens_held ({self.tokens_held}) is below tokens_per_micro_batch "
                f"({self.tokens_per_micro_batch}), whose graph is always held: lower that first"
            )
        return self

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Stage:
        kind, ignored = self.objective.kind, self.objective.ignores
        for key in ignored:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(f"{key} ({value}) has no effect on objective '{kind}': leave it out")
        if self.mine_again is not None and ("negatives" in ignored or not self.negatives):
            raise ValueError(
                "mine_again has no effect: "
                + (f"objective '{kind}' has no negatives" if "negatives" in ignored else "negatives is 0")
                + "; leave it out"
            )
        if self.adapter is not None and self.earlier_adapter == "continue":
            raise ValueError(
                "adapter has no effect while earlier_adapter is 'continue', which trains the adapter that is "
                "there: set earlier_adapter to merge or stack, or leave adapter out"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Stage:
        self.objective.check([source_name(source) for source in self.mix.sources])
        return self

    @model_validator(mode="after")
    def _sources_fit_the_objective(self) -> Stage:
        kind, wanted = self.objective.kind, self.objective.learns_from
        for source in self.mix.sources:
            phrase = f"source '{source.path}' has kind '{source.kind}'"
            if wanted == "pairs" and source.texts_alone:
                raise ValueError(
                    f"{phrase}, and texts alone have no positives: use objective mntp, simcse or distill, or "
                    "pairs"
                )
            if wanted == "texts" and not source.texts_alone:
                raise ValueError(f"objective '{kind}' learns from texts alone, and {phrase}: use kind texts")
        return self
