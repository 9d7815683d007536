"""Texts that can be searched: making an index, keeping it up to date, asking it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, FirstWordOptional, Verbs, app
from embedforge.errors import EmbedforgeError

Where = Annotated[str, typer.Argument(help="The index: a folder, or a URL (lance://, s3://, db://).")]
Model = Annotated[
    str | None, typer.Option(help="Model folder or hub id; by default the one that the index names.")
]


@app.command(epilog='Example: embedforge search index "how is a date parsed?" --filter file=lib/*.py')
def search(
    folder: Annotated[
        str, typer.Argument(help="An index, the folder of a quickstart or adapt run, or a URL.")
    ],
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 5,
    mode: Annotated[
        str | None,
        typer.Option(
            help="fused (by meaning and by words), dense (by meaning) or lexical (by words, no model); "
            "by default fused, or what the run's report found best."
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            "-f",
            metavar="FIELD=VALUE",
            help="Only documents with this metadata: lang=en, lang!=en, year>=2020, file=docs/*; may be "
            "repeated, all must hold.",
        ),
    ] = None,
    per_file: Annotated[
        int,
        typer.Option(
            min=0,
            help="So many passages of one file, unless other files have too few; 0 for no limit. The others "
            "are named.",
        ),
    ] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with all scores.")] = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """Search texts by meaning and by words: an index, or what quickstart or adapt has indexed."""
    from embedforge.search.document import MODES

    if mode is not None and mode not in MODES:
        raise EmbedforgeError(f"--mode {mode}: there is {', '.join(MODES)}")
    from embedforge.search.run import search as run

    run(
        folder,
        query,
        k=k,
        mode=mode,
        filters=filters or (),
        per_file=per_file,
        as_json=as_json,
        model=model,
        device=device,
    )


class _FolderFirst(FirstWordOptional):
    """`embedforge index FOLDER` is `embedforge index files FOLDER`."""

    default = "files"


index_app = Verbs(
    cls=_FolderFirst,
    no_args_is_help=True,
    help="Make a search index of files, and keep it up to date: index FOLDER (its options: index files "
    "--help), or one of the commands.",
)
app.add_typer(index_app, name="index")


@index_app.command(epilog="Example: embedforge index docs --model run/model --out index")
def files(
    paths: Annotated[
        list[Path],
        typer.Argument(help="A folder of text, or files: .md, .html, .pdf, code; .jsonl, .csv, .parquet."),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="The index: a folder, or a URL (lance://, s3://, db://).")
    ] = "index",
    model: Model = None,
    restart: Annotated[bool, typer.Option(help="Make it anew, whatever is there.")] = False,
    device: Device = None,
) -> None:
    """Index files; run again, only files that have changed are embedded, and those that are gone removed.

    This is what `embedforge index FOLDER` does. A record of .jsonl, .csv or .parquet is a document:
    `text`, and if they are there `id` and `title`; its other columns are metadata to filter by.
    """
    from embedforge.search.run import index as run

    run(paths, out, model=model, restart=restart, device=device)


@index_app.command(epilog="Example: embedforge index add index notes/new.md")
def add(
    where: Where,
    paths: Annotated[list[Path], typer.Argument(help="Files or folders.")],
    model: Model = None,
    device: Device = None,
) -> None:
    """Add files to an index, or bring them up to date in it; nothing is removed."""
    from embedforge.search.run import index as run

    run(paths, where, model=model, whole=False, device=device)


@index_app.command(epilog="Example: embedforge index remove index 'drafts/*'")
def remove(
    where: Where,
    names: Annotated[
        list[str], typer.Argument(help="Files, as the hits name them (* and ? stand for anything), or ids.")
    ],
) -> None:
    """Remove files or documents from an index."""
    from embedforge.search.run import remove as run

    run(where, names)


@index_app.command()
def compact(where: Where) -> None:
    """Take the space of what was removed, and put together what was added bit by bit."""
    from embedforge.search.run import compact as run

    run(where)
