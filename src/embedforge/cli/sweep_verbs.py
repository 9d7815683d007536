"""Variants of a recipe, trained and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Overrides, app, source_folder


@app.command(
    epilog="Example: embedforge sweep mine.yaml --grid model.pooling.kind=mean,latent --dev dev.jsonl"
)
def sweep(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE", help="A shipped recipe by name or a YAML file; several are variants."
        ),
    ],
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=A,B", help="Values of a key; of several --grid every combination."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Repetitions of every variant.")] = 3,
    tasks: Annotated[
        str | None,
        typer.Option(help="Compare on a folder of datasets (docs/evaluation.md), or mteb task names."),
    ] = None,
    dev: Annotated[
        list[str] | None,
        typer.Option(help="Compare on a file of held-out Examples, by MRR@10; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the runs and the report go.")] = Path(
        "sweep"
    ),
    set_: Overrides = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that relative source paths start from; the recipe's own by default."),
    ] = None,
    device: Device = None,
) -> None:
    """Train every combination of some settings with several seeds, and say which difference is one.

    The first value of every field is what the others are compared with: paired by seed and by query, with
    intervals. Stages that variants begin with alike are trained once, teachers asked once. Run it again to
    resume; a larger grid or more seeds train only what is new. Without --tasks and --dev, variants are
    compared on the recipe's training.held_out.
    """
    from embedforge.data.convert import require_source
    from embedforge.data.readers import require_file
    from embedforge.data.task_folder import require_tasks
    from embedforge.files import refuse_file
    from embedforge.model.folder import require_model
    from embedforge.recipe import source_of
    from embedforge.sweep.grid import Judged, cells_of, completed, parse_grid

    refuse_file(out)
    cells = cells_of(recipes, parse_grid(grid or []), set_ or ())  # before torch is imported
    folder = source_folder(recipes[0], data)
    for source in (source for cell in cells for stage in cell.recipe.stages for source in stage.mix.sources):
        require_source(source, folder)
    for file in dev or ():
        require_file(Path(file))
        require_source(source_of(file))
    held_out = [str(Path(file).resolve()) for file in dev or ()]
    if tasks is not None:
        require_tasks(tasks)
    judged = completed(Judged(tasks, tuple(held_out)), cells)
    for cell in cells:
        require_model(cell.recipe.model.base)
    from embedforge.console import say, stdout
    from embedforge.sweep.page import terminal_table
    from embedforge.sweep.run import sweep as run
    from embedforge.train.run import Interrupted

    try:
        results = run(cells, seeds, out, judged=judged, device=device, source_folder=folder)
    except Interrupted as stop:
        typer.echo(f"{stop}; run the same command again to go on", err=True)
        raise typer.Exit(130) from None
    stdout().print(terminal_table(results))
    say(str(out / "report.html"), stdout())
