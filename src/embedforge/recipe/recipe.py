"""A recipe is what a run *is*: base model, contract, pooling, adapter, stages, data. Data, never code.

Hand-written recipes are sparse YAML; the resolved recipe, with every default, is saved as JSON beside
each result. `embedforge show RECIPE` prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_validator,
)

from embedforge.data.catalog import with_catalog_defaults
from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.recipe.file import SHIPPED, read_values
from embedforge.recipe.model import Lora, Model, Pooling
from embedforge.recipe.objectives import Contrastive, MineAgain, Mntp, Objective, PositiveInt, Section
from embedforge.text.contract import Contract
from embedforge.validation import explain


class Source(Section):
    """One data source of a mix and what its rows mean."""

    path: str
    """A JSONL(.gz), Parquet or CSV file, a BEIR folder, a `datasets` hub id as `hub:owner/name`, or
    an entry of the catalogue as `catalog:NAME`."""
    name: str = ""
    """For metrics and messages; the file's stem when empty."""
    kind: Literal["examples", "retrieval", "labels", "clusters", "scored_pairs", "nli", "texts"] = "examples"
    """Which converter turns its records into Examples (docs/data.md)."""
    split: str = "train"
    """Split of a BEIR folder or a hub dataset."""
    instruction: str = ""
    in_batch_negatives: bool = True
    """May other rows' documents be negatives? By default not for labels and clusters: many share a class."""
    symmetric: bool = False
    """Documents carry the instruction too; by default for scored pairs and example-based classes."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Rows are drawn in proportion to size times weight."""
    cap: PositiveInt | None = None
    """At most so many rows, chosen by the seed."""
    label_documents: Literal["examples", "labels"] = "examples"
    """Labels and clusters: the document is another example of the class (v2) or the label's text (v1)."""
    threshold: float = 4.0
    """Scored pairs: a pair with at least this score is a positive, in both directions."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = with_catalog_defaults(values)
        kind = values.get("kind")
        classes = kind in ("labels", "clusters")
        by_example = classes and values.get("label_documents", "examples") == "examples"
        return {
            "in_batch_negatives": not classes,
            "symmetric": by_example or kind == "scored_pairs",
            **values,
        }


class Mix(Section):
    """The data of a stage."""

    sources: tuple[Source, ...] = Field(min_length=1)
    batches: Literal["blended", "homogeneous"] = "blended"
    """Rows of one step come from all sources (NV-Embed) or from one (LLM2Vec)."""


_WITHOUT_EFFECT = {
    "contrastive": (),
    "mntp": ("negatives", "query_max_tokens", "document_max_tokens", "pooling_learning_rate"),
    "simcse": ("negatives", "query_max_tokens"),
}
"""Settings of a stage that its objective has no use for."""


class Stage(Section):
    """One pass of training: an objective, a mix and a schedule."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """Letters, digits, `_`, `-` and `.`: it names a folder of the run."""
    objective: Objective = Contrastive()
    mix: Mix
    steps: PositiveInt
    earlier_adapter: Literal["continue", "merge", "stack"] = "continue"
    """What becomes of the adapter of the stages before: trained on, merged into the decoder and followed by
    a new one, or kept as it is below a new one."""
    adapter: Lora | None = None
    """Of the new adapter, where `earlier_adapter` makes one; the model's settings when absent."""
    batch_queries: PositiveInt = 128
    """Queries a step, over all ranks; texts for simcse, chunks for mntp."""
    negatives: Annotated[int, Field(ge=0)] = 7
    """Hard negatives a query; fewer where an Example has fewer."""
    mine_again: MineAgain | None = None
    """Replace the sources' negatives by those that the model itself finds when the stage begins."""
    query_max_tokens: PositiveInt | None = None
    """Shorter than the contract's limit, for training only."""
    document_max_tokens: PositiveInt | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    pooling_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the pooling block; the stage's own when absent."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    weight_decay: Annotated[float, Field(ge=0)] = 0.03
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    tokens_per_micro_batch: PositiveInt = 16_384
    """Tokens of one forward pass, padding included; a larger step is cut, and embedded twice (GradCache)."""
    tokens_held: PositiveInt | None = None
    """A step of at most so many tokens is embedded once, all its graphs held: faster, in more memory.

    `tokens_per_micro_batch` when absent: the memory of one micro-batch, whatever the batch. Several ranks
    always take GradCache for what is more than one micro-batch.
    """

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
        kind = self.objective.kind
        for key in _WITHOUT_EFFECT[kind]:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(f"{key} ({value}) has no effect on objective '{kind}': leave it out")
        if self.mine_again is not None and (kind != "contrastive" or not self.negatives):
            raise ValueError(
                "mine_again has no effect: "
                + (f"objective '{kind}' has no negatives" if kind != "contrastive" else "negatives is 0")
                + "; leave it out"
            )
        if self.adapter is not None and self.earlier_adapter == "continue":
            raise ValueError(
                "adapter has no effect while earlier_adapter is 'continue', which trains the adapter that is "
                "there: set earlier_adapter to merge or stack, or leave adapter out"
            )
        return self

    @model_validator(mode="after")
    def _sources_fit_the_objective(self) -> Stage:
        kind = self.objective.kind
        for source in self.mix.sources:
            found = f"source '{source.path}' has kind '{source.kind}'"
            if kind == "contrastive" and source.kind == "texts":
                raise ValueError(
                    f"{found}, and texts alone have no positives: use objective mntp or simcse, or pairs"
                )
            if kind != "contrastive" and source.kind != "texts":
                raise ValueError(f"objective '{kind}' learns from texts alone, and {found}: use kind texts")
        return self


