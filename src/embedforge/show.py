"""What a recipe says and what a decoder can do, printed; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax
from rich.tree import Tree

from embedforge.errors import EmbedforgeError
from embedforge.recipe import Recipe, load_recipe, recipe_schema


def show(
    name: str,
    overrides: Sequence[str],
    source_folder: Path | None,
    *,
    schema: bool = False,
    as_json: bool = False,
) -> None:
    """Print the resolved recipe and each stage's mixture; sources that are not there are named as such."""
    console = Console()
    if schema:
        console.print_json(data=recipe_schema())
        return
    recipe = load_recipe(name, overrides)
    if as_json:
        console.print_json(data=recipe.model_dump(mode="json"))
        return
    import yaml

    resolved = recipe.model_dump(mode="json", exclude={"stages": {"__all__": {"mix"}}})
    console.print(Syntax(yaml.safe_dump(resolved, sort_keys=False), "yaml", background_color="default"))
    console.print(mixture_tree(recipe, source_folder))


def mixture_tree(recipe: Recipe, source_folder: Path | None) -> Tree:
    """Return the stages and their sources with row counts, as a tree."""
    from embedforge.data.describe import describe
    from embedforge.train.mixtures import read_mixture

    root = Tree(f"[bold]{recipe.name}[/bold]: {recipe.about}")
    for stage in recipe.stages:
        branch = root.add(
            f"[bold]{stage.name}[/bold]  {stage.steps:,} steps x {stage.batch_queries} queries, "
            f"{stage.negatives} hard negatives, in-batch: {stage.objective.in_batch}, "
            f"{stage.mix.batches} batches"
        )
        try:
            branch.add(describe(read_mixture(stage, recipe.seed, source_folder)))
        except EmbedforgeError as error:
            branch.add(f"[yellow]not counted:[/yellow] {error}")
            for source in stage.mix.sources:
                branch.add(f"{source.name or source.path} ({source.kind}, cap {source.cap or 'none'})")
    return root


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
