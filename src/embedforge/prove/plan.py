"""What fits the time: texts that are compared, passages that are indexed, seconds for each stage."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from embedforge.documents import Folder
from embedforge.encode import encode
from embedforge.model.encoder import EmbeddingModel
from embedforge.recipe import Recipe, Stage
from embedforge.recipe.objectives import Mntp

COMPARED_SHARE, INDEXED_SHARE = 0.3, 0.15
"""Of the time: for encoding held-out text with all systems, and the folder with the last."""
RESERVE = 20.0
"""Seconds for loading, saving, statistics and the report; in short runs a fifth of the time."""
TOKENIZED = 1_500_000
"""Characters that are tokenized in a second."""
MOST_EPOCHS = 10
"""A small folder is not learnt by heart: training ends after so many rounds, whatever the time."""
TIMED_SECONDS = 3.0
MUCH_FASTER = 1.2
SAMPLE = 512
MOST = {"halves": 1000, "chunks": 500}
FEWEST = {"pairs": 50, "distractors": 200, "halves": 50, "chunks": 50, "indexed": 200}


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
    threads: int = 1
    """Of the CPU, that encode fastest: where others use the machine too, fewer may be faster than all."""
    taught_per_second: float = 0.0
    """Characters that the teacher of a distillation embeds; 0 without one."""

    @property
    def teacher_systems(self) -> float:
        """How many systems of the student's speed the teacher takes as long as."""
        if not self.taught_per_second:
            return 0.0
        return self.tokens_per_second / (self.taught_per_second * self.tokens_per_character)


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
    speed, threads = _fastest(model, passages)
    return Measured(
        tokens_per_second=speed * lengths["passage"],
        tokens_per_character=sum(map(len, whole)) / sum(map(len, passages)),
        threads=threads,
        **lengths,
    )


def _fastest(model: EmbeddingModel, passages: Sequence[str]) -> tuple[float, int]:
    """Return the texts encoded in a second, and the threads: half of them if that is much faster."""
    most = torch.get_num_threads()
    speed, half = _timed(model, passages), most // 2
    if not half:
        return speed, most
    torch.set_num_threads(half)
    with_half = _timed(model, passages)
    torch.set_num_threads(most)
    return (with_half, half) if with_half > MUCH_FASTER * speed else (speed, most)


def measure_again(model: EmbeddingModel, folder: Folder, measured: Measured, seed: int) -> Measured:
    """Time encoding anew: the machine may have others to serve by now."""
    passages = _sample([chunk.text for chunk in folder.train], np.random.default_rng(seed))
    return replace(measured, tokens_per_second=_timed(model, passages) * measured.passage)


def _timed(model: EmbeddingModel, texts: Sequence[str]) -> float:
    """Return the texts encoded in a second; the first batch, which sets things up, is not counted."""
    encode(model, texts[:4])
    started, done, size = time.monotonic(), 0, 4
    while done < len(texts) and time.monotonic() - started < TIMED_SECONDS:
        encode(model, texts[done : done + size])
        done += len(texts[done : done + size])
        size = min(64, 2 * size)  # a slow model is timed on a few texts
    return done / max(time.monotonic() - started, 1e-6)


def _sample(texts: Sequence[str], draw: np.random.Generator) -> list[str]:
    return [texts[row] for row in draw.permutation(len(texts))[:SAMPLE]]


def _mean_tokens(model: EmbeddingModel, texts: Sequence[str]) -> float:
    return float(np.mean([len(text.input_ids) for text in model.renderer.render(texts)])) if texts else 0.0


# --- what is compared and indexed ----------------------------------------------------------------------


def sizes_for(recipe: Recipe, folder: Folder, measured: Measured, seconds: float, systems: float) -> Sizes:
    """Choose sizes for a run of so many seconds, in which so many systems are compared."""
    speed = measured.tokens_per_second
    allowed = COMPARED_SHARE * seconds * speed / systems
    halves, chunks = min(MOST["halves"], len(folder.held_out)), MOST["chunks"]
    needed = len(folder.pairs) * (measured.query + measured.passage) + halves * measured.passage
    needed += chunks * _longest_chunk(recipe)
    share = min(1.0, allowed / max(needed, 1.0))
    beside = (allowed - share * needed) / max(measured.passage, 1.0)
    indexed = INDEXED_SHARE * seconds * speed / max(measured.passage, 1.0)
    return Sizes(
        pairs=_within(share * len(folder.pairs), FEWEST["pairs"], len(folder.pairs)),
        distractors=_within(beside, FEWEST["distractors"], len(folder.train_pairs)),
        halves=_within(share * halves, FEWEST["halves"], halves),
        chunks=_within(share * chunks, FEWEST["chunks"], chunks),
        indexed=_within(indexed, FEWEST["indexed"], len(folder.train) + len(folder.held_out)),
    )