class Training(Section):
    """How the stages are run; nothing here changes what is learned, precision apart."""

    precision: Literal["float32", "bfloat16_autocast", "bfloat16"] = "bfloat16_autocast"
    """`bfloat16` keeps the weights in bf16 with float32 master copies in the optimizer."""
    gradient_checkpointing: bool = False
    save_steps: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    held_out: str = ""
    """A file of Examples that no source holds, to measure retrieval on; its path is read as a source's."""
    eval_steps: PositiveInt | None = None
    """Retrieval among the held-out Examples every so many steps."""
    eval_queries: PositiveInt = 200
    """The first so many held-out Examples are used."""
    log_steps: PositiveInt = 10
    report_to: tuple[str, ...] = ()
    """Loggers of transformers by name (tensorboard, wandb, trackio); a JSONL log is always written."""
    fsdp: str = ""
    """Shard model and optimizer over the ranks: full_shard or shard_grad_op; "" for DDP."""

    @property
    def weights_dtype(self) -> Literal["float32", "bfloat16"]:
        """The dtype that the weights have in training, and are saved in."""
        return "bfloat16" if self.precision == "bfloat16" else "float32"

    @model_validator(mode="after")
    def _evaluates_if_it_says_how(self) -> Training:
        for key in ("held_out", "eval_queries"):
            value = getattr(self, key)
            if self.eval_steps is None and value != type(self).model_fields[key].default:
                raise ValueError(f"{key} ({value}) has no effect without eval_steps: set that too")
        return self


