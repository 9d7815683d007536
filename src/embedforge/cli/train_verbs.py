"""From a recipe, or a folder of text, to a model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Overrides, Seed, app, set_option, source_folder
from embedforge.errors import EmbedforgeError

Out = typer.Option("--out", "-o", help="Where the model, the index and the report go.")
Base = Annotated[
    str | None,
    typer.Option(
        help="Decoder to start from: a name of `embedforge base list`, a folder or a hub id; by default the "
        "recipe's own."
    ),
]
Minutes = Annotated[
    float,
    typer.Option(
        "--minutes", min=0.5, help="Time for the whole run; on a slow machine less is trained and compared."
    ),
]
MOST_MINUTES = 100_000
"""Ten weeks."""
Restart = Annotated[
    bool,
    typer.Option("--restart", help="Start anew; what an earlier run left in --out moves to a folder in it."),
]


def _renamed(minutes: float | None) -> float | None:
    if minutes is not None:
        typer.echo(
            "note: --max-minutes is called --minutes now; the old name goes with the next version", err=True
        )
    return minutes


def _check(
    folder: Path | None,
    base: str | None,
    recipe: str | None,
    overrides: list[str] | None,
    out: Path,
    minutes: float,
) -> None:
    """Find what is wrong with a folder, a base or a recipe before torch is imported."""
    from embedforge.documents.folder import readable_files
    from embedforge.files import refuse_file
    from embedforge.model.folder import find_folder, require_model
    from embedforge.recipe import load_recipe

    refuse_file(out)
    if not 0 < minutes <= MOST_MINUTES:
        raise EmbedforgeError(
            f"--minutes is the time of the whole run, above 0 and at most {MOST_MINUTES:,}; got {minutes:g}"
        )
    if folder is not None:
        readable_files(folder)
    if base is not None:
        require_model(base)
    if recipe is not None:
        load_recipe(recipe, overrides or ())
    if base is not None:  # last, as the hub may have much to send
        find_folder(base)


@app.command(epilog="Example: embedforge quickstart docs --out mine --minutes 10")
def quickstart(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of text, Markdown, HTML, PDF or source code; this Python's standard library by "
            "default."
        ),
    ] = None,
    out: Annotated[Path, Out] = Path("quickstart-out"),
    base: Base = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe by name or file; quickstart, from the embedder in the package, or tiny with --base."
        ),
    ] = None,
    set_: Overrides = None,
    minutes: Minutes = 5.0,
    max_minutes: Annotated[
        float | None,
        typer.Option(hidden=True, min=0.5, callback=_renamed, help="The old name of --minutes."),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    restart: Restart = False,
) -> None:
    """Train on a folder of your own text, with nothing prepared, and see what it gained.

    Makes questions and answers of the text's own structure (docstring and code, heading and section), mines
    hard negatives, trains the two stages of NV-Embed on the embedder in the package (or --base), compares
    with BM25 and with the model as it came on held-out text, and writes a report, a model and a search
    index. Run it again to resume after Ctrl-C.
    """
    _check(folder, base, recipe, set_, out, minutes)
    from embedforge.prove.run import quickstart as run

    run(
        folder,
        out,
        base=base,
        recipe_name=recipe,
        overrides=set_ or (),
        minutes=max_minutes or minutes,
        seed=seed,
        device=device,
        restart=restart,
    )


@app.command(epilog="Example: embedforge adapt docs --out mine --minutes 10")
def adapt(
    folder: Annotated[
        Path,
        typer.Argument(help="A folder of text, Markdown, HTML, PDF or source code; no labels."),
    ],
    out: Annotated[Path, Out] = Path("adapt-out"),
    base: Base = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe by name or file; llm2vec-tiny for the bundled decoder, else llm2vec-unsup."
        ),
    ] = None,
    set_: Annotated[list[str] | None, set_option("stages.mntp.steps=100")] = None,
    minutes: Minutes = 10.0,
    seed: Seed = 0,
    device: Device = None,
    restart: Restart = False,
) -> None:
    """Make a model know a folder of documents, from their text alone, and see what it gained.

    Removes the causal mask, trains masked next token prediction, then SimCSE (LLM2Vec), compares with BM25
    and with the decoder as it came on held-out text, and writes a report, a model and a search index. Run it
    again to resume after Ctrl-C. It is quickstart's engine with another recipe.
    """
    _check(folder, base, recipe, set_, out, minutes)
    from embedforge.prove.run import adapt as run

    run(
        folder,
        out,
        base=base,
        recipe_name=recipe,
        overrides=set_ or (),
        minutes=minutes,
        seed=seed,
        device=device,
        restart=restart,
    )


@app.command(epilog="Example: embedforge distill intfloat/e5-mistral-7b-instruct --text docs --out small")
def distill(
    teacher: Annotated[
        str,
        typer.Argument(help="A good embedder: a folder, a hub id, or an endpoint http://HOST/v1#MODEL."),
    ],
    text: Annotated[
        Path, typer.Option("--text", help="A folder of text, Markdown, HTML, PDF or source code; no labels.")
    ],
    student: Annotated[
        str, typer.Option(help="Decoder to start from: a folder, a hub id or a name of `base list`.")
    ] = "embedforge:base",
    out: Annotated[Path, Out] = Path("distill-out"),
    recipe: Annotated[
        str, typer.Option(help="Recipe by name or file, with a stage of objective distill.")
    ] = "distill-small",
    set_: Annotated[list[str] | None, set_option("stages.distill.batch_queries=32")] = None,
    minutes: Minutes = 30.0,
    seed: Seed = 0,
    device: Device = None,
    restart: Restart = False,
) -> None:
    """Make a small embedder that gives a large one's vectors, from a folder of text.

    Documents that the teacher has embedded are then searched with the student's queries, or the student does
    both. The report compares both ways with the teacher, with BM25 and with the decoder as it came, on
    held-out text. Run it again to resume after Ctrl-C. It is quickstart's engine with a teacher.
    """
    _check(text, None, recipe, set_, out, minutes)
    from embedforge.endpoint import is_address
    from embedforge.model.folder import find_folder, require_model
    from embedforge.prove.taught import with_teacher
    from embedforge.recipe import load_recipe

    folders = [name for name in (student, teacher) if not is_address(name) and not name.startswith("file:")]
    for name in folders:
        require_model(name)
    chosen = load_recipe(recipe, set_ or ())
    if student in folders:  # before the teacher, of which the hub has much more to send
        find_folder(student)
    with_teacher(chosen, teacher)
    from embedforge.prove.run import distill as run

    run(
        teacher,
        student,
        text,
        out,
        recipe_name=recipe,
        overrides=set_ or (),
        minutes=minutes,
        seed=seed,
        device=device,
        restart=restart,
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
    from embedforge.files import refuse_file
    from embedforge.model.folder import require_model
    from embedforge.recipe import load_recipe
    from embedforge.recipe.objectives import Merge
    from embedforge.train.mixtures import finished_model

    chosen = load_recipe(recipe, set_ or ())  # before torch is imported: a mistake in it shows at once
    refuse_file(out)
    require_model(chosen.model.base)
    folder = source_folder(recipe, data)
    prune = chosen.model.prune
    pruned_to = prune.vocabulary.texts if prune is not None and prune.vocabulary is not None else ()
    for source in (*pruned_to, *(source for stage in chosen.stages for source in stage.mix.sources)):
        require_source(source, folder)
    for stage in chosen.stages:
        if isinstance(stage.objective, Merge):
            for name in stage.objective.finished:
                require_model(finished_model(name, folder))
    from embedforge.mine.refresh import refresh_stage
    from embedforge.mine.teachers import open_teacher
    from embedforge.runtime import is_first_rank, under_torchrun
    from embedforge.stopping import exit_code
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
            teachers=open_teacher,
        )
    except Interrupted as stop:
        if is_first_rank():
            again = _train_command(recipe, out, set_ or [], data, device, under_torchrun())
            typer.echo(f"{stop}; go on with: {again}", err=True)
        raise typer.Exit(exit_code(stop.cause)) from None
    if is_first_rank():
        typer.echo(f"The model is in {model}; use it with: embedforge.load('{model}').encode_query('...')")


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
    from embedforge.model.folder import find_folder
    from embedforge.show import show_probe

    find_folder(base)

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
