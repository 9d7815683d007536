"""What a recipe says and what a decoder can do, printed; nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.tree import Tree

from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, Stage, load_recipe, shipped_recipes
from embedforge.recipe.schema import recipe_schema

if TYPE_CHECKING:
    from embedforge.data.mixture import Mixture


def show(
    name: str | None,
    overrides: Sequence[str],
    source_folder: Path | None,
    *,
    schema: bool = False,
    as_json: bool = False,
) -> None:
    """Print the resolved recipe and each stage's mixture; sources that are not there are named as such.

    Args:
        name: a shipped recipe, or a file.
        overrides: "key.path=value".
        source_folder: where relative paths of sources start.
        schema: print the JSON schema of all recipes instead; needs no name.
        as_json: print the resolved recipe alone.

    Raises:
        EmbedforgeError: no name where one is needed, or a recipe that cannot be read.
    """
    console = Console()
    if schema:
        console.print_json(data=recipe_schema())
        return
    if name is None:
        raise EmbedforgeError(f"name a recipe: a YAML file, or one of {', '.join(shipped_recipes())}")
    recipe = load_recipe(name, overrides)
    if as_json:
        console.print_json(data=recipe.model_dump(mode="json"))
        return
    import yaml

    resolved = recipe.model_dump(mode="json", exclude={"stages": {"__all__": {"mix"}}})
    console.print(Syntax(yaml.safe_dump(resolved, sort_keys=False), "yaml", background_color="default"))
    mixtures = read_mixtures(recipe, source_folder)
    console.print(mixture_tree(recipe, mixtures))
    for warning in warnings(recipe, mixtures, source_folder):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")


def show_recipes() -> None:
    """Print the shipped recipes: name, what it is about, decoder, pooling and stages."""
    console, table = Console(), Table(box=None, pad_edge=False)
    for heading in ("recipe", "about", "decoder, pooling, stages"):
        table.add_column(heading, overflow="fold")
    for name in shipped_recipes():
        recipe = load_recipe(name)
        stages = (f"{stage.name}: {stage.objective.kind}{_steps(stage)}" for stage in recipe.stages)
        facts = [recipe.model.base, f"{recipe.model.pooling.kind} pooling", *stages]
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(recipe.about), escape("\n".join(facts)))
    console.print(table)


def _steps(stage: Stage) -> str:
    return f", {stage.steps:,} steps" if stage.steps else ""


def read_mixtures(recipe: Recipe, source_folder: Path | None) -> dict[str, Mixture | EmbedforgeError]:
    """Return each stage's mixture by the stage's name, or what is wrong with it."""
    from embedforge.train.mixtures import read_mixture

    mixtures: dict[str, Mixture | EmbedforgeError] = {}
    for stage in recipe.stages:
        if stage.objective.unit == "models":
            continue
        try:
            mixtures[stage.name] = read_mixture(stage, recipe.seed, source_folder)
        except EmbedforgeError as error:
            mixtures[stage.name] = error
    return mixtures


def mixture_tree(recipe: Recipe, mixtures: Mapping[str, Mixture | EmbedforgeError]) -> Tree:
    """Return the stages and their sources with row counts, as a tree."""
    from embedforge.data.describe import describe

    root = Tree(f"[bold]{escape(recipe.name)}[/bold]: {escape(recipe.about)}")
    for stage in recipe.stages:
        if stage.objective.unit == "models":
            what = stage.objective.describe(stage, recipe.contract.max_tokens)
            root.add(f"[bold]{escape(stage.name)}[/bold]  {escape(what)}")
            continue
        branch = root.add(
            f"[bold]{escape(stage.name)}[/bold]  {stage.steps:,} steps x {stage.batch_queries} "
            f"{stage.objective.describe(stage, recipe.contract.max_tokens)}, {stage.mix.batches} batches"
        )
        mixture = mixtures[stage.name]
        if not isinstance(mixture, EmbedforgeError):
            branch.add(describe(mixture, stage.objective.unit))
            continue
        branch.add(f"[yellow]not counted:[/yellow] {escape(str(mixture))}")
        for source in stage.mix.sources:
            named = escape(source.name or source.path)
            branch.add(f"{named} ({source.kind}, cap {source.cap or 'none'})")
    return root


def warnings(
    recipe: Recipe, mixtures: Mapping[str, Mixture | EmbedforgeError], source_folder: Path | None
) -> list[str]:
    """Return what training would refuse or warn of, beyond its sources.

    Where a stage's data cannot be read, the instructions in the recipe stand for those of its rows.
    """
    from embedforge.train.mixtures import (
        long_warmups,
        read_held_out,
        training_instructions,
        unseen_instruction,
    )

    messages = long_warmups(recipe)
    read = {name: mixture for name, mixture in mixtures.items() if not isinstance(mixture, EmbedforgeError)}
    unread = [source for stage in recipe.stages if stage.name not in read for source in stage.mix.sources]
    written = [source.instruction for source in unread if not source.texts_alone]
    unseen = unseen_instruction(recipe.contract, [*training_instructions(recipe, read), *written])
    if unseen:
        messages.append(unseen)
    if recipe.training.eval_steps is not None:
        try:
            read_held_out(recipe, source_folder)
        except EmbedforgeError as error:
            messages.append(str(error))
    return messages


def show_probe(base: str, attention_implementation: str, device: str | None) -> None:
    """Load a decoder, make it bidirectional, and print what each layer then sees."""
    from embedforge.model.attention import make_bidirectional, probe
    from embedforge.model.encoder import load_decoder
    from embedforge.runtime import pick_device

    decoder, _ = load_decoder(base, attention_implementation=attention_implementation)
    decoder.to(pick_device(device))
    console = Console()
    console.print("[bold]as loaded[/bold]", str(probe(decoder)), sep="\n")
    make_bidirectional(decoder)
    console.print("[bold]made bidirectional[/bold]", str(probe(decoder)), sep="\n")
