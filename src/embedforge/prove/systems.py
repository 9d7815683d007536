"""The models that are compared, and what each makes of held-out text.

| system | compared | |
|---|---|---|
| as it came | always | causal, weighted mean (later tokens have seen more, and count more), no instruction |
| bidirectional | text alone trains | the same weights without the causal mask, pooled as in the recipe |
| after STAGE | text alone trains | for every stage but the last |
| trained | always | the saved model |

What LLM2Vec's steps are each worth is asked of a recipe that has MNTP or no pairs; for others that time goes
into training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedforge.data.example import Example
from embedforge.data.packing import Chunks
from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.files import write_arrays
from embedforge.model.encoder import EmbeddingModel, embedding_model, load
from embedforge.model.language_head import load_head
from embedforge.model.trained_base import own_attention
from embedforge.prove.held_out import HeldOut
from embedforge.prove.plan import Sizes
from embedforge.prove.recipes import WITHOUT_HEAD, trains_on_pairs
from embedforge.recipe import Recipe
from embedforge.recipe.model import WeightedMean
from embedforge.recipe.objectives import Mntp
from embedforge.runtime import pick_device
from embedforge.train.mntp import chunks_of, held_out_losses, masking_of
from embedforge.train.run import DONE, stage_folder
from embedforge.train.stages import model_after, prepare_model

AS_IT_CAME, UNTRAINED, TRAINED = "as it came", "bidirectional", "trained"
TEACHER, ACROSS = "teacher", "across"
"""Of a distillation; see `prove.distilling`."""

CAME_CAUSAL = "the decoder, causal, weighted mean"

Floats = NDArray[np.float32]
Build = Callable[[], EmbeddingModel]


@dataclass(frozen=True)
class Encoded:
    """What one system makes of held-out text; vectors are of unit length, [texts, dim]."""

    queries: Floats
    answers: Floats
    """Of the questions, in their order."""
    distractors: Floats
    beginnings: Floats
    ends: Floats
    losses: NDArray[np.float64]
    """Summed MNTP loss of each chunk, in nats; empty for a recipe without MNTP."""
    predictions: NDArray[np.int64]
    """Hidden tokens of each chunk."""

    @property
    def documents(self) -> Floats:
        """What the questions are searched in, in the order of `HeldOut.documents`."""
        return np.concatenate([self.answers, self.distractors])

    def cut(self, sizes: Sizes) -> Encoded:
        """Return what `HeldOut.cut` leaves."""
        return replace(
            self,
            queries=self.queries[: sizes.pairs],
            answers=self.answers[: sizes.pairs],
            distractors=self.distractors[: sizes.distractors],
            beginnings=self.beginnings[: sizes.halves],
            ends=self.ends[: sizes.halves],
        )

    def write(self, path: Path) -> None:
        """Write the arrays to `path` in one step."""
        write_arrays(path, vars(self))

    @classmethod
    def read(cls, path: Path) -> Encoded:
        """Read what `write` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})


def step_by_step(recipe: Recipe) -> bool:
    """Tell whether what each stage is worth is measured too."""
    text_alone = any(stage.objective.learns_from == "texts" for stage in recipe.stages)
    return mntp_of(recipe) is not None or (text_alone and not trains_on_pairs(recipe))


def untrained_systems(recipe: Recipe, device: str | None) -> dict[str, Build]:
    """Return the systems that need no training, each with what builds it."""
    systems: dict[str, Build] = {AS_IT_CAME: partial(prepare_model, as_it_came(recipe), device)}
    if step_by_step(recipe):
        systems[UNTRAINED] = partial(prepare_model, without_adapter(recipe), device)
    return systems


def trained_systems(recipe: Recipe, run: Path, device: str | None) -> dict[str, Build]:
    """Return the systems of a finished run, each with what builds it."""
    done = [stage_folder(run, recipe, number) / DONE for number in range(len(recipe.stages))]
    systems: dict[str, Build] = {}
    if step_by_step(recipe):
        for number, stage in enumerate(recipe.stages[:-1], start=1):
            systems[after(stage.name)] = partial(model_after, recipe, done[:number], device)
    name = str(pick_device(device))
    systems[TRAINED] = lambda: embedding_model(load(str(run / "model"), device=name))
    return systems


def after(stage: str) -> str:
    """Return the name of the system that a stage leaves."""
    return f"after {stage}"


