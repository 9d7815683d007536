"""The command line. Each verb imports its module when it is called, so `--help` answers at once.

A mistake that shows without a model is found before torch is imported. A verb's function is as long as its
list of options: that list is the verb's documentation, and stays in one piece.
"""

from __future__ import annotations

import errno
import itertools
import logging
import sys

import typer

# The order of the imports is that of the verbs in --help.
from embedforge.cli import train_verbs, sweep_verbs, recipe_verbs, base_verbs  # isort: skip
from embedforge.cli import curate_verbs, data_verbs, encode_verbs, model_verbs, compress_verbs  # isort: skip
from embedforge.cli import hub_verbs, search_verbs, serve_verbs  # isort: skip
from embedforge.cli.app import app
from embedforge.endpoint import without_password
from embedforge.errors import EmbedforgeError

__all__ = [
    "app",
    "base_verbs",
    "compress_verbs",
    "curate_verbs",
    "data_verbs",
    "encode_verbs",
    "hub_verbs",
    "main",
    "model_verbs",
    "recipe_verbs",
    "search_verbs",
    "serve_verbs",
    "sweep_verbs",
    "train_verbs",
]


class _Notes(logging.Handler):
    """Prints the package's warnings as all notes are printed, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from embedforge.console import note

        note(self.format(record))


_NOTES = _Notes(logging.WARNING)
_MAY_BE_EMPTY = ("--instruction", "--query-prompt", "--document-prompt", "--chat-template", "--message")
"""Texts; an empty one is none."""
_OF_PATHS = ("Symlink loop from", "Could not determine home directory")
"""How `pathlib` says, by RuntimeError, that there is no such path."""


def main() -> None:
    """Entry point: an error that is the user's to fix is one message and exit code 1.

    So is one of the system (no permission, a full disk, a file in a folder's place). A command line that
    cannot be read exits with 2, a run stopped by Ctrl-C with 130, by SIGTERM with 143.
    """
    logging.getLogger("embedforge").addHandler(_NOTES)
    try:
        _refuse_empty(sys.argv[1:])
        app()
    except EmbedforgeError as error:
        typer.echo(f"embedforge: {without_password(str(error))}", err=True)
        sys.exit(1)
    except OSError as error:
        file = f"{error.filename}: " if error.filename is not None else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kept = ". What was there before is as it was; make room, and run the same command again"
        typer.echo(f"embedforge: {file}{error.strerror or error}{kept if full else ''}", err=True)
        sys.exit(1)
    except RuntimeError as error:
        if not str(error).startswith(_OF_PATHS):
            raise
        typer.echo(f"embedforge: there is no such path: {error}", err=True)
        sys.exit(1)


def _refuse_empty(words: list[str]) -> None:
    """Refuse an empty word: as a path it would be the current folder, which nobody has named."""
    for before, word in itertools.pairwise(("embedforge", *words)):
        option, is_one, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if is_one and not value.strip() and option not in _MAY_BE_EMPTY:
            raise EmbedforgeError(
                f"there is an empty word after '{option}', as of a variable that is not set"
            )
