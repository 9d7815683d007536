"""Recipes: which there are, what one says, and one of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Overrides, Verbs, app, source_folder

recipe_app = Verbs(
    help="List the shipped recipes, show one with all its defaults, or copy one to edit.",
    epilog="Start with: embedforge recipe list",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(recipe_app, name="recipe")

Data = Annotated[Path | None, typer.Option(help="Folder that relative source paths start from.")]
Schema = Annotated[
    bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors, and stop.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the resolved recipe as JSON only.")]
OptionalName = Annotated[
    str | None, typer.Argument(help="A shipped recipe by name or a YAML file; --schema needs none.")
]


@recipe_app.command("list", epilog="Then: embedforge recipe show NAME, embedforge recipe copy NAME")
def list_() -> None:
    """Name the shipped recipes, what each is about, its decoder and its stages."""
    from embedforge.show import show_recipes

    show_recipes()


@recipe_app.command(epilog="Example: embedforge recipe show tiny --set stages.retrieval.steps=100")
def show(
    recipe: OptionalName = None,
    set_: Overrides = None,
    data: Data = None,
    schema: Schema = False,
    json_: AsJson = False,
) -> None:
    """Print a recipe with all its defaults, and its mixture as a tree with row counts; loads no weights."""
    if recipe is None and not schema:
        raise typer.BadParameter("name a recipe, or ask for the --schema", param_hint="RECIPE")
    from embedforge.show import show as run

    run(recipe, set_ or (), source_folder(recipe, data), schema=schema, as_json=json_)


app.command("show", epilog="The same as: embedforge recipe show")(show)


@recipe_app.command(epilog="Example: embedforge recipe copy nv-embed-v2 --out mine.yaml")
def copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe; embedforge recipe list names them.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write; NAME.yaml in the current folder by default."),
    ] = None,
) -> None:
    """Write a shipped recipe, comments and all, as a file that is yours to edit; nothing is overwritten."""
    import shlex

    import yaml

    from embedforge.recipe.file import copy_shipped

    file = copy_shipped(name, out or Path(f"{name}.yaml"))
    path = shlex.quote(str(file))
    typer.echo(f"The recipe is in {file}: change what you like, the comments say where each number is from.")
    if other := yaml.safe_load(file.read_text(encoding="utf-8")).get("extends"):
        typer.echo(f"What it does not say is said in {other}, which it extends; copy that too to change it.")
    typer.echo(f"See it whole:  embedforge recipe show {path}")
    typer.echo(f"Train by it:   embedforge train {path} --out run")
    typer.echo("Its sources' relative paths start at the file's folder, or at --data FOLDER.")
