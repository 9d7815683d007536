"""`embedforge quickstart`: a folder of the reader's own text in, a proven embedding model out.

Each phase leaves its result in OUT and is skipped when that is there, so an interrupted run goes on:

    OUT/quickstart.json     what was asked, and the steps that fit the time
    OUT/data/*.jsonl        Examples with mined negatives (read them: they are what the model learns)
    OUT/data/base.npz       the untrained decoder's vectors, for mining and for the comparison
    OUT/run/                the training run: log, checkpoints, model
    OUT/index/              the whole folder, searchable
    OUT/report.html, OUT/report.json
"""

from __future__ import annotations

import sysconfig
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.files import write_json
from embedforge.model.encoder import embedding_model, load
from embedforge.quickstart.base_vectors import BaseVectors, base_vectors
from embedforge.quickstart.budget import fit_steps
from embedforge.quickstart.compare import TRAINED, Comparison, compare
from embedforge.quickstart.corpus import Corpus, read_corpus
from embedforge.quickstart.examples import Pool, retrieval_examples, retrieval_instruction, retrieval_pool
from embedforge.quickstart.page import build_report, terminal_table
from embedforge.quickstart.prepare import (
    CLUSTER_FILE,
    RETRIEVAL_FILE,
    mine,
    write_training_files,
)
from embedforge.recipe import Recipe, Source, load_recipe, parse_recipe
from embedforge.recipe.objectives import Contrastive
from embedforge.report.page import write_report
from embedforge.run_folder import claim, next_steps
from embedforge.runtime import (
    circumstances,
    keep_freed_memory,
    native_precision,
    pick_device,
    release_freed_memory,
)
from embedforge.search.index import Document, build_index
from embedforge.train.progress import progress_bar
from embedforge.train.resumable import train_or_stop

Floats = NDArray[np.float32]


def quickstart(
    path: Path | None,
    out: Path,
    *,
    base: str = "embedforge:base",
    recipe_name: str = "tiny",
    max_minutes: float = 5.0,
    seed: int = 0,
    device: str | None = None,
) -> Comparison:
    """Run all phases and print the short table.

    Args:
        path: a folder of Python source, Markdown or text; the interpreter's standard library if None.
        out: a new folder, or that of an interrupted run with the same settings.
        base: the decoder to start from.
        recipe_name: a shipped recipe or a YAML file; its sources are replaced by this folder's.
        max_minutes: the whole run's time; training takes the steps that fit, at most the recipe's.
        seed: of split, mining, training and bootstrap.
        device: "cpu", "cuda", ...; CUDA where there is one when None.

    Raises:
        EmbedforgeError: too little text, or `out` holds a run with other settings.
        KeyboardInterrupt: after Ctrl-C during training, with the state saved.
    """
    started = time.monotonic()
    keep_freed_memory()
    console = Console(stderr=True)
    folder = (path or Path(sysconfig.get_paths()["stdlib"])).resolve()
    recipe = _load_recipe(recipe_name, [f"seed={seed}", f"model.base={base}"], device, console)
    asked = {
        "folder": str(folder),
        "base": base,
        "recipe": recipe_name,
        "seed": seed,
        "max_minutes": max_minutes,
    }
    plan = claim(out, asked, "quickstart.json", "quickstart")

    corpus = _read(folder, seed, console)
    recipe = _with_sources(recipe, corpus)
    pool = retrieval_pool(corpus.test, distractors=[*corpus.train, *corpus.dev])
    vectors, speed = base_vectors(out, recipe, corpus, pool, device)
    _write_data(out, corpus, seed, console)
    if "recipe" not in plan:
        left = max_minutes * 60 - (time.monotonic() - started)
        fitted = fit_steps(recipe, speed, left)
        plan = {**plan, "recipe": fitted.model_dump(mode="json")}
        write_json(out / "quickstart.json", plan)
    recipe = parse_recipe(plan["recipe"], str(out / "quickstart.json"))
    train_or_stop(
        recipe,
        out / "run",
        source_folder=out / "data",
        console=console,
        device=device,
        held_out=retrieval_examples(corpus.dev),
    )
    release_freed_memory()
    comparison = _compare(out, folder, corpus, pool, vectors, plan, device, console, started)
    Console().print(terminal_table(comparison))
    Console().print(next_steps(out, corpus.test[0].query), highlight=False, markup=False, soft_wrap=True)
    return comparison


def _load_recipe(name: str, overrides: list[str], device: str | None, console: Console) -> Recipe:
    """Read the recipe; in float32 where bfloat16 is only emulated, which is many times slower."""
    recipe = load_recipe(name, overrides)
    precision = native_precision(recipe.training.precision, pick_device(device))
    if precision == recipe.training.precision:
        return recipe
    console.print("no fast bfloat16 on this machine: training in float32, fewer steps in the same time")
    return load_recipe(name, [*overrides, f"training.precision={precision}"])


