"""The base that a recipe prunes: made once, in the run's folder, before anything else is.

From there on it is a base like any other, for the language-model head of MNTP, for resuming and for all
ranks; the recipe that is saved with the model goes on saying what was pruned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from embedforge.data.convert import read_source
from embedforge.data.example import Example
from embedforge.data.mixture import fingerprint
from embedforge.files import read_object
from embedforge.model.prune import FILE_NAME, prune
from embedforge.recipe import Recipe, Source
from embedforge.recipe.objectives import Mntp
from embedforge.runtime import is_first_rank, wait_for_first_rank

FOLDER = "base"
"""Of the pruned base, in the run's."""
logger = logging.getLogger(__name__)


def vocabulary_examples(recipe: Recipe, source_folder: Path | None = None) -> list[Example]:
    """Read the texts that a recipe's vocabulary is cut to; none where it is not.

    Raises:
        EmbedforgeError: bad data, see `read_source`.
    """
    prune_settings = recipe.model.prune
    if prune_settings is None or prune_settings.vocabulary is None:
        return []
    return read_examples(prune_settings.vocabulary.texts, recipe.seed, source_folder)


def read_examples(sources: Iterable[Source], seed: int, folder: Path | None = None) -> list[Example]:
    """Read sources of every kind, one after the other."""
    return [row for source in sources for row in read_source(source, seed=seed, folder=folder)]


def texts_of(examples: Iterable[Example]) -> Iterator[str]:
    """Yield every text of Examples, one that is its own answer once."""
    for example in examples:
        yield from dict.fromkeys((example.query, *example.positives, *example.negatives))


def with_pruned_base(recipe: Recipe, out: Path, examples: Sequence[Example]) -> Recipe:
    """Return a recipe that starts from what the given one prunes its base to.

    OUT/base is written where it does not hold just that already. On several ranks the first one writes, and
    the others wait.

    Args:
        recipe: returned as it is where it prunes nothing.
        out: folder of the run.
        examples: from `vocabulary_examples`.

    Raises:
        EmbedforgeError: see `prune`.
    """
    settings = recipe.model.prune
    if settings is None:
        return recipe
    folder = (out / FOLDER).resolve()
    always = always_kept(recipe, examples)
    record = {
        "made from": recipe.model.base,
        "settings": settings.model_dump(mode="json"),
        "texts": fingerprint(examples),
        "always": always,
    }
    if is_first_rank():
        if not _holds(folder, record):
            before, after = prune(
                recipe.model.base,
                folder,
                layers=settings.layers,
                texts=None if settings.vocabulary is None else _texts(recipe, examples),
                min_count=1 if settings.vocabulary is None else settings.vocabulary.min_count,
                always=always,
                trust_remote_code=recipe.model.trust_remote_code,
                record=record,
            )
            logger.warning("pruned %s: %s; it was %s", recipe.model.base, after, before)
    else:
        wait_for_first_rank(lambda: _holds(folder, record), str(folder))
    model = recipe.model.model_copy(update={"base": str(folder), "prune": None})
    return recipe.model_copy(update={"model": model})


def _texts(recipe: Recipe, examples: Iterable[Example]) -> Iterator[str]:
    """Yield the texts, and behind their prefix too where a token may span its end."""
    contract = recipe.contract
    for example in examples:
        yield from texts_of([example])
        if not contract.isolate_prefix:
            yield contract.query_prefix(example.instruction) + example.query
            for text in (*example.positives, *example.negatives):
                yield contract.document_prefix() + text


def always_kept(recipe: Recipe, examples: Iterable[Example]) -> list[str]:
    """Return what a run writes beside its texts, and a vocabulary needs: templates, instructions, masks."""
    contract = recipe.contract
    sources = [source for stage in recipe.stages for source in stage.mix.sources]
    instructions = {contract.default_instruction, *(source.instruction for source in sources)}
    instructions |= {example.instruction for example in examples}
    kept = {contract.query_prefix(instruction) for instruction in instructions}
    kept |= {contract.document_prefix(), contract.query_suffix(), contract.document_suffix()}
    objectives = [stage.objective for stage in recipe.stages]
    kept |= {objective.mask_token for objective in objectives if isinstance(objective, Mntp)}
    return sorted(kept - {""})


def _holds(folder: Path, record: dict[str, Any]) -> bool:
    file = folder / FILE_NAME
    return file.exists() and record.items() <= read_object(file).items()
