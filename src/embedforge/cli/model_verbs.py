"""What is done with models that are there: one's own, published ones, and decoders made smaller."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Dtype, MaxTokens, app, pairs_of
from embedforge.errors import EmbedforgeError


@app.command()
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Model folders or hub ids, and 'bm25'; several stand side by side. By default the embedder "
            "in the package, and bm25."
        ),
    ] = None,
    *,
    tasks: Annotated[
        str,
        typer.Option(help="A folder of datasets (docs/evaluation.md), or mteb task names, comma separated."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where results.json and report.html go.")] = Path(
        "evaluation"
    ),
    instruction: Annotated[
        list[str] | None, typer.Option(metavar="TASK=TEXT", help="Instruction of a task; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the datasets in a folder.")] = "test",
    max_tokens: MaxTokens = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Measure models on retrieval, reranking, classification, clustering, STS, NLI and bitext with mteb.

    Run again to go on where it stopped: finished tasks are kept.
    """
    from embedforge.console import say
    from embedforge.evaluate.run import BM25
    from embedforge.evaluate.run import evaluate as run
    from embedforge.evaluate.terminal import print_scores
    from embedforge.model.folder import DEFAULT_MODEL

    if not models:
        models = [DEFAULT_MODEL, BM25]
        say(f"No model was named: {DEFAULT_MODEL}, the embedder in the package, beside {BM25}.")
    run(
        models,
        tasks,
        out,
        instructions=pairs_of("--instruction", "TASK=TEXT", instruction or []),
        split=split,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
    )
    print_scores(out)


@app.command(epilog="Example: embedforge export run/model exported --to onnx --int8")
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A model folder or hub id, an official NV-Embed folder, or an LLM2Vec base (or its "
            "MNTP folder)."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="onnx, openvino, gguf or sentence-transformers; embedforge: a model folder, in another "
            "dtype or of a published checkpoint."
        ),
    ] = "embedforge",
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights in 8 bits, for onnx, openvino, gguf.")
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(help="Check the export with this file, a text a line, in place of 200 texts of ours."),
    ] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Least cosine of each checked text with the model's own vector; 0.9999, with --int8 0.98.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA adapter's folder or hub id; repeat it in the order of training."),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="mean, weighted_mean, eos_token, last_token or bos_token; as llm2vec_config.json says, else "
            "mean."
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(help="What the model was trained with: '[INST] {text} [/INST]', say; none by default."),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="Default instruction of encode_query.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of the whole string; 512.")] = None,
    text_max_tokens: Annotated[
        int | None, typer.Option(help="Tokens to which a text is shortened, by words; 400, 0 for no limit.")
    ] = None,
    skip_instruction: Annotated[
        bool | None, typer.Option(help="Leave the instruction and BOS out of the pool.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="bidirectional or causal.")] = None,
    normalize: Annotated[bool | None, typer.Option(help="Vectors of unit length.")] = None,
    dtype: Dtype = None,
) -> None:
    """Write a model for another program (--to), or a published checkpoint as one folder, its adapters merged.

    For another program, what was written is run by that program on the contract's goldens and 200 more texts
    first, and kept only if token ids and vectors are the model's. The options from --adapter on say how a
    published checkpoint is read.
    """
    from embedforge.data.marks import copy_mark_of_model
    from embedforge.export.forms import require_form
    from embedforge.files import refuse_file
    from embedforge.model.folder import find_folder, require_model

    refuse_file(out)
    names = source, *(adapter or ())
    for name in names:
        require_model(name)
    checkpoint = {
        "pooling": pooling,
        "chat_template": chat_template,
        "instruction": instruction,
        "max_tokens": max_tokens,
        "text_max_tokens": text_max_tokens,
        "skip_instruction": skip_instruction,
        "attention": attention,
        "normalize": normalize,
        "dtype": dtype,
    }
    if to != "embedforge":
        _refuse_options(to, checkpoint | {"adapter": adapter or None})
        require_form(to, int8)
    else:
        _refuse_options(to, {"int8": int8 or None, "texts": texts, "min_cosine": min_cosine})
    for name in names:  # before torch is imported, but last, as the hub may have much to send
        find_folder(name)
    if to != "embedforge":
        _export_to(source, out, to, int8, texts, min_cosine)
    else:
        from embedforge.model.export import export as run

        run(source, out, adapters=adapter or (), **checkpoint)  # type: ignore[arg-type]
    copy_mark_of_model(Path(source), out)
    typer.echo(f"The model is in {out}")


def _refuse_options(to: str, options: Mapping[str, object]) -> None:
    """Refuse options that belong to the other use of `export`."""
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        way_out = (
            "they are for --to onnx, openvino, gguf or sentence-transformers"
            if to == "embedforge"
            else "they are for a model folder: write that first (embedforge export SOURCE FOLDER ...), then "
            f"embedforge export FOLDER OUT --to {to}"
        )
        raise EmbedforgeError(f"--to {to} has no use for {', '.join(given)}; {way_out}")


def _export_to(
    source: str, out: Path, to: str, int8: bool, texts: Path | None, min_cosine: float | None
) -> None:
    from embedforge.console import note, say, stdout
    from embedforge.export.run import export_to

    result = export_to(source, out, to, int8=int8, texts=texts, min_cosine=min_cosine)
    say(result.table(), stdout())
    if result.left_out:
        note(f"{result.left_out} texts of the check were left out: they have more tokens than the file takes")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint in the official NV-Embed layout (v1 or v2).")],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
) -> None:
    """Convert an official NV-Embed checkpoint into an embedforge folder, shard by shard, in little memory."""
    from embedforge.files import read_object, refuse_file
    from embedforge.model.config_check import check_folder

    refuse_file(out)
    read_object(source / "config.json")  # before torch is imported: a mistake in it shows at once
    check_folder(source)
    from embedforge.model.nvembed import convert_nvembed

    convert_nvembed(source, out)
    typer.echo(f"The model is in {out}")