def _read(folder: Path, seed: int, console: Console) -> Corpus:
    with progress_bar(console) as bar:
        task = bar.add_task("reading", total=None, note="")
        corpus = read_corpus(
            folder, seed=seed, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    console.print(
        f"{folder}: {len(corpus.train):,} texts to train on, {len(corpus.dev):,} for development, "
        f"{len(corpus.test):,} held out in whole "
        f"{'packages' if corpus.counts.get('groups_are_packages') else 'files'}"
    )
    return corpus


def _write_data(out: Path, corpus: Corpus, seed: int, console: Console) -> None:
    """Mine hard negatives and write the training files."""
    if (out / "data" / CLUSTER_FILE).exists():
        return
    with console.status("mining hard negatives"), TemporaryDirectory() as work:
        mined = mine(corpus, Path(work), is_code=_is_code(corpus), seed=seed)
        write_training_files(out / "data", corpus, mined, seed)
    found = sum(len(example.negatives) for example in mined)
    console.print(f"mined {found:,} hard negatives for {len(mined):,} queries")


def _with_sources(recipe: Recipe, corpus: Corpus) -> Recipe:
    """Replace a recipe's sources: all stages train on retrieval, those without in-batch negatives on both."""
    retrieval = Source(path=RETRIEVAL_FILE)
    same_package = Source(path=CLUSTER_FILE, symmetric=True, in_batch_negatives=False)
    stages = []
    for stage in recipe.stages:
        if not isinstance(stage.objective, Contrastive):
            raise EmbedforgeError(
                f"recipe '{recipe.name}', stage '{stage.name}': quickstart trains contrastive stages; "
                f"for objective '{stage.objective.kind}' on a folder of texts use embedforge adapt"
            )
        sources = (retrieval,) if stage.objective.in_batch != "none" else (retrieval, same_package)
        stages.append(stage.model_copy(update={"mix": stage.mix.model_copy(update={"sources": sources})}))
    contract = recipe.contract.model_copy(update={"default_instruction": retrieval_instruction(corpus.train)})
    return recipe.model_copy(update={"stages": tuple(stages), "contract": contract})


def _compare(
    out: Path,
    folder: Path,
    corpus: Corpus,
    pool: Pool,
    base: BaseVectors,
    plan: dict[str, Any],
    device: str | None,
    console: Console,
    started: float,
) -> Comparison:
    """Encode everything with the trained model, compare, and write index and report."""
    seed = plan["asked"]["seed"]
    st = load(str(out / "run" / "model"), device=str(pick_device(device)))
    model = embedding_model(st)
    with progress_bar(console) as bar:
        task = bar.add_task(
            "encoding with the trained model", total=len(pool.queries) + len(pool.documents), note=""
        )
        queries = encode(
            model,
            list(pool.queries.values()),
            model.contract.query_prefix(),
            suffix=model.contract.query_suffix(),
            progress=lambda texts: bar.advance(task, texts),
        )
        documents = encode(
            model,
            list(pool.documents.values()),
            model.contract.document_prefix(),
            suffix=model.contract.document_suffix(),
            progress=lambda texts: bar.advance(task, texts),
        )
    build_index(
        out / "index",
        documents,
        [Document(identity, text, location=identity) for identity, text in pool.documents.items()],
        model=str((out / "run" / "model").resolve()),
        contract=model.contract,
    )
    held_out = len(pool.queries)
    query_vectors = {name: values[:held_out] for name, values in base.queries.items()} | {TRAINED: queries}
    document_vectors = {**base.documents, TRAINED: documents}
    with console.status("comparing and drawing the report"):
        comparison = compare(
            pool, corpus.test, query_vectors, document_vectors, is_code=_is_code(corpus), seed=seed
        )
        minutes = (time.monotonic() - started) / 60
        details = {
            **plan["asked"],
            "steps": {stage["name"]: stage["steps"] for stage in plan["recipe"]["stages"]},
            "corpus": corpus.counts,
            "minutes": round(minutes, 2),
            **circumstances(pick_device(device)),
        }
        write_json(out / "report.json", {**comparison.as_json(), "details": details})
        report = build_report(
            comparison,
            pool,
            corpus.test,
            document_vectors,
            out / "run" / "log.jsonl",
            title=f"embedforge quickstart: {folder.name}",
            details=details,
            seed=seed,
        )
        write_report(out / "report.html", report)
    console.print(f"finished in {minutes:.1f} minutes")
    return comparison


def _is_code(corpus: Corpus) -> bool:
    return corpus.train[0].kind in {"function", "class", "method"}
