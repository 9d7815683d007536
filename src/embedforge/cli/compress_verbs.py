"""A finished model made smaller: its vectors, or its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Dtype, FirstWordOptional, MaxTokens, Seed, Verbs, app, pairs_of
from embedforge.errors import EmbedforgeError


class _VectorsFirst(FirstWordOptional):
    """`embedforge compress MODEL` is `embedforge compress vectors MODEL`."""

    default = "vectors"


compress_app = Verbs(
    cls=_VectorsFirst,
    no_args_is_help=True,
    help="Smaller vectors of a finished model, measured on your tasks: compress MODEL --tasks FOLDER (its "
    "options: compress vectors --help); or smaller weights: compress weights MODEL.",
)
app.add_typer(compress_app, name="compress")


@compress_app.command(epilog="Example: embedforge compress run/model --tasks datasets --out compressed")
def vectors(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.")],
    tasks: Annotated[
        str,
        typer.Option(help="A folder of datasets (docs/evaluation.md), or mteb task names, comma separated."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where vectors, results.json and report.html go.")
    ] = Path("compressed"),
    dims: Annotated[
        str | None,
        typer.Option(metavar="N,N...", help="Lengths to cut to; the whole, its half and so on by default."),
    ] = None,
    forms: Annotated[
        str | None,
        typer.Option(
            metavar="FORM,FORM...",
            help="float32, float16, int8, binary, binary-rescored, binary-int8; all but float16 by default.",
        ),
    ] = None,
    rotate: Annotated[
        list[str] | None,
        typer.Option(
            help="A file of texts like those you will search: also turn the vectors to their principal "
            "directions before they are cut; may be repeated."
        ),
    ] = None,
    save_rotated: Annotated[
        Path | None, typer.Option(help="Write the model with that rotation in it to this folder.")
    ] = None,
    within: Annotated[
        float, typer.Option(min=0, max=100, help="Per cent of the whole vectors' score that may be lost.")
    ] = 1.0,
    candidates: Annotated[
        int, typer.Option(min=1, help="Documents that a search by bits hands on to be rescored.")
    ] = 100,
    instruction: Annotated[
        list[str] | None, typer.Option(metavar="TASK=TEXT", help="Instruction of a task; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the datasets in a folder.")] = "test",
    max_tokens: MaxTokens = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Draw quality against bytes a vector on your own tasks, and name the cheapest that is good enough.

    This is what `embedforge compress MODEL` does. Vectors are embedded once, and cut, rounded to int8 or to
    bits, and rescored from there. Run again to go on, or with more lengths and forms.
    """
    from embedforge.curate.sources import sources_of
    from embedforge.data.task_folder import require_tasks
    from embedforge.model.folder import find_folder, require_model

    lengths = None if dims is None else _whole_numbers("--dims", dims)
    if save_rotated is not None and not rotate:
        raise EmbedforgeError("--save-rotated needs a rotation: name texts for it with --rotate FILE")
    sources = sources_of(rotate or [])
    instructions = pairs_of("--instruction", "TASK=TEXT", instruction or [])
    require_model(model)
    require_tasks(tasks, split)
    find_folder(model)  # before torch is imported, but last, as the hub may have much to send
    from embedforge.compress.page import sentences, terminal_table
    from embedforge.compress.run import Asked, compress
    from embedforge.console import say, stdout
    from embedforge.evaluate.results import EvaluationSettings

    asked = Asked(
        dims=lengths,
        forms=None if forms is None else tuple(forms.split(",")),
        rotate=tuple(sources),
        candidates=candidates,
        within=within,
    )
    settings = EvaluationSettings(split, dtype, max_tokens, instructions=instructions)
    curve = compress(
        model, tasks, out, asked=asked, settings=settings, save_rotated=save_rotated, device=device
    )
    stdout().print(terminal_table(curve))
    for finding in sentences(curve):
        say(finding.text, stdout())
    if save_rotated is not None:
        say(f"The rotated model is in {save_rotated}", stdout())
    say(str(out / "report.html"), stdout())


@compress_app.command(
    epilog="Example: embedforge compress weights run/model --prune wanda --texts docs.txt --recover 500"
)
def weights(
    model: Annotated[str, typer.Argument(help="A model folder that embedforge saved.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the work goes; the result is OUT/model.")
    ] = Path("compressed-weights"),
    prune: Annotated[
        str | None,
        typer.Option(help="magnitude, or wanda: weighed by what each weight is fed on --texts."),
    ] = None,
    sparsity: Annotated[
        str, typer.Option(help="Share that becomes zero (0.5), or n that stay of every m (2:4).")
    ] = "0.5",
    texts: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts for wanda and --recover: .txt of a text a line, or training data; may be repeated."
        ),
    ] = None,
    recover: Annotated[
        int, typer.Option(min=0, help="Steps of distillation from the unpruned model; zeros stay zero.")
    ] = 0,
    int8: Annotated[
        bool, typer.Option("--int8", help="Round the linear layers to int8, at the end.")
    ] = False,
    batch: Annotated[int, typer.Option(min=2, help="Texts of a step of --recover.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of --recover.")] = 5e-5,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Prune the linear layers of a finished model, train back what that lost, round them to int8.

    Zeros save nothing by themselves: they are for runtimes with sparse kernels (2:4). int8 weights take a
    quarter of the memory of float32 ones. Run the same command again to go on.
    """
    from embedforge.curate.sources import sources_of
    from embedforge.model.folder import require_model

    if prune not in (None, "magnitude", "wanda"):
        raise EmbedforgeError(f"--prune {prune}: there is magnitude and wanda")
    sources = sources_of(texts or [])
    require_model(model)  # before torch is imported: a mistake in it shows at once
    from embedforge.compress.weights import MODEL, WeightSettings, compress_weights, told

    settings = WeightSettings(
        prune=prune,  # type: ignore[arg-type]
        sparsity=sparsity,
        texts=tuple(sources),
        recover=recover,
        int8=int8,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
    )
    facts = compress_weights(model, out, settings, device)
    typer.echo(f"{told(facts)}\nThe model is in {out / MODEL}")


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise EmbedforgeError(f"{option} takes whole numbers with commas between, got '{text}'") from None
