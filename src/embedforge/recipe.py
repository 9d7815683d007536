"""A recipe is what a run *is*: base model, contract, pooling, adapter, stages, data. Data, never code.

Hand-written recipes are sparse YAML; the resolved recipe, with every default, is saved as JSON beside
each result. `embedforge show RECIPE` prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_validator,
)

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.recipe_file import read_values
from embedforge.text.contract import Contract
from embedforge.validation import explain

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Lora(Section):
    """Low-rank adapter of the decoder's linear layers; the pooling block is always trained in full."""

    rank: PositiveInt = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers (q_proj, v_proj, ...), or every linear layer of the decoder."""


_POOLINGS_THAT_USE = {
    "latents": ("latent",),
    "heads": ("latent", "self_attention"),
    "head_dim": ("latent", "self_attention"),
    "feed_forward_multiple": ("latent",),
}


class Pooling(Section):
    """How token states become one vector."""

    kind: Literal["last", "mean", "weighted_mean", "cls", "latent", "self_attention"] = "mean"
    latents: PositiveInt = 512
    """Latent attention: rows of the trainable latent array (NV-Embed, section 3.2)."""
    heads: PositiveInt = 8
    """Latent and self attention: number of heads."""
    head_dim: PositiveInt | None = None
    """Latent and self attention: width of one head; the decoder's hidden size when absent, as in NV-Embed."""
    feed_forward_multiple: PositiveInt = 4
    """Latent attention: width of the GEGLU after its gate, in hidden sizes."""

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Pooling:
        for key, kinds in _POOLINGS_THAT_USE.items():
            value = getattr(self, key)
            if self.kind not in kinds and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} ({value}) has no effect on kind '{self.kind}', it is for {' and '.join(kinds)}: "
                    f"leave it out (of a recipe that has it: --set 'model.pooling={{kind: {self.kind}}}')"
                )
        return self


class Model(Section):
    """The decoder and what is done to it."""

    base: str = "embedforge:base"
    """A folder, a hub id, or `embedforge:base`, the small decoder in the package."""
    sliding_window: Literal["off", "keep"] = "off"
    """A window of w tokens becomes +-w when the causal mask is gone; NV-Embed and LLM2Vec ignore it."""
    allow_causal_layers: bool = False
    """Accept a decoder some of whose layers stay causal (convolution, linear attention)."""
    attention_implementation: Literal["sdpa", "eager", "flash_attention_2", "auto"] = "auto"
    trust_remote_code: bool = False
    pooling: Pooling = Pooling()
    adapter: Lora | None = None


class Source(Section):
    """One data source of a mix and what its rows mean."""

    path: str
    """A JSONL(.gz), Parquet or CSV file, a BEIR folder, or a `datasets` hub id as `hub:owner/name`."""
    name: str = ""
    """For metrics and messages; the file's stem when empty."""
    kind: Literal["examples", "retrieval", "labels", "clusters", "scored_pairs", "nli"] = "examples"
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


class Stage(Section):
    """One pass of training: an objective, a mix and a schedule."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """Letters, digits, `_`, `-` and `.`: it names a folder of the run."""
    objective: Contrastive = Contrastive()
    mix: Mix
    steps: PositiveInt
    batch_queries: PositiveInt = 128
    """Queries a step, over all ranks."""
    negatives: Annotated[int, Field(ge=0)] = 7
    """Hard negatives a query; fewer where an Example has fewer."""
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
    """Everything a run needs to be repeated."""

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
        return self


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes in the package, by name."""
    folder = Path(str(resources.files("embedforge") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a YAML/JSON file; `overrides` are "key.path=value".

    Relative paths of sources are taken from the recipe file's folder.

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


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema()
