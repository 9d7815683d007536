"""The command line. Each verb imports its module when it is called, so `--help` answers at once."""

from __future__ import annotations

import sys

import typer

# The order of the imports is that of the verbs in --help.
from embedforge.cli import train_verbs, recipe_verbs  # isort: skip
from embedforge.cli import curate_verbs, data_verbs, model_verbs
from embedforge.cli.app import app
from embedforge.errors import EmbedforgeError

__all__ = ["app", "curate_verbs", "data_verbs", "main", "model_verbs", "recipe_verbs", "train_verbs"]


def main() -> None:
    """Entry point: an error that is the user's to fix is one message and exit code 1.

    So is one of the system (no permission, a full disk, a file in a folder's place). A command line that
    cannot be read exits with 2, a run stopped by Ctrl-C with 130.
    """
    try:
        app()
    except EmbedforgeError as error:
        typer.echo(f"embedforge: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        typer.echo(f"embedforge: {place}{error.strerror or error}", err=True)
        sys.exit(1)
