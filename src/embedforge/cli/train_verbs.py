"""From a recipe, or a folder of text, to a model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Overrides, Seed, app


@app.command()
def quickstart(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of Python source, Markdown or text; this Python's standard library by default."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the model, the index and the report go.")
    ] = Path("quickstart-out"),
    base: Annotated[
        str, typer.Option(help="Decoder to start from: embedforge:base, a folder or a hub id.")
    ] = "embedforge:base",
    recipe: Annotated[str, typer.Option(help="Recipe by name or file.")] = "tiny",
    max_minutes: Annotated[
        float,
        typer.Option(min=0.5, help="Time for the whole run; fewer steps are trained on a slow machine."),
    ] = 5.0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train on a folder of your own text, with nothing prepared, and see what it gained.

    Builds examples from the text's own structure (docstring and code, heading and section), mines hard
    negatives, trains the two stages of NV-Embed, compares with BM25 and with the untrained decoder on
    held-out text, and writes a report, a model and a search index. Run it again to resume after Ctrl-C.
    """
    from embedforge.quickstart.run import quickstart as run

    run(path, out, base=base, recipe_name=recipe, max_minutes=max_minutes, seed=seed, device=device)


@app.command(epilog="Example: embedforge adapt docs --out mine --minutes 10")
def adapt(
    folder: Annotated[
        Path,
        typer.Argument(help="A folder of text, Markdown, HTML, PDF or source code; no labels."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the model, the index and the report go.")
    ] = Path("adapt-out"),
    base: Annotated[
        str | None,
        typer.Option(help="Decoder to start from: embedforge:base (the default), a folder or a hub id."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe of mntp and simcse stages, by name or file; llm2vec-tiny for the bundled decoder, "
            "else llm2vec-unsup."
        ),
    ] = None,
    set_: Overrides = None,
    minutes: Annotated[
        float,
        typer.Option(min=0.5, help="Time for the whole run; fewer steps are trained on a slow machine."),
    ] = 10.0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Make a model know a folder of documents, from their text alone, and see what it gained.

    Removes the causal mask, trains masked next token prediction, then SimCSE (LLM2Vec), compares with BM25
    and with the decoder as it came on held-out text, and writes a report, a model and a search index. Run it
    again to resume after Ctrl-C.
    """
    from embedforge.adapt.run import adapt as run

    run(
        folder,
        out,
        base=base,
        recipe_name=recipe,
        overrides=set_ or (),
        minutes=minutes,
        seed=seed,
        device=device,
    )


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe by name (tiny, nv-embed-v2 ...) or a YAML file.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run: log, checkpoints, model.")
    ] = Path("run"),
    set_: Overrides = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder that the recipe's relative source paths start from; the recipe's own by default."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out; the result is that of an unbroken run."),
    ] = False,
    device: Device = None,
) -> None:
    """Run a recipe: stages of training, then a model folder that sentence-transformers loads."""
    from embedforge.data.convert import require_source
    from embedforge.recipe import load_recipe

    chosen = load_recipe(recipe, set_ or ())  # before torch is imported: a mistake in it shows at once
    folder = _source_folder(recipe, data)
    for stage in chosen.stages:
        for source in stage.mix.sources:
            require_source(source, folder)
    from embedforge.mine.refresh import refresh_stage
    from embedforge.runtime import is_first_rank, under_torchrun
    from embedforge.train.run import Interrupted
    from embedforge.train.run import train as run

    try:
        model = run(
            chosen,
            out,
            resume=resume,
            device=device,
            source_folder=folder,
            refresh=refresh_stage,
        )
    except Interrupted as stop:
        if is_first_rank():
            again = _train_command(recipe, out, set_ or [], data, device, under_torchrun())
            typer.echo(f"{stop}; go on with: {again}", err=True)
        raise typer.Exit(130) from None
    if is_first_rank():
        typer.echo(f"The model is in {model}; use it with: embedforge.load('{model}').encode_query('...')")


@app.command()
def show(
    recipe: Annotated[
        str | None, typer.Argument(help="A shipped recipe by name or a YAML file; --schema needs none.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key before showing.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that relative source paths start from.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors, and stop.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the resolved recipe as JSON only.")] = False,
) -> None:
    """Print a recipe with all its defaults, and its mixture as a tree with row counts; loads no weights."""
    if recipe is None and not schema:
        raise typer.BadParameter("name a recipe, or ask for the --schema", param_hint="RECIPE")
    from embedforge.show import show as run

    run(recipe, set_ or (), _source_folder(recipe, data), schema=schema, as_json=json_)


@app.command()
def probe(
    base: Annotated[
        str, typer.Argument(help="A decoder: embedforge:base, a folder or a hub id.")
    ] = "embedforge:base",
    attention: Annotated[
        str, typer.Option(help="Attention implementation: sdpa, eager, flash_attention_2.")
    ] = "sdpa",
    device: Device = None,
) -> None:
    """Show, layer by layer, whether a decoder's attention can be made bidirectional."""
    from embedforge.model.folder import require_model
    from embedforge.show import show_probe

    require_model(base)

    show_probe(base, attention, device)


def _train_command(
    recipe: str, out: Path, set_: list[str], data: Path | None, device: str | None, torchrun: bool
) -> str:
    """Return the command that goes on with a run; under torchrun it has to be started in the same way."""
    command = ["embedforge", "train", recipe, "--out", str(out)]
    for change in set_:
        command += ["--set", change]
    if data is not None:
        command += ["--data", str(data)]
    if device is not None:
        command += ["--device", device]
    launcher = "torchrun ... -m " if torchrun else ""
    return launcher + shlex.join([*command, "--resume"])


def _source_folder(recipe: str | None, data: Path | None) -> Path | None:
    """Relative sources start at --data, else at the recipe file, else (a shipped recipe) here."""
    if data is not None:
        return data
    return Path(recipe).parent if recipe is not None and Path(recipe).exists() else Path.cwd()