class Recipe(Section):
    """Everything a run needs to be repeated.

    >>> import embedforge
    >>> recipe = embedforge.load_recipe("nv-embed-v2")
    >>> recipe.model.base, recipe.model.pooling.kind, [stage.name for stage in recipe.stages]
    ('mistralai/Mistral-7B-v0.1', 'latent', ['retrieval', 'generalist'])
    """

    name: str
    about: str = ""
    seed: int = 0
    model: Model = Model()
    contract: Contract = Contract()
    stages: tuple[Stage, ...] = Field(min_length=1)
    training: Training = Training()

    @field_serializer("contract", mode="wrap")
    def _contract_settings(
        self, contract: Contract, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out what a recipe does not decide, so that a printed recipe can be read back."""
        return {key: value for key, value in serialize(contract).items() if key not in ("dtype", "goldens")}

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need different names, these repeat: {names}")
        return self

    @model_validator(mode="after")
    def _adapters_follow_one_another(self) -> Recipe:
        for number, stage in enumerate(self.stages):
            how = stage.earlier_adapter
            if how == "continue":
                continue
            missing = "model.adapter is null" if self.model.adapter is None else "it is the first stage"
            if self.model.adapter is None or number == 0:
                raise ValueError(
                    f"stages.{stage.name}.earlier_adapter is '{how}', but there is no adapter before it, for "
                    f"{missing}: leave it out, or give the model an adapter"
                )
        return self

    @model_validator(mode="after")
    def _contract_follows_the_rest(self) -> Recipe:
        contract, dtype = self.contract, self.training.weights_dtype
        if contract.pooling != self.model.pooling.kind:
            raise ValueError(
                f"contract.pooling is '{contract.pooling}' and model.pooling.kind is "
                f"'{self.model.pooling.kind}'; set only model.pooling.kind"
            )
        if "dtype" in contract.model_fields_set and contract.dtype != dtype:
            raise ValueError(
                f"contract.dtype is '{contract.dtype}', and training.precision '{self.training.precision}' "
                f"gives '{dtype}'; leave contract.dtype out"
            )
        if contract.goldens:
            raise ValueError("contract.goldens are made when the model is saved; leave them out")
        return self

    @model_validator(mode="after")
    def _limits_fit_the_contract(self) -> Recipe:
        for stage in self.stages:
            for key in ("query_max_tokens", "document_max_tokens"):
                limit = getattr(stage, key)
                if limit is not None and limit > self.contract.max_tokens:
                    raise ValueError(
                        f"stages.{stage.name}.{key} ({limit}) is above contract.max_tokens "
                        f"({self.contract.max_tokens}), which limits all texts: lower it or raise that"
                    )
            chunk = stage.objective.chunk_tokens if isinstance(stage.objective, Mntp) else None
            if chunk is not None and chunk > self.contract.max_tokens:
                raise ValueError(
                    f"stages.{stage.name}.objective.chunk_tokens ({chunk}) is above contract.max_tokens "
                    f"({self.contract.max_tokens}), which limits all texts: lower it or raise that"
                )
        return self


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes in the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a YAML/JSON file; `overrides` are "key.path=value".

    Relative paths of sources are taken from the recipe file's folder.

    >>> import embedforge
    >>> embedforge.load_recipe("tiny", ["seed=1", "stages.retrieval.steps=10"]).stages[0].steps
    10

    Raises:
        EmbedforgeError: unknown recipe, broken YAML, unknown key or bad value; names file and key.
    """
    path = Path(name_or_path)
    if not path.exists():
        shipped = shipped_recipes()
        if name_or_path not in shipped:
            raise EmbedforgeError(
                f"there is no recipe '{name_or_path}': neither a file nor one of the shipped recipes "
                f"({', '.join(shipped)}).{did_you_mean(name_or_path, shipped)}"
            )
        path = shipped[name_or_path]
    return parse_recipe(read_values(path, overrides), str(path))


def parse_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's values; `where` names their origin in errors."""
    model, contract = values.get("model"), values.get("contract", {})
    if isinstance(model, dict) and isinstance(contract, dict):
        pooling = model.get("pooling")
        kind = pooling.get("kind") if isinstance(pooling, dict) else None
        values = {**values, "contract": {"pooling": kind or Pooling().kind, **contract}}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise EmbedforgeError(f"{where}:\n{explain(error, Recipe)}") from None


def source_of(path: str, **settings: Any) -> Source:
    """Return the source that a command line names: its path, and settings, of which None is the default.

    Raises:
        EmbedforgeError: an unknown kind or a bad value.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        return Source.model_validate({"path": path, **given})
    except ValidationError as error:
        raise EmbedforgeError(f"{path}:\n{explain(error, Source)}") from None
