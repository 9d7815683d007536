"""The verbs for training data: curate and catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedforge.cli.app import Device, Seed, app


@app.command()
def curate(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files, BEIR folders, hub:owner/name, catalog:NAME; or NAME=PATH for another name."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of NAME.jsonl.gz, report.html and the mark.")
    ] = Path("curated"),
    kind: Annotated[
        str | None, typer.Option(help="What the rows are (docs/data.md); by default their keys tell.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of BEIR folders and hub datasets.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Of queries that bring none of their own, for --teacher.")
    ] = None,
    cap: Annotated[
        int | None, typer.Option(min=1, help="At most so many Examples of each source, drawn by --seed.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Scored pairs: the lowest score of a positive; 4 by default.")
    ] = None,
    query_length: Annotated[
        str | None, typer.Option(metavar="LEAST:MOST", help="Drop queries outside: 2:64, 2: or :64.")
    ] = None,
    document_length: Annotated[
        str | None, typer.Option(metavar="LEAST:MOST", help="Drop documents outside.")
    ] = None,
    unit: Annotated[str, typer.Option(help="Unit of the lengths: words, characters or tokens.")] = "words",
    tokenizer: Annotated[
        str, typer.Option(help="Decoder whose tokens are counted: embedforge:base, a folder or hub id.")
    ] = "embedforge:base",
    languages: Annotated[
        str | None, typer.Option(metavar="CODES", help="Keep these languages only: en or en,de (ISO 639-1).")
    ] = None,
    language_confidence: Annotated[
        float, typer.Option(help="Least probability with which a text counts as in another language.")
    ] = 0.9,
    exact: Annotated[
        bool, typer.Option("--exact/--no-exact", help="Drop exact duplicates, case and punctuation aside.")
    ] = True,
    near: Annotated[
        float | None, typer.Option(help="Drop near duplicates of at least this Jaccard similarity, 0.5 to 1.")
    ] = None,
    duplicates_of: Annotated[
        str, typer.Option(help="What must repeat: pair (query and positive) or query.")
    ] = "pair",
    against: Annotated[
        list[str] | None,
        typer.Option(help="Decontaminate against this folder of datasets or mteb task; may be repeated."),
    ] = None,
    against_split: Annotated[str, typer.Option(help="Split of the folders of --against.")] = "test",
    documents: Annotated[
        str, typer.Option(help="Documents of search tasks to keep out too: none, relevant or all.")
    ] = "none",
    ngram: Annotated[
        int, typer.Option(help="A shared run of so many words is a copy; 0: no such check.")
    ] = 13,
    bm25: Annotated[
        float, typer.Option(help="BM25 similarity from which a query is a copy, 0 to 1; 0: no such check.")
    ] = 0.0,
    teacher: Annotated[
        str | None, typer.Option(help="Keep pairs that this model, or bm25, finds again (E5's filter).")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Worst rank of a positive that stays.")] = 2,
    pool: Annotated[int, typer.Option(help="Random passages that a positive is ranked among.")] = 100_000,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Clean training data: lengths, languages, duplicates, evaluation sets, pairs that do not match.

    The steps run in this order, each only if asked for (exact duplicates always, unless --no-exact). What is
    dropped, and why, is in OUT/report.html.
    """
    from embedforge.curate.evaluation_texts import find_evaluation_tasks
    from embedforge.curate.language import parse_languages
    from embedforge.curate.lengths import parse_limits
    from embedforge.curate.run import curate as run
    from embedforge.curate.sources import sources_of
    from embedforge.curate.steps import Curation

    curation = Curation(
        query_length=parse_limits(query_length, "--query-length") if query_length is not None else None,
        document_length=parse_limits(document_length, "--document-length")
        if document_length is not None
        else None,
        unit=unit,  # type: ignore[arg-type]
        tokenizer=tokenizer,
        languages=parse_languages(languages) if languages is not None else (),
        language_confidence=language_confidence,
        exact=exact,
        near=near,
        duplicates_of=duplicates_of,  # type: ignore[arg-type]
        tasks=find_evaluation_tasks(against or [], against_split),
        documents=documents,  # type: ignore[arg-type]
        ngram=ngram,
        bm25=bm25,
        teacher=teacher,
        top_k=top_k,
        pool=pool,
        seed=seed,
        device=device,
    )
    chosen = sources_of(
        sources, kind=kind, split=split, instruction=instruction, cap=cap, threshold=threshold
    )
    run(chosen, out, curation)
    typer.echo(f"Report: {out / 'report.html'}")


@app.command()
def catalog(
    name: Annotated[
        str | None, typer.Argument(help="One dataset in full; all as a table without it.")
    ] = None,
    paper: Annotated[
        str | None, typer.Option(help="Only what this paper used: nv-embed-v1, nv-embed-v2, e5-mistral.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only this kind: examples, labels, clusters, scored_pairs.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Ask the hub whether each is still there; exit code 1 if not.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the entries as JSON.")] = False,
) -> None:
    """List the public datasets of the papers: where they are, what they hold, who used how much of them."""
    from embedforge.data.catalog_show import catalog as run

    if not run(name, paper=paper, kind=kind, check=check, as_json=json_):
        raise typer.Exit(1)
