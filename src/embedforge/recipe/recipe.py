"""A recipe is what a run *is*: base model, contract, pooling, adapter, stages, data. Data, never code.

Hand-written recipes are sparse YAML; the resolved recipe, with every default, is saved as JSON beside
each result. `embedforge show RECIPE` prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_validator,
)

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.recipe.base import PositiveInt, Section, Seed
from embedforge.recipe.file import read_values, shipped_file, shipped_recipes
from embedforge.recipe.model import Model, Pooling
from embedforge.recipe.objectives import Merge
from embedforge.recipe.stage import Stage
from embedforge.text.contract import Contract
from embedforge.validation import explain


class Training(Section):
    """How the stages are run; nothing here changes what is learned, precision and kept zeros apart."""

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
    keep_zeros: bool = False
    """Weights of the base's linear layers that are zero stay zero: training a pruned model."""
    fsdp: str = ""
    """Shard model and optimizer over the ranks: full_shard or shard_grad_op; "" for DDP."""

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
    seed: Seed = 0
    model: Model = Model()
    contract: Contract = Contract()
    stages: tuple[Stage, ...] = Field(min_length=1)
    training: Training = Training()

    @field_serializer("contract", mode="wrap")
    def _contract_settings(
        self, contract: Contract, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out what a recipe does not decide, so that a printed recipe can be read back."""
        left_out = {"goldens"} if "dtype" in contract.model_fields_set else {"goldens", "dtype"}
        return {key: value for key, value in serialize(contract).items() if key not in left_out}

    @model_validator(mode="after")
    def _trains_no_bytes(self) -> Recipe:
        if self.contract.dtype == "int8":
            raise ValueError(
                "contract.dtype int8 is made of a finished model, by embedforge compress weights --int8; "
                "a recipe has float32, bfloat16 or float16"
            )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need different names, these repeat: {names}")
        return self

    @model_validator(mode="after")
    def _merges_what_was_there_before(self) -> Recipe:
        for number, stage in enumerate(self.stages):
            earlier = [before.name for before in self.stages[:number]]
            for name in stage.objective.stages if isinstance(stage.objective, Merge) else ():
                if name not in earlier:
                    raise ValueError(
                        f"stages.{stage.name}.objective.models: no stage '{name}' comes before it, only "
                        f"{', '.join(earlier) or 'none'}.{did_you_mean(name, earlier)}"
                    )
        if self.training.fsdp and any(isinstance(stage.objective, Merge) for stage in self.stages):
            raise ValueError(
                "objective merge needs whole models, and training.fsdp keeps them in shards: leave it empty, "
                "or merge finished runs by `embedforge merge`"
            )
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
    def _layers_are_trained_whole(self) -> Recipe:
        named = [stage for stage in self.stages if stage.layers is not None]
        for key, given in (("model.adapter", self.model.adapter), ("training.fsdp", self.training.fsdp)):
            if named and given:
                raise ValueError(
                    f"stages.{named[0].name}.layers ({named[0].layers}) cannot be had with {key}: train "
                    "those stages by a recipe of their own"
                )
        return self

    @model_validator(mode="after")
    def _zeros_can_be_kept(self) -> Recipe:
        theirs = {
            "model.adapter": (self.model.adapter, "an adapter's product fills the zeros when it is merged"),
            "training.fsdp": (self.training.fsdp, "shards have no gradient of a whole matrix"),
        }
        for key, (given, why) in theirs.items():
            if self.training.keep_zeros and given:
                raise ValueError(f"training.keep_zeros cannot be had with {key}, for {why}: leave one out")
        return self

    @model_validator(mode="after")
    def _contract_follows_the_rest(self) -> Recipe:
        contract = self.contract
        if contract.pooling != self.model.pooling.kind:
            raise ValueError(
                f"contract.pooling is '{contract.pooling}' and model.pooling.kind is "
                f"'{self.model.pooling.kind}'; set only model.pooling.kind"
            )
        if contract.goldens:
            raise ValueError("contract.goldens are made when the model is saved; leave them out")
        return self

    @model_validator(mode="after")
    def _limits_fit_the_contract(self) -> Recipe:
        for stage in self.stages:
            limits = {key: getattr(stage, key) for key in ("query_max_tokens", "document_max_tokens")}
            limits |= {f"objective.{key}": limit for key, limit in stage.objective.token_limits.items()}
            for key, limit in limits.items():
                if limit is not None and limit > self.contract.max_tokens:
                    raise ValueError(
                        f"stages.{stage.name}.{key} ({limit}) is above contract.max_tokens "
                        f"({self.contract.max_tokens}), which limits all texts: lower it or raise that"
                    )
        return self


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
    if not path.exists() or (path.is_dir() and name_or_path in shipped_recipes()):
        path = shipped_file(name_or_path)  # a folder of that name, a run's say, is in nobody's way
    return parse_recipe(read_values(path, overrides), str(path))


def parse_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's values; `where` names their origin in errors."""
    model, contract = values.get("model"), values.get("contract", {})
    if isinstance(model, dict) and isinstance(contract, dict):
        pooling = model.get("pooling")
        kind = pooling.get("kind") if isinstance(pooling, dict) else None
        values = {**values, "contract": {"pooling": kind or Pooling.default_kind, **contract}}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise EmbedforgeError(f"{where}:\n{explain(error, Recipe)}") from None
