"""What is done with a finished model, one's own or a published one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Dtype, MaxTokens, app
from embedforge.errors import EmbedforgeError


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Model folders or hub ids, and 'bm25'; several stand side by side.")
    ],
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
    from embedforge.evaluate.run import evaluate as run
    from embedforge.evaluate.terminal import print_scores

    run(
        models,
        tasks,
        out,
        instructions=_pairs(instruction or []),
        split=split,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
    )
    print_scores(out)


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(help="The folder of a quickstart or adapt run, or of an index.")],
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 5,
    device: Device = None,
) -> None:
    """Search the text that quickstart or adapt has indexed."""
    from embedforge.search.run import search as run

    run(folder, query, k=k, device=device)


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="An LLM2Vec base (or its MNTP folder), an official NV-Embed folder, or a model folder."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
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
    """Write a published checkpoint as one model folder, its adapters merged, or a model in another dtype."""
    from embedforge.data.marks import copy_mark_of_model
    from embedforge.model.folder import require_model

    for name in (source, *(adapter or ())):  # before torch is imported: a mistake in it shows at once
        require_model(name)
    from embedforge.model.export import export as run

    run(
        source,
        out,
        adapters=adapter or (),
        pooling=pooling,
        chat_template=chat_template,
        instruction=instruction,
        max_tokens=max_tokens,
        text_max_tokens=text_max_tokens,
        skip_instruction=skip_instruction,
        attention=attention,
        normalize=normalize,
        dtype=dtype,
    )
    copy_mark_of_model(Path(source), out)
    typer.echo(f"The model is in {out}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint in the official NV-Embed layout (v1 or v2).")],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
) -> None:
    """Convert an official NV-Embed checkpoint into an embedforge folder, shard by shard, in little memory."""
    from embedforge.files import read_object

    read_object(source / "config.json")  # before torch is imported: a mistake in it shows at once
    from embedforge.model.nvembed import convert_nvembed

    convert_nvembed(source, out)
    typer.echo(f"The model is in {out}")


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator:
            raise EmbedforgeError(f"--instruction takes TASK=TEXT, got '{item}'")
        pairs[key] = value
    return pairs