def shortened(sizes: Sizes, recipe: Recipe, measured: Measured, seconds: float, systems: float) -> Sizes:
    """Return smaller sizes where encoding with so many systems, and indexing, would take too long.

    Hidden tokens are left as they are: they have to be the same for all systems.
    """
    needed = encoding_seconds(recipe, sizes, measured, systems)
    share = max(0.0, seconds) / max(needed, 1e-9)
    if share >= 1:
        return sizes
    return replace(
        sizes,
        **{
            name: _within(share * getattr(sizes, name), FEWEST[name], getattr(sizes, name))
            for name in ("pairs", "distractors", "halves", "indexed")
        },
    )


def encoding_seconds(recipe: Recipe, sizes: Sizes, measured: Measured, systems: float) -> float:
    """Return how long encoding with so many systems takes, and indexing with one."""
    each = tokens_of_system(recipe, sizes, measured)
    return (systems * each + sizes.indexed * measured.passage) / measured.tokens_per_second


def tokens_of_system(recipe: Recipe, sizes: Sizes, measured: Measured) -> float:
    """Tokens of held-out text that each system encodes; both halves of a passage are one passage."""
    passages = sizes.pairs + sizes.distractors + sizes.halves
    chunks = sizes.chunks * _longest_chunk(recipe)
    return sizes.pairs * measured.query + passages * measured.passage + chunks


def _within(wanted: float, fewest: int, most: int) -> int:
    return min(most, max(fewest, int(wanted)))


# --- training ------------------------------------------------------------------------------------------


def limited(recipe: Recipe, folder: Folder, measured: Measured) -> Recipe:
    """Keep stages from batches larger than their data, and from too many rounds over them."""
    return recipe.model_copy(
        update={"stages": tuple(_limited(recipe, stage, folder, measured) for stage in recipe.stages)}
    )


def _limited(recipe: Recipe, stage: Stage, folder: Folder, measured: Measured) -> Stage:
    if stage.objective.unit == "models":
        return stage
    rows = _rows(recipe, stage, folder, measured)
    batch = min(stage.batch_queries, rows)
    steps = min(stage.steps, math.ceil(MOST_EPOCHS * rows / batch))
    warmup = stage.warmup_steps * steps // stage.steps
    return stage.model_copy(update={"batch_queries": batch, "steps": steps, "warmup_steps": warmup})


def _rows(recipe: Recipe, stage: Stage, folder: Folder, measured: Measured) -> int:
    """Estimate the rows that a stage can draw from, rather too few than too many."""
    if stage.objective.learns_from == "either":
        return max(1, sum(source.cap or 0 for source in stage.mix.sources))
    if stage.objective.unit == "queries":
        return max(1, len(folder.train_pairs))
    if stage.objective.unit == "texts":
        return max(1, len(folder.sentences))
    tokens = sum(len(chunk.text) for chunk in folder.train) * measured.tokens_per_character
    return max(1, int(0.8 * tokens / _chunk_tokens(recipe, stage)))


def seconds_of_stages(
    recipe: Recipe,
    sizes: Sizes,
    folder: Folder,
    measured: Measured,
    *,
    seconds: float,
    left: float,
    systems: int,
) -> dict[str, float]:
    """Share out what is left for training among the stages, by the tokens that all of their steps read.

    Args:
        recipe: `limited`.
        sizes: of what is compared and indexed once the stages have ended.
        folder: what was read.
        measured: from `measure`.
        seconds: of the whole run.
        left: seconds of them that are not yet spent.
        systems: that are compared once the stages have ended.
    """
    after = encoding_seconds(recipe, sizes, measured, systems) + reserve(seconds)
    if any(stage.objective.unit == "chunks" for stage in recipe.stages):
        after += folder.counts.get("characters", 0) / TOKENIZED
    tokens = {stage.name: stage.steps * _step_tokens(recipe, stage, measured) for stage in recipe.stages}
    total = sum(tokens.values())
    return {name: max(0.0, left - after) * part / total for name, part in tokens.items()}


def reserve(seconds: float) -> float:
    """Return the seconds kept for all that is neither encoding nor training."""
    return min(RESERVE, 0.2 * seconds)


def _step_tokens(recipe: Recipe, stage: Stage, measured: Measured) -> float:
    if stage.objective.unit == "chunks":
        return float(stage.batch_queries * _chunk_tokens(recipe, stage))
    if stage.objective.unit == "texts":
        return 2 * stage.batch_queries * min(measured.sentence, stage.document_max_tokens or math.inf)
    query = min(measured.query, stage.query_max_tokens or math.inf)
    document = min(measured.passage, stage.document_max_tokens or math.inf)
    return stage.batch_queries * (query + (1 + stage.negatives) * document)


def _longest_chunk(recipe: Recipe) -> int:
    """Tokens of a chunk of MNTP; 0 for a recipe without."""
    return max(_chunk_tokens(recipe, stage) for stage in recipe.stages)


def _chunk_tokens(recipe: Recipe, stage: Stage) -> int:
    """Tokens of a chunk of an MNTP stage; 0 for another stage."""
    if not isinstance(stage.objective, Mntp):
        return 0
    return stage.objective.chunk_tokens or recipe.contract.max_tokens
