"""The texts of files as files of vectors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedforge.cli.app import Device, Dtype, MaxTokens, app
from embedforge.errors import EmbedforgeError

if TYPE_CHECKING:
    from embedforge.bulk.run import Encoded


@app.command(epilog="Example: embedforge encode my-model corpus.parquet --id id --out corpus-vectors")
def encode(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] INPUT...",
            help="A model folder or hub id (left out: the model that comes along), then files or folders: "
            ".jsonl, .csv, .tsv, .txt, each also .gz, .parquet; - for standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the vectors; the same again goes on.")],
    column: Annotated[
        str, typer.Option(help="Column of the text; of several (title,text) what is there, with a space.")
    ] = "text",
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column of the ids, which are written beside the vectors.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Columns to write beside the vectors too: text,url.")
    ] = None,
    query: Annotated[
        bool, typer.Option("--query", help="The texts are queries: they get the model's instruction.")
    ] = False,
    instruction: Annotated[
        str | None, typer.Option(help="Instruction before each text, in the model's own template.")
    ] = None,
    instruction_column: Annotated[
        str | None, typer.Option(help="Column with the instruction of each text.")
    ] = None,
    output: Annotated[str, typer.Option("--format", help="parquet, npy or arrow.")] = "parquet",
    precision: Annotated[str, typer.Option(help="float32, float16, int8 or binary.")] = "float32",
    dim: Annotated[
        int | None, typer.Option(min=1, help="Keep the first so many dimensions, at unit length again.")
    ] = None,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Rows of a file of vectors.")] = 16_384,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Only part K of N of the shards (3/16), on this machine."),
    ] = None,
    stdin_format: Annotated[
        str | None, typer.Option(help="What - holds: jsonl (the default), csv, tsv or txt.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: workers of Ray Data.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster (auto, ray://host:10001); a local one by default.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray's workers; one a GPU, or one a machine, by default.")
    ] = None,
    max_tokens: MaxTokens = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Embed the texts of files of any size: OUT/vectors holds the vectors, OUT/manifest.json the plan.

    It goes on where it was stopped or killed, and any number of processes may work on one OUT.
    """
    from embedforge.bulk.run import encode_files, parse_part
    from embedforge.bulk.settings import EncodeSettings
    from embedforge.console import advancing, progress_bar, say, stdout
    from embedforge.model.folder import DEFAULT_MODEL, find_folder, require_model

    part = None if shard is None else parse_part(shard)
    settings = EncodeSettings(
        column=_names(column),
        id=id_column,
        keep=_names(keep or ""),
        query=query,
        instruction=instruction,
        instruction_column=instruction_column,
        max_tokens=max_tokens,
        dtype=dtype,
        dim=dim,
        precision=precision,  # type: ignore[arg-type]
        format=output,  # type: ignore[arg-type]
        rows_per_shard=rows_per_shard,
    )
    model, inputs = _model_and_inputs(names, DEFAULT_MODEL)
    (find_folder if "-" in inputs else require_model)(model)  # before standard input is used up
    with progress_bar(transient=True) as bar:
        done = encode_files(
            inputs,
            out,
            model=model,
            settings=settings,
            shard=part,
            device=device,
            engine=engine,  # type: ignore[arg-type]
            ray_address=ray_address,
            workers=workers,
            stdin_format=stdin_format,
            progress=partial(advancing, bar),
        )
    say(_summary(done), stdout())


def _model_and_inputs(names: list[str], default: str) -> tuple[str, list[str]]:
    """Tell the model from the input: a name that stands alone, or begins with a file, has no model."""
    first = Path(names[0])
    if len(names) == 1 or first.is_file() or names[0] == "-":
        return default, names
    return names[0], names[1:]


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if text and not names:
        raise EmbedforgeError(f"'{text}' names no column")
    return names


def _summary(done: Encoded) -> str:
    rate = done.written / max(done.seconds, 1e-9)
    wrote = (
        f"{done.written:,} rows embedded in {done.seconds:.0f} s ({rate:,.0f} a second). "
        if done.written
        else ""
    )
    if done.empty:
        wrote += f"{done.empty:,} of them have no word, and the empty text's vector. "
    if done.missing:
        return (
            f"{wrote}{done.missing} of {done.shards} shards are not there yet: other processes or parts "
            "have them. Once those have ended, the same command does what is left and counts all rows."
        )
    return f"{wrote}{done.rows:,} rows in {done.shards} files, all counted: {done.vectors}"
