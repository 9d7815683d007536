"""From a stage's sources to its mixture; needs neither torch nor a model."""

from __future__ import annotations

from pathlib import Path

from embedforge.data.convert import read_source, source_name
from embedforge.data.mixture import Mixture
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Stage


def read_mixture(stage: Stage, seed: int, source_folder: Path | None = None) -> Mixture:
    """Read a stage's sources and lay out its order of examples."""
    examples = {
        source_name(source): read_source(source, seed=seed, folder=source_folder, negatives=stage.negatives)
        for source in stage.mix.sources
    }
    if len(examples) < len(stage.mix.sources):
        raise EmbedforgeError(
            f"stage '{stage.name}': two sources have the same name; give them a 'name' each"
        )
    weights = {source_name(source): source.weight for source in stage.mix.sources}
    return Mixture(
        examples,
        weights=weights,
        seed=seed,
        batch_queries=stage.batch_queries,
        negatives=stage.negatives,
        batches=stage.mix.batches,
    )
