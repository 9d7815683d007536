"""`embedforge adapt`: a folder of plain documents in, an embedding model that fits them better out.

Each phase leaves its result in OUT and is skipped when that is there, so an interrupted run goes on:

    OUT/adapt.json         what was asked, and the plan: recipe, steps, sizes
    OUT/data/              what was read of the folder (texts.py says what is in which file)
    OUT/vectors/           what each system made of held-out text, until the report is written
    OUT/run/               the training run: log, checkpoints, model
    OUT/index/             the folder's passages, searchable
    OUT/report.html, OUT/report.json
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from embedforge.adapt.figures import figures_of
from embedforge.adapt.held_out import HeldOut, held_out_of
from embedforge.adapt.page import as_lines, build_report
from embedforge.adapt.plan import Sizes, fit, measure
from embedforge.adapt.settings import choose_recipe
from embedforge.adapt.systems import (
    Build,
    Seen,
    require_head,
    see,
    system_after_mntp,
    system_names,
    trained_systems,
    untrained_systems,
    without_adapter,
)
from embedforge.adapt.table import terminal_table
from embedforge.adapt.texts import read_texts
from embedforge.console import progress_bar
from embedforge.documents import Chunk, Folder
from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, write_json
from embedforge.model.encoder import embedding_model, load
from embedforge.recipe import Recipe, parse_recipe
from embedforge.report.page import write_report
from embedforge.run_folder import claim, facts, next_steps
from embedforge.runtime import keep_freed_memory, pick_device, release_freed_memory
from embedforge.search.index import INDEX_FILE, Document, build_index
from embedforge.train.resumable import train_or_stop
from embedforge.train.stages import prepare_model

PLAN, REPORT = "adapt.json", "report.json"


def adapt(
    folder: Path,
    out: Path,
    *,
    base: str | None = None,
    recipe_name: str | None = None,
    overrides: Sequence[str] = (),
    minutes: float = 10.0,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Run all phases, print the short table, and return what report.json holds.

    Args:
        folder: of text, Markdown, HTML, PDF or source code; see `embedforge.documents.read_folder`.
        out: a new folder, or that of an interrupted run with the same settings.
        base: the decoder to start from; the recipe's, or the bundled one, when None.
        recipe_name: a shipped recipe or a YAML file, with stages of MNTP and SimCSE; chosen by the base
            when None. Its sources are replaced by this folder's.
        overrides: "key=value" changes of the recipe.
        minutes: the whole run's time; training takes the steps that fit, at most the recipe's.
        seed: of what is held out, drawn, trained and resampled.
        device: "cpu", "cuda", ...; CUDA where there is one when None.

    Raises:
        EmbedforgeError: too little text, a base that cannot do what the recipe asks, or `out` holds a run
            with other settings.
        KeyboardInterrupt: after Ctrl-C during training, with the state saved.
    """
    if minutes <= 0:
        raise EmbedforgeError(f"--minutes is the time of the whole run, above 0; got {minutes:g}")
    started = time.monotonic()
    keep_freed_memory()
    console = Console(stderr=True)
    asked = {
        "folder": str(folder.resolve()),
        "base": base,
        "recipe": recipe_name,
        "set": list(overrides),
        "minutes": minutes,
        "seed": seed,
    }
    plan = claim(out, asked, PLAN, "adapt")
    if not (out / REPORT).exists():
        recipe = None
        if "recipe" not in plan:
            recipe = choose_recipe(base, recipe_name, overrides, seed=seed, device=device, console=console)
        texts = _read(folder, out, plan, recipe, console)
        if recipe is not None:
            plan = _plan(out, plan, recipe, texts, device, started, console)
        _work(out, plan, texts, device, console)
        console.print(f"finished in {(time.monotonic() - started) / 60:.1f} minutes", highlight=False)
    report = read_object(out / REPORT)
    Console().print(terminal_table(report))
    Console().print(
        next_steps(out, report["question"] or "what you look for"),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return report


def _read(folder: Path, out: Path, plan: dict[str, Any], recipe: Recipe | None, console: Console) -> Folder:
    """Read the folder, or what an earlier start read of it."""
    asked = plan["asked"]
    with progress_bar(console) as bar:
        task = bar.add_task("reading", total=None, note="")
        texts = read_texts(
            out / "data",
            folder,
            max_tokens=recipe.contract.max_tokens if recipe else plan["recipe"]["contract"]["max_tokens"],
            minutes=asked["minutes"],
            seed=asked["seed"],
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for notice in texts.notices:
        console.print(f"note: {notice}", highlight=False, markup=False)
    unread = texts.counts.get("files_over_limit", 0)
    if unread:
        console.print(
            f"note: {unread:,} files, drawn by the seed, are not read: there is more text than "
            f"{asked['minutes']:g} minutes are good for. More --minutes read more.",
            highlight=False,
        )
    console.print(
        f"{folder}: {len(texts.train):,} passages and {len(texts.sentences):,} sentences to train on; "
        f"{len(texts.held_out):,} passages and {len(texts.pairs):,} questions held out",
        highlight=False,
    )
    return texts


def _plan(
    out: Path,
    plan: dict[str, Any],
    recipe: Recipe,
    texts: Folder,
    device: str | None,
    started: float,
    console: Console,
) -> dict[str, Any]:
    """Measure the machine, and write down what fits the time."""
    with console.status("measuring the machine"):
        model = prepare_model(without_adapter(recipe), device)
        require_head(recipe, model)
        measured = measure(model, texts, recipe.seed)
    seconds = 60 * plan["asked"]["minutes"]
    fitted, sizes = fit(recipe, texts, measured, seconds=seconds, left=seconds - (time.monotonic() - started))
    plan = {
        **plan,
        "recipe": fitted.model_dump(mode="json"),
        "sizes": asdict(sizes),
        "measured": asdict(measured),
    }
    write_json(out / PLAN, plan)
    steps = ", ".join(
        f"{short.steps} of {full.steps} steps of {short.name}"
        for short, full in zip(fitted.stages, recipe.stages, strict=True)
    )
    console.print(
        f"recipe {recipe.name}: {steps}; {measured.tokens_per_second:,.0f} tokens/s encoded here",
        highlight=False,
    )
    return plan


def _work(out: Path, plan: dict[str, Any], texts: Folder, device: str | None, console: Console) -> None:
    """Compare, train, compare, index and report, as planned."""
    recipe, sizes = parse_recipe(plan["recipe"], str(out / PLAN)), Sizes(**plan["sizes"])
    held_out = held_out_of(texts, sizes, recipe.seed)
    seen = _see(out, untrained_systems(recipe, device), held_out, recipe, sizes, console)
    train_or_stop(recipe, out / "run", source_folder=out / "data", console=console, device=device)
    release_freed_memory()
    seen |= _see(out, trained_systems(recipe, out / "run", device), held_out, recipe, sizes, console)
    _index(out, texts, sizes, recipe.seed, device, console)
    with console.status("comparing and drawing the report"):
        _report(out, plan, recipe, texts, held_out, seen, device)
    for file in _vector_files(out, recipe).values():
        file.unlink(missing_ok=True)
    (out / "vectors").rmdir()


def _see(
    out: Path,
    systems: Iterable[tuple[str, Build]],
    held_out: HeldOut,
    recipe: Recipe,
    sizes: Sizes,
    console: Console,
) -> dict[str, Seen]:
    """Run systems over held-out text, or read what an earlier start kept of them."""
    files, seen = _vector_files(out, recipe), {}
    total = len(held_out.pairs) + len(held_out.documents) + 2 * len(held_out.halves)
    for name, build in systems:
        if not files[name].exists():
            with progress_bar(console) as bar:
                task = bar.add_task(f"encoding: {name}", total=total, note="")
                found = see(
                    build(),
                    held_out,
                    recipe,
                    most_chunks=sizes.chunks,
                    seed=recipe.seed,
                    progress=lambda texts, bar=bar, task=task: bar.advance(task, texts),  # type: ignore[misc]
                )
            found.write(files[name])
            release_freed_memory()
        seen[name] = Seen.read(files[name])
    return seen


def _vector_files(out: Path, recipe: Recipe) -> dict[str, Path]:
    return {name: out / "vectors" / f"{number}.npz" for number, name in enumerate(system_names(recipe))}


def _index(out: Path, texts: Folder, sizes: Sizes, seed: int, device: str | None, console: Console) -> None:
    """Index the folder's passages with the adapted model; a part drawn by the seed where time is short."""
    if (out / "index" / INDEX_FILE).exists():
        return
    chunks = [*texts.train, *texts.held_out]
    if len(chunks) > sizes.indexed:
        rows = np.sort(np.random.default_rng(seed).permutation(len(chunks))[: sizes.indexed])
        console.print(
            f"note: the search index holds {sizes.indexed:,} of {len(chunks):,} passages; more --minutes "
            "index more",
            highlight=False,
        )
        chunks = [chunks[row] for row in rows]
    folder = out / "run" / "model"
    model = embedding_model(load(str(folder), device=str(pick_device(device))))
    contract = model.contract
    with progress_bar(console) as bar:
        task = bar.add_task("indexing", total=len(chunks), note="")
        vectors = encode(
            model,
            [chunk.text for chunk in chunks],
            contract.document_prefix(),
            suffix=contract.document_suffix(),
            progress=lambda texts: bar.advance(task, texts),
        )
    build_index(
        out / "index",
        vectors,
        [Document(chunk.id, chunk.text, location=_location(chunk)) for chunk in chunks],
        model=str(folder.resolve()),
        contract=contract,
    )


def _location(chunk: Chunk) -> str:
    return f"{chunk.file}, {chunk.place}" if chunk.place else chunk.file


def _report(
    out: Path,
    plan: dict[str, Any],
    recipe: Recipe,
    texts: Folder,
    held_out: HeldOut,
    seen: dict[str, Seen],
    device: str | None,
) -> None:
    """Write report.html, then report.json, which says that the run is finished."""
    figures = figures_of(held_out, seen, after_mntp=system_after_mntp(recipe), seed=recipe.seed)
    steps = {stage.name: stage.steps for stage in recipe.stages}
    details = {
        **plan["asked"],
        "recipe": recipe.name,
        "base": recipe.model.base,
        "steps": steps,
        "sizes": plan["sizes"],
        "measured": plan["measured"],
        **facts(device=pick_device(device)),
    }
    shown = {name: as_lines(value) if isinstance(value, dict) else value for name, value in details.items()}
    page = build_report(
        figures,
        held_out,
        seen,
        texts.counts,
        texts.notices,
        out / "run" / "log.jsonl",
        title=f"embedforge adapt: {Path(plan['asked']['folder']).name}",
        details=shown,
        seed=recipe.seed,
    )
    write_report(out / "report.html", page)
    write_json(
        out / REPORT,
        {
            "systems": system_names(recipe),
            **figures.as_json(),
            "read": texts.counts,
            "notices": texts.notices,
            "question": held_out.pairs[0].query if held_out.pairs else "",
            "details": details,
        },
    )
