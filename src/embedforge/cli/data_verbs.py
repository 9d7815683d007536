"""Training data: written by a language model, and mined for hard negatives."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Dtype, MaxTokens, Seed, app


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
    test: Annotated[
        bool,
        typer.Option(
            "--test",
            help="Write queries for the tenth of --corpus that is held out: a test set for `evaluate`.",
        ),
    ] = False,
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
    requests_per_minute: Annotated[
        float | None, typer.Option(help="Send at most so many, spread evenly.")
    ] = None,
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
    from embedforge.console import note, stdout
    from embedforge.errors import EmbedforgeError
    from embedforge.stopping import exit_code
    from embedforge.synthesize import run, terminal
    from embedforge.synthesize.budget import Budget
    from embedforge.synthesize.test_set import TestSet

    settings = run.SynthesisSettings(
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
        requests_per_minute=requests_per_minute,
        timeout=timeout,
        key_variable=key_variable,
    )
    passages, test_set = None, None
    if corpus is not None:
        documents = run.read_documents(corpus, seed=seed, out=out)
        for notice in documents.notices:
            note(notice)
        passages = documents.held_out if test else documents.train
        test_set = TestSet(corpus.resolve().name, documents.train) if test else None
    elif test:
        raise EmbedforgeError("--test writes queries for held-out documents; name their folder with --corpus")
    if show_prompts:
        terminal.print_preview(run.plan_of(settings, passages), stdout())
        return
    budget = Budget(max_requests, max_tokens, max_cost, price_in, price_out)
    result = run.synthesize(out, settings, passages=passages, test=test_set, budget=budget)
    terminal.print_result(out, result, stdout(), test_set)
    if result.interrupt is not None:
        raise typer.Exit(exit_code(result.interrupt))


@app.command()
def mine(
    source: Annotated[
        str,
        typer.Argument(
            help="Examples (.jsonl, .csv, .parquet), a BEIR folder, catalog:NAME or hub:owner/name."
        ),
    ],
    teacher: Annotated[
        list[str],
        typer.Option(
            help="A model, bm25, bm25:identifiers, run:FILE, http://HOST/v1#MODEL; several are fused."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where examples.jsonl, audit.html ... go.")] = Path(
        "mined"
    ),
    corpus: Annotated[
        Path | None,
        typer.Option(help="File of documents or BEIR folder; the source's own documents by default."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="examples, retrieval, nli, scored_pairs or texts: what a record is (docs/data.md); "
            "retrieval for a BEIR folder, the entry's for catalog:NAME, else examples by default."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a BEIR folder or a hub dataset; train by default.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Of queries without their own; catalog:NAME brings one.")
    ] = None,
    cap: Annotated[int | None, typer.Option(min=1, help="At most so many Examples.")] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Most negatives an Example gets.")] = 7,
    candidates: Annotated[int, typer.Option(min=1, help="Taken from each teacher's ranking.")] = 100,
    rule: Annotated[
        str, typer.Option(help="percentage, margin, absolute, shifted or top_k (docs/mining.md).")
    ] = "percentage",
    value: Annotated[float | None, typer.Option(help="Of the rule; the paper's best by default.")] = None,
    sample_from: Annotated[
        int | None, typer.Option(min=1, help="Draw from so many best survivors; the best by default.")
    ] = None,
    keep_first: Annotated[bool, typer.Option("--keep-first", help="Draw, but always take the best.")] = False,
    query_prompt: Annotated[
        str | None,
        typer.Option(help="Before queries, for models without contract; may hold {instruction}."),
    ] = None,
    document_prompt: Annotated[str | None, typer.Option(help="Before documents, likewise.")] = None,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with an endpoint's key.")
    ] = "OPENAI_API_KEY",
    index: Annotated[
        str, typer.Option(help="exact, or a faiss factory for very large corpora: IVF4096,SQ8.")
    ] = "exact",
    memory_gb: Annotated[
        float, typer.Option(help="What mining may take besides a model, whatever the corpus' size.")
    ] = 4.0,
    work: Annotated[
        Path | None, typer.Option(help="Where corpus and vectors are kept; OUT/work by default.")
    ] = None,
    max_tokens: MaxTokens = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Find hard negatives: teachers rank a corpus, a rule keeps what is safely no answer.

    Run again to go on where it stopped; read audit.html before training on the result.
    """
    from embedforge.console import advancing, progress_bar, say, stdout
    from embedforge.data.beir import is_beir
    from embedforge.mine.embedder import Prompts
    from embedforge.mine.keep import KeepRule
    from embedforge.mine.pipeline import Selection
    from embedforge.mine.run import mine as run
    from embedforge.mine.settings import Teachers
    from embedforge.mine.terminal import summary
    from embedforge.recipe import source_of

    kind = kind or ("retrieval" if is_beir(source) else None)
    spec = source_of(source, kind=kind, split=split, instruction=instruction, cap=cap)
    with progress_bar() as bar:
        prompts = Prompts(query_prompt, document_prompt)
        kept = KeepRule(rule, value, sample_from, keep_first)  # type: ignore[arg-type]
        facts = run(
            spec,
            out,
            Teachers(tuple(teacher), prompts, max_tokens, dtype, key_variable=key_variable, index=index),
            Selection(negatives, candidates, rule=kept, seed=seed),
            corpus=corpus,
            memory_gb=memory_gb,
            device=device,
            work=work,
            progress=partial(advancing, bar),
        )
    say(summary(out, facts), stdout())