@app.command(epilog="Example: embedforge prune embedforge:base small --layers 2 --vocabulary pairs.jsonl")
def prune(
    base: Annotated[str, typer.Argument(help="A decoder: embedforge:base, a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; use it as model.base.")],
    layers: Annotated[
        str | None,
        typer.Option(help="Keep the first so many layers (6), or those of these numbers from 0 (0,1,2,5)."),
    ] = None,
    vocabulary: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep the tokens that this file's texts need: .txt of a text a line, or any training data; "
            "may be repeated."
        ),
    ] = None,
    min_count: Annotated[
        int, typer.Option(min=1, help="Cut off tokens that occur less often in those texts.")
    ] = 1,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the repository to run its own code.")
    ] = False,
) -> None:
    """Make a decoder smaller before it is trained: fewer layers, and a vocabulary cut to your text.

    The texts keep their tokens, any other text can still be written, in more and shorter ones, and the layers
    that stay compute what they did, bit by bit; that is checked. A pruned decoder wants training: embedforge
    train RECIPE --set model.base=OUT. A recipe can prune by itself: model.prune (docs/weights.md).
    """
    from embedforge.curate.sources import sources_of
    from embedforge.data.convert import read_source
    from embedforge.files import refuse_file
    from embedforge.model.folder import find_folder, require_model

    refuse_file(out)
    kept = None if layers is None else _layers(layers)
    if layers is None and vocabulary is None:
        raise EmbedforgeError("nothing is to be pruned: name --layers, a file of --vocabulary, or both")
    if vocabulary is None and min_count > 1:
        raise EmbedforgeError("--min-count is for the texts of --vocabulary; name a file of them")
    sources = sources_of(vocabulary or [])
    require_model(base)
    examples = [row for source in sources for row in read_source(source, seed=0)]
    find_folder(base)  # before torch is imported, but last, as the hub may have much to send
    from embedforge.model.prune import prune as run
    from embedforge.train.prune import texts_of

    before, after = run(
        base,
        out,
        layers=kept,
        texts=texts_of(examples) if sources else None,
        min_count=min_count,
        trust_remote_code=trust_remote_code,
    )
    typer.echo(f"before: {before}\nafter:  {after}\nThe decoder is in {out}; train it: model.base={out}")


@app.command(epilog="Example: embedforge merge run-a/model run-b/model --out soup --dev held-out.jsonl")
def merge(
    models: Annotated[
        list[str], typer.Argument(help="Two or more model folders that were trained from one base.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder to write.")],
    how: Annotated[
        str, typer.Option(help="mean, or slerp: on the arc between the weights, which keeps their length.")
    ] = "mean",
    weights: Annotated[
        str | None, typer.Option(metavar="W,W...", help="Weight of each model (2,1); all alike by default.")
    ] = None,
    dev: Annotated[
        list[str] | None,
        typer.Option(
            help="A file of held-out Examples: only models that do not lower retrieval on it are merged; may "
            "be repeated."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Make one model of several finished ones, as fast to use as each: the mean of their weights, or SLERP.

    It is for runs from one base that differ in data, order or seed. With --dev, greedily (model soups): from
    the best model on, each is added only where MRR@10 does not fall, so the result is never worse there than
    the best one. The table says what was kept and why; OUT/merge.json too.
    """
    from embedforge.data.readers import require_file
    from embedforge.files import refuse_file
    from embedforge.model.folder import require_model

    refuse_file(out)
    for name in models:
        require_model(name)
    for file in dev or ():
        require_file(Path(file))
    shares = () if weights is None else _numbers("--weights", weights)
    from embedforge.train.merge import merge as run
    from embedforge.train.merge import print_parts

    parts = run(models, out, how=how, weights=shares, dev=dev or (), device=device)  # type: ignore[arg-type]
    print_parts(parts)
    typer.echo(f"The model is in {out}")


def _layers(text: str) -> int | list[int]:
    """Read 6 or 0,1,2,5, as a recipe would."""
    from pydantic import ValidationError

    from embedforge.recipe.prune import Prune

    given = _numbers("--layers", text)
    if any(number != int(number) for number in given):
        raise EmbedforgeError(f"--layers takes whole numbers, got '{text}'")
    numbers = [int(number) for number in given]
    layers = numbers if "," in text else numbers[0]
    try:
        Prune.model_validate({"layers": layers})
    except ValidationError:
        raise EmbedforgeError(
            f"--layers is a number from 1, or numbers from 0 in their order, each once; got '{text}'"
        ) from None
    return layers


def _numbers(option: str, text: str) -> list[float]:
    numbers: list[float] = []
    with contextlib.suppress(ValueError):
        numbers = [float(part) for part in text.split(",")]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise EmbedforgeError(f"{option} takes numbers with commas between them, got '{text}'")
    return numbers
