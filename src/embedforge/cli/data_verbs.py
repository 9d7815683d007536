"""Training data: written by a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Seed, app


@app.command()
def synthesize(
    endpoint: Annotated[
        str, typer.Option(help="Address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    ],
    model: Annotated[str, typer.Option(help="The name that the endpoint knows the model by.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the journal, the Examples and the report.")
    ] = Path("synthetic"),
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Write queries for the passages of this folder's documents, not for invented tasks."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="How many to ask for; fewer are kept.")] = 1000,
    group: Annotated[
        list[str] | None,
        typer.Option(help="short-long, long-short, short-short, long-long, sts, bitext; may be repeated."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            help="English name of a language, or 'all' for the paper's 93; may be repeated. English by "
            "default; with --corpus that of each passage."
        ),
    ] = None,
    max_requests: Annotated[int | None, typer.Option(help="Stop after so many requests in all runs.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop after so many tokens, read and written, in all runs.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Stop at this cost of all runs; needs prices.")
    ] = None,
    price_in: Annotated[float | None, typer.Option(help="Price of a million tokens of prompts.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price of a million tokens of answers.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.")] = 300.0,
    max_answer_tokens: Annotated[
        int, typer.Option(min=1, help="Limit of one answer; what is cut off is dropped.")
    ] = 4096,
    temperature: Annotated[float, typer.Option(help="Of sampling; 1 in the paper.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of sampling; 1 in the paper.")] = 1.0,
    key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Environment variable with the endpoint's key; OPENAI_API_KEY if it is set."
        ),
    ] = None,
    show_prompts: Annotated[
        bool, typer.Option("--show-prompts", help="Print the first prompts of each group, ask nothing, stop.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Have a language model write training data: E5-Mistral's two steps, or queries for your own documents.

    Run it again to go on after Ctrl-C, a crash or a spent budget, or to ask for more: nothing is paid twice.
    """
    from rich.console import Console

    from embedforge.synthesize import run
    from embedforge.synthesize.budget import Budget

    settings = run.Settings(
        endpoint,
        model,
        examples=examples,
        groups=tuple(group or ()),
        languages=tuple(language or ()),
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_answer_tokens=max_answer_tokens,
        concurrency=concurrency,
        timeout=timeout,
        key_variable=key_variable,
    )
    passages = None if corpus is None else run.read_passages(corpus, seed=seed)
    if show_prompts:
        run.print_preview(run.plan_of(settings, passages), Console())
        return
    budget = Budget(max_requests, max_tokens, max_cost, price_in, price_out)
    result = run.synthesize(out, settings, passages=passages, budget=budget)
    run.print_result(out, result, Console())
    if result.is_interrupt:
        raise typer.Exit(130)
