"""A recipe is what a run *is*: base model, contract, pooling, adapter, stages, data. Data, never code.

Hand-written recipes are sparse YAML; the resolved recipe, with every default, is saved as JSON beside
each result. `embedforge show RECIPE` prints it.
"""

from __future__ import annotations

import types
import typing
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.text.contract import Contract

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


class Pooling(Section):
    """How token states become one vector."""

    kind: Literal["last", "mean", "weighted_mean", "cls", "latent", "self_attention"] = "mean"
    latents: PositiveInt = 512
    """Latent attention: rows of the trainable latent array (papers.md 1.2)."""
    heads: PositiveInt = 8
    """Latent and self attention: number of heads."""
    head_dim: PositiveInt | None = None
    """Latent and self attention: width of one head; the decoder's hidden size when absent, as in NV-Embed."""
    feed_forward_multiple: PositiveInt = 4
    """Latent attention: width of the GEGLU after its gate, in hidden sizes."""


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
    """InfoNCE over own hard negatives and, where the source allows it, the batch (papers.md 1.5)."""

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

    name: str
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
    """Tokens whose graph is held at a time, padding included. A larger step is cut by GradCache.

    A step that fits is embedded once; a larger one twice, in the memory of one micro-batch.
    """


class Training(Section):
    """How the stages are run; nothing here changes what is learned, precision apart."""

    precision: Literal["float32", "bfloat16_autocast", "bfloat16"] = "bfloat16_autocast"
    """`bfloat16` keeps the weights in bf16 with float32 master copies in the optimizer."""
    gradient_checkpointing: bool = False
    save_steps: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    eval_steps: PositiveInt | None = None
    """Retrieval on a small held-out pool every so many steps."""
    eval_queries: PositiveInt = 200
    log_steps: PositiveInt = 10
    report_to: tuple[str, ...] = ()
    """Loggers of transformers by name (tensorboard, wandb, trackio); a JSONL log is always written."""
    fsdp: str = ""
    """FSDP options as transformers' Trainer takes them ("full_shard auto_wrap"); "" for DDP."""


class Recipe(Section):
    """Everything a run needs to be repeated."""

    name: str
    about: str = ""
    seed: int = 0
    model: Model = Model()
    contract: Contract = Contract()
    stages: tuple[Stage, ...] = Field(min_length=1)
    training: Training = Training()

    @model_validator(mode="after")
    def _names_and_pooling_agree(self) -> Recipe:
        if self.contract.pooling != self.model.pooling.kind:
            raise ValueError(
                f"contract.pooling is '{self.contract.pooling}' and model.pooling.kind is "
                f"'{self.model.pooling.kind}'; set only model.pooling.kind"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need different names, these repeat: {names}")
        return self


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes in the package, by name."""
    folder = Path(str(resources.files("embedforge") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: typing.Sequence[str] = ()) -> Recipe:
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
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise EmbedforgeError(f"{path}, line {line}: not valid YAML ({error.problem})") from None
    if not isinstance(values, dict):
        raise EmbedforgeError(
            f"{path}: a recipe is a mapping of keys to values, this file holds {values!r:.60}"
        )
    for override in overrides:
        _set(values, override)
    return parse_recipe(values, str(path))


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
        problems = [item for item in error.errors() if not _follows_from_another(item, error.errors())]
        raise EmbedforgeError(f"{where}:\n" + "\n".join(map(_explain, problems))) from None


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema()


def _set(values: dict[str, Any], override: str) -> None:
    """Apply "stages.0.steps=10" to the raw values; the value is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator:
        raise EmbedforgeError(f"--set takes key=value, for example training.save_steps=100; got '{override}'")
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        place = _step(place, parent, override)
    value = yaml.safe_load(text)
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _step(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, override)]
    if place.get(key) is None:
        place[key] = {}
    if not isinstance(place[key], dict | list):
        raise EmbedforgeError(f"--set {override}: '{key}' is {place[key]!r}, there is nothing below it")
    return place[key]


def _index(items: list[Any], key: str, override: str) -> int:
    """A list's item by number or, for stages and sources, by name."""
    names = [item.get("name") for item in items if isinstance(item, dict)]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise EmbedforgeError(f"--set {override}: no item '{key}'; there are {len(items)}, named {names}")


def _explain(item: Any) -> str:
    """One validation error as "key.path: what is wrong", with the nearest known key."""
    place = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "extra_forbidden":
        known = _known_keys(Recipe, item["loc"][:-1])
        hint = did_you_mean(str(item["loc"][-1]), known)
        return f"  {place}: unknown key.{hint or ' Known here: ' + ', '.join(known) + '.'}"
    message = item["msg"].removeprefix("Value error, ")
    found = "" if item["type"] in {"missing", "value_error"} else f" (found {item['input']!r:.80})"
    return f"  {place}: {message}{found}"


def _follows_from_another(item: Any, items: typing.Sequence[Any]) -> bool:
    """A list whose items are wrong is also "too short" to pydantic: say only what is wrong inside."""
    inside = (other["loc"] for other in items if len(other["loc"]) > len(item["loc"]))
    return item["type"] == "too_short" and any(place[: len(item["loc"])] == item["loc"] for place in inside)


def _known_keys(section: Any, path: typing.Sequence[str | int]) -> list[str]:
    """The keys allowed at a place of the recipe; follows optional and tuple types."""
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields) if section else []


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for found in map(_section_of, typing.get_args(annotation)) if found), None)
