"""How much fits the time: steps of each stage, texts that are compared, passages that are indexed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedforge.documents import Folder
from embedforge.encode import encode
from embedforge.model.encoder import EmbeddingModel
from embedforge.recipe import Recipe, Stage
from embedforge.recipe.objectives import Mntp

MNTP_COST, SIMCSE_COST = 4.5, 5.5
"""A trained token against an encoded one: forward and backward pass, head, optimizer, checkpoints."""
CHECKPOINTING_COST = 1.35
"""With gradient checkpointing every forward pass is made twice."""
COMPARED_SHARE, INDEXED_SHARE = 0.25, 0.2
"""Most of the time that goes into encoding held-out text with all systems, and the folder with the last."""
RESERVE = 25.0
"""Seconds for imports, loading, saving, statistics and the report; in short runs a fifth of the time."""
TOKENIZED = 1_500_000
"""Characters that are tokenized in a second."""
FEWEST_STEPS = 5
MOST_EPOCHS = 10
"""A small folder is not learnt by heart: training ends after so many rounds, whatever the time."""
TIMED_SECONDS = 3.0
SAMPLE = 512
MOST = {"halves": 1000, "chunks": 500}
FEWEST = {"pairs": 100, "distractors": 500, "halves": 100, "chunks": 100, "indexed": 1000}


@dataclass(frozen=True)
class Sizes:
    """How many texts are used, at most; drawn by the seed where there are more."""

    pairs: int
    """Held-out questions."""
    distractors: int
    """Passages of training text that the answers are searched among."""
    halves: int
    """Held-out passages, cut in two, for alignment and uniformity."""
    chunks: int
    """Held-out chunks of tokens for the MNTP loss."""
    indexed: int
    """Passages in the search index."""


@dataclass(frozen=True)
class Measured:
    """What a sample of the folder has shown."""

    tokens_per_second: float
    """Of encoding, padding not counted."""
    query: float
    """Mean tokens of a question, as the model reads it; likewise the others."""
    passage: float
    sentence: float
    tokens_per_character: float
    """Of training text, not cut."""


def measure(model: EmbeddingModel, folder: Folder, seed: int) -> Measured:
    """Time encoding, and count the tokens of samples."""
    draw = np.random.default_rng(seed)
    passages = _sample([chunk.text for chunk in folder.train], draw)
    lengths = {
        "query": _mean_tokens(model, _sample([pair.query for pair in folder.pairs], draw)),
        "passage": _mean_tokens(model, passages),
        "sentence": _mean_tokens(model, _sample(folder.sentences, draw)),
    }
    whole = model.tokenizer(passages, add_special_tokens=False, verbose=False)["input_ids"]
    return Measured(
        tokens_per_second=_timed(model, passages) * lengths["passage"],
        tokens_per_character=sum(map(len, whole)) / sum(map(len, passages)),
        **lengths,
    )


def _timed(model: EmbeddingModel, texts: Sequence[str]) -> float:
    """Return the texts encoded in a second; the first batch, which sets things up, is not counted."""
    encode(model, texts[:8])
    started, done = time.monotonic(), 0
    for start in range(0, len(texts), 64):
        part = texts[start : start + 64]
        encode(model, part)
        done += len(part)
        if time.monotonic() - started > TIMED_SECONDS:
            break
    return done / max(time.monotonic() - started, 1e-6)


def _sample(texts: Sequence[str], draw: np.random.Generator) -> list[str]:
    return [texts[row] for row in draw.permutation(len(texts))[:SAMPLE]]


def _mean_tokens(model: EmbeddingModel, texts: Sequence[str]) -> float:
    return float(np.mean([len(text.input_ids) for text in model.renderer.render(texts)])) if texts else 0.0


def fit(
    recipe: Recipe,
    folder: Folder,
    measured: Measured,
    *,
    seconds: float,
    left: float,
) -> tuple[Recipe, Sizes]:
    """Choose sizes, and shorten all stages by one factor, so that the run ends in time.

    Args:
        recipe: whose steps are the most that is trained.
        folder: what was read.
        measured: from `measure`.
        seconds: of the whole run.
        left: seconds of them that are not yet spent.

    Returns:
        The recipe with the steps that fit, and no batch larger than its data; and the sizes.
    """
    sizes = _sizes(recipe, folder, measured, seconds)
    spent = _encoded(recipe, measured, sizes) / measured.tokens_per_second
    spent += min(RESERVE, 0.2 * seconds) + folder.counts.get("characters", 0) / TOKENIZED
    stages = [_with_data(recipe, stage, folder, measured) for stage in recipe.stages]
    needed = sum(stage.steps * _step_seconds(recipe, stage, measured) for stage in stages)
    factor = min(1.0, max(0.0, left - spent) / needed)
    short = tuple(_with_steps(stage, int(stage.steps * factor)) for stage in stages)
    return recipe.model_copy(update={"stages": short}), sizes


def systems_compared(recipe: Recipe) -> int:
    """Count the models that encode held-out text: as it came, bidirectional, and after each stage."""
    return 2 + len(recipe.stages)


def _sizes(recipe: Recipe, folder: Folder, measured: Measured, seconds: float) -> Sizes:
    systems, speed = systems_compared(recipe), measured.tokens_per_second
    allowed = COMPARED_SHARE * seconds * speed / systems
    halves, chunks = min(MOST["halves"], len(folder.held_out)), MOST["chunks"]
    needed = len(folder.pairs) * (measured.query + measured.passage) + halves * measured.passage
    needed += chunks * _longest_chunk(recipe)
    share = min(1.0, allowed / max(needed, 1.0))
    beside = (allowed - share * needed) / max(measured.passage, 1.0)
    indexed = INDEXED_SHARE * seconds * speed / max(measured.passage, 1.0)
    return Sizes(
        pairs=_within(share * len(folder.pairs), FEWEST["pairs"], len(folder.pairs)),
        distractors=_within(beside, FEWEST["distractors"], len(folder.distractors)),
        halves=_within(share * halves, FEWEST["halves"], halves),
        chunks=_within(share * chunks, FEWEST["chunks"], chunks),
        indexed=_within(indexed, FEWEST["indexed"], len(folder.train) + len(folder.held_out)),
    )


def _within(wanted: float, fewest: int, most: int) -> int:
    return min(most, max(fewest, int(wanted)))


def _encoded(recipe: Recipe, measured: Measured, sizes: Sizes) -> float:
    """Tokens that are encoded by all systems together, and for the index."""
    passages = sizes.pairs + sizes.distractors + sizes.halves
    each = sizes.pairs * measured.query + passages * measured.passage + sizes.chunks * _longest_chunk(recipe)
    return systems_compared(recipe) * each + sizes.indexed * measured.passage


def _longest_chunk(recipe: Recipe) -> int:
    """Tokens of a chunk of MNTP; 0 for a recipe without."""
    return max(_chunk_tokens(recipe, stage) for stage in recipe.stages)


def _chunk_tokens(recipe: Recipe, stage: Stage) -> int:
    """Tokens of a chunk of an MNTP stage; 0 for another stage."""
    if not isinstance(stage.objective, Mntp):
        return 0
    return stage.objective.chunk_tokens or recipe.contract.max_tokens


def _rows(recipe: Recipe, stage: Stage, folder: Folder, measured: Measured) -> int:
    """Estimate the rows that a stage can draw from, rather too few than too many."""
    if not isinstance(stage.objective, Mntp):
        return max(1, len(folder.sentences))
    tokens = sum(len(chunk.text) for chunk in folder.train) * measured.tokens_per_character
    return max(1, int(0.8 * tokens / _chunk_tokens(recipe, stage)))


def _with_data(recipe: Recipe, stage: Stage, folder: Folder, measured: Measured) -> Stage:
    """Keep a stage from batches larger than its data, and from too many rounds over them."""
    rows = _rows(recipe, stage, folder, measured)
    batch = min(stage.batch_queries, rows)
    return _with_steps(stage, math.ceil(MOST_EPOCHS * rows / batch)).model_copy(
        update={"batch_queries": batch}
    )


def _with_steps(stage: Stage, steps: int) -> Stage:
    """Shorten a stage, its warm-up in proportion."""
    steps = min(stage.steps, max(FEWEST_STEPS, steps))
    warmup = stage.warmup_steps * steps // stage.steps
    return stage.model_copy(update={"steps": steps, "warmup_steps": warmup})


def _step_seconds(recipe: Recipe, stage: Stage, measured: Measured) -> float:
    if isinstance(stage.objective, Mntp):
        tokens = float(stage.batch_queries * _chunk_tokens(recipe, stage)) * MNTP_COST
    else:
        sentence = min(measured.sentence, stage.document_max_tokens or math.inf)
        tokens = 2 * stage.batch_queries * sentence * SIMCSE_COST
    checkpointing = CHECKPOINTING_COST if recipe.training.gradient_checkpointing else 1.0
    return tokens * checkpointing / measured.tokens_per_second
