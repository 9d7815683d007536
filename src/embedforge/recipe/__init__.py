"""What a run *is*, as data that pydantic checks: safe to take from a stranger, and free of torch."""

from embedforge.recipe.recipe import (
    Mix,
    Recipe,
    Source,
    Stage,
    Training,
    load_recipe,
    parse_recipe,
    shipped_recipes,
    source_of,
)

__all__ = [
    "Mix",
    "Recipe",
    "Source",
    "Stage",
    "Training",
    "load_recipe",
    "parse_recipe",
    "shipped_recipes",
    "source_of",
]