def without_adapter(recipe: Recipe) -> Recipe:
    """Return the recipe for its model alone: a new adapter changes nothing and costs time."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"adapter": None})})


def came_as_embedder(recipe: Recipe) -> bool:
    """Tell a base that is an embedding model from a decoder that is to become one."""
    return own_attention(recipe.model.base) != "causal"


def how_it_came(recipe: Recipe) -> str:
    """Say in a few words what `as_it_came` is."""
    if not came_as_embedder(recipe):
        return CAME_CAUSAL
    return f"the embedder {recipe.model.base}, before it was trained on this folder"


def as_it_came(recipe: Recipe) -> Recipe:
    """Return the recipe for its decoder with its own attention, pooled as suits that, without instruction.

    A base that is itself an embedding model, and sees both ways, is pooled as in the recipe.
    """
    attention = own_attention(recipe.model.base)
    pooling = WeightedMean() if attention == "causal" else recipe.model.pooling
    contract = recipe.contract.model_copy(
        update={"attention": attention, "pooling": pooling.kind, "default_instruction": ""}
    )
    model = recipe.model.model_copy(update={"adapter": None, "pooling": pooling})
    return recipe.model_copy(update={"contract": contract, "model": model})


def system_after_mntp(recipe: Recipe) -> str:
    """Return the name of the system that the first MNTP stage leaves; the result's where there is none."""
    stages = [stage.name for stage in recipe.stages[:-1] if isinstance(stage.objective, Mntp)]
    return after(stages[0]) if stages and step_by_step(recipe) else TRAINED


def mntp_of(recipe: Recipe) -> Mntp | None:
    """Return the objective of the recipe's first MNTP stage."""
    return next((stage.objective for stage in recipe.stages if isinstance(stage.objective, Mntp)), None)


def require_head(recipe: Recipe, model: EmbeddingModel) -> None:
    """Raise where the recipe has MNTP and the base cannot do it, before anything is trained.

    Raises:
        EmbedforgeError: there is no language-model head, or no such mask token; names the way out.
    """
    objective = mntp_of(recipe)
    if objective is None:
        return
    try:
        load_head(recipe.model.base, model.decoder)
        masking_of(model, objective)
    except EmbedforgeError as error:
        raise EmbedforgeError(
            f"{error}\nWithout MNTP: --recipe {WITHOUT_HEAD} trains SimCSE alone, on any decoder."
        ) from error


def encode_held_out(
    model: EmbeddingModel,
    held_out: HeldOut,
    recipe: Recipe,
    *,
    most_chunks: int,
    seed: int,
    progress: Callable[[int], None],
) -> Encoded:
    """Run a system over held-out text.

    Args:
        model: the system, on its device.
        held_out: the texts.
        recipe: of the run; it says how tokens are hidden, and where the head is.
        most_chunks: for the MNTP loss, drawn by the seed where there are more.
        seed: also of what is hidden: the same tokens for every system.
        progress: called with the number of texts finished since the last call.
    """
    contract = model.contract
    queries = encode(
        model,
        [pair.query for pair in held_out.pairs],
        contract.query_prefix(),
        suffix=contract.query_suffix(),
        progress=progress,
    )
    parts = [
        [pair.document for pair in held_out.pairs],
        [pair.document for pair in held_out.distractors],
        [beginning for beginning, _ in held_out.halves],
        [end for _, end in held_out.halves],
    ]
    vectors = encode(
        model,
        [text for part in parts for text in part],
        contract.document_prefix(),
        suffix=contract.document_suffix(),
        progress=progress,
    )
    cuts = np.cumsum([len(part) for part in parts])[:-1]
    answers, distractors, beginnings, ends = np.split(vectors, cuts)
    losses, predictions = _losses(model, held_out, recipe, most_chunks, seed)
    return Encoded(queries, answers, distractors, beginnings, ends, losses, predictions)


def _losses(
    model: EmbeddingModel, held_out: HeldOut, recipe: Recipe, most_chunks: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    objective = mntp_of(recipe)
    if objective is None or not held_out.texts:
        return np.empty(0), np.empty(0, dtype=np.int64)
    chunks = chunks_of(model, objective, "held out", [Example(text, (text,)) for text in held_out.texts])
    head = load_head(recipe.model.base, model.decoder)
    return held_out_losses(model, head, objective, _drawn(chunks, most_chunks, seed), seed=seed)


def _drawn(chunks: Chunks, most: int, seed: int) -> Chunks:
    if len(chunks) <= most:
        return chunks
    rows = np.sort(np.random.default_rng(seed).permutation(len(chunks))[:most])
    return replace(chunks, ids=chunks.ids[rows], maskable=chunks.maskable[rows], lengths=chunks.lengths[rows])
