"""What a run *is*, as data that pydantic checks: safe to take from a stranger, and free of torch."""

from embedforge.recipe.data import Mix, Source, source_of
from embedforge.recipe.file import shipped_recipes
from embedforge.recipe.recipe import Recipe, Training, load_recipe, parse_recipe
from embedforge.recipe.stage import Stage
from embedforge.recipe.terms import Teacher

__all__ = [
    "Mix",
    "Recipe",
    "Source",
    "Stage",
    "Teacher",
    "Training",
    "load_recipe",
    "parse_recipe",
    "shipped_recipes",
    "source_of",
]
