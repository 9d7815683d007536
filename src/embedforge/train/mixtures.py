"""From a recipe to its data, and what is wrong with them; needs neither torch nor a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from embedforge.data.convert import read_source
from embedforge.data.example import Example
from embedforge.data.kinds import source_name
from embedforge.data.mixture import Mixture
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, Source, Stage
from embedforge.recipe.objectives import PairObjective, SimCSE
from embedforge.recipe.terms import learns_scores, needs_scores
from embedforge.text.contract import Contract

logger = logging.getLogger(__name__)


def read_mixture(stage: Stage, seed: int, source_folder: Path | None = None) -> Mixture:
    """Read a stage's sources and lay out its order of examples.

    The texts of a stage of chunks (`mntp`) have no order yet: chunks take a tokenizer.

    Raises:
        EmbedforgeError: bad data, two sources of one name, or a source from which nothing can be learned.
    """
    examples = {
        source_name(source): read_source(source, seed=seed, folder=source_folder, negatives=stage.negatives)
        for source in stage.mix.sources
    }
    if len(examples) < len(stage.mix.sources):
        raise EmbedforgeError(
            f"stage '{stage.name}': two sources have the same name; give them a 'name' each"
        )
    return mixture_of(stage, seed, examples)


def finished_model(name: str, source_folder: Path | None = None) -> str:
    """Return a finished model that a merge names: a folder, from where sources start, or the name itself."""
    folder = Path(source_folder or "", name).expanduser()
    return str(folder) if folder.is_dir() else name


def mixture_of(stage: Stage, seed: int, examples: Mapping[str, Sequence[Example]]) -> Mixture:
    """Lay out a stage's Examples, by source.

    Raises:
        EmbedforgeError: a source from which nothing can be learned, or too few rows for a step.
    """
    _check_scores(stage, examples)
    if isinstance(stage.objective, PairObjective | SimCSE):
        for name, rows in examples.items():
            _check_that_a_loss_is_left(stage, stage.objective, name, rows)
    weights = {source_name(source): source.weight for source in stage.mix.sources}
    return Mixture(
        examples,
        weights=weights,
        seed=seed,
        batch_queries=1 if stage.objective.unit == "chunks" else stage.batch_queries,
        negatives=stage.negatives,
        batches=stage.mix.batches,
    )


def read_mixtures(recipe: Recipe, source_folder: Path | None = None) -> dict[str, Mixture]:
    """Read the sources of all stages that have data, by the stage's name; see `read_mixture`."""
    trained = (stage for stage in recipe.stages if stage.objective.unit != "models")
    return {stage.name: read_mixture(stage, recipe.seed, source_folder) for stage in trained}


def read_held_out(
    recipe: Recipe, source_folder: Path | None = None, given: Sequence[Example] = ()
) -> Sequence[Example]:
    """Return the Examples that retrieval is measured on in training: the recipe's, or those `given`.

    Rows without an instruction of their own get the contract's default one, as `encode_query` does.

    Raises:
        EmbedforgeError: bad data, Examples from both, or `training.eval_steps` without any.
    """
    settings = recipe.training
    if settings.held_out and given:
        raise EmbedforgeError(
            f"training.held_out ({settings.held_out}) has no effect here: the held-out Examples are given by "
            "the caller; leave it out of the recipe"
        )
    if settings.held_out:
        source = Source(
            path=settings.held_out, name="held out", instruction=recipe.contract.default_instruction
        )
        return read_source(source, seed=recipe.seed, folder=source_folder)
    if settings.eval_steps is not None and not given:
        raise EmbedforgeError(
            f"training.eval_steps is {settings.eval_steps}, but there are no held-out Examples to measure "
            "on: name a file of them in training.held_out, or remove eval_steps"
        )
    return given


def unseen_instruction(contract: Contract, instructions: Iterable[str]) -> str | None:
    """Return a warning if `encode_query` adds an instruction that no training query has; else None.

    Args:
        contract: the recipe's.
        instructions: those of the training queries, "" for none.
    """
    default, known = contract.default_instruction, list(dict.fromkeys(instructions))
    if (
        not default
        or not known
        or default in known
        or contract.query_prefix(default) == contract.query_prefix("")
    ):
        return None
    trained = ", ".join(f"'{text}'" if text else "none" for text in known[:3])
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return (
        f"encode_query will put the instruction '{default}' before each query, and no training query has it "
        f"(their instructions: {trained}{more}). Set contract.default_instruction to an instruction of the "
        "training data, or to '' for none; or give a source this instruction"
    )


def long_warmups(recipe: Recipe) -> list[str]:
    """Return a warning for each stage that ends before its learning rate is reached."""
    return [
        f"stage '{stage.name}': its warm-up of {stage.warmup_steps} steps is longer than its {stage.steps}, "
        f"so that the learning rate never gets to {stage.learning_rate:g}; lower warmup_steps"
        for stage in recipe.stages
        if stage.warmup_steps > stage.steps
    ]


def training_instructions(recipe: Recipe, mixtures: Mapping[str, Mixture]) -> Iterable[str]:
    """Return the instructions of all queries of the stages in `mixtures`, each once; texts are no queries."""
    pairs = [
        mixtures[stage.name]
        for stage in recipe.stages
        if stage.objective.learns_from not in ("texts", "nothing") and stage.name in mixtures
    ]
    rows = (row for mixture in pairs for rows in mixture.examples.values() for row in rows)
    return dict.fromkeys(row.instruction for row in rows)


def _check_scores(stage: Stage, examples: Mapping[str, Sequence[Example]]) -> None:
    """Refuse pairs with scores where they would pass for answers, and cosent without any."""
    scored = [name for name, rows in examples.items() if any(row.score is not None for row in rows)]
    if scored and not learns_scores(stage.objective):
        raise EmbedforgeError(
            f"stage '{stage.name}', source '{scored[0]}': its pairs have scores, which objective "
            f"'{stage.objective.kind}' does not learn from: set the source's threshold, at which a pair is a "
            "positive, or use cosent, alone or as a term of a sum"
        )
    if not scored and needs_scores(stage.objective):
        raise EmbedforgeError(
            f"stage '{stage.name}': cosent learns from pairs with scores, and no source has any: give one of "
            "kind scored_pairs `threshold: null`, or Examples a score"
        )


def _check_that_a_loss_is_left(
    stage: Stage, objective: PairObjective | SimCSE, name: str, examples: Sequence[Example]
) -> None:
    """Refuse a source whose queries all have their positive as the only candidate: their loss is 0."""
    exchanges = objective.in_batch != "none" and stage.batch_queries > 1
    mined = stage.negatives and stage.mine_again is not None
    alone = sum(
        not (mined or (example.negatives and stage.negatives))
        and not (exchanges and example.in_batch_negatives)
        for example in examples
    )
    if not alone:
        return
    label = f"stage '{stage.name}', source '{name}'"
    if alone < len(examples):
        logger.warning(
            "%s: %d of %d rows have neither negatives nor candidates from other rows; their loss is 0 and "
            "they teach nothing",
            label,
            alone,
            len(examples),
        )
        return
    if objective.learns_from == "texts":
        missing = "a text has no negatives of its own"
    elif stage.negatives:
        missing = "no row has negatives (mine some, docs/data.md says how)"
    else:
        missing = "the stage draws no negatives (raise its 'negatives')"
    raise EmbedforgeError(
        f"{label}: the loss would always be 0, for a query has its positive as the only candidate: "
        f"{missing}, and {_why_no_exchange(stage, objective)}. Change one of them, or leave the source out "
        "of this stage"
    )


def _why_no_exchange(stage: Stage, objective: PairObjective | SimCSE) -> str:
    if objective.in_batch == "none":
        return "objective.in_batch is 'none' (positives or all would take those of other rows)"
    if stage.batch_queries == 1:
        return "batch_queries is 1 (more would give in-batch negatives)"
    return "the source has in_batch_negatives: false"
