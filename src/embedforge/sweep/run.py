"""Train every variant of a recipe with every seed, compare them, and write one page. Read this first.

OUT/runs/VARIANT/seed-N/   a training run each, as `embedforge train` leaves it
OUT/teachers/              vectors of teachers, for all runs
OUT/evaluation/            what `embedforge evaluate` keeps of every model
OUT/results.json           every score, and every difference
OUT/report.html

What variants share is made once: stages at the beginning that are the same (recipe, seed and data) are linked
from the run that has them, and so is a pruned base. A sweep that is stopped goes on where it was, and a grid
that grows trains only what is new.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedforge.console import say, stderr
from embedforge.data.convert import read_source
from embedforge.data.example import Example
from embedforge.data.mixture import fingerprint
from embedforge.evaluate.compare import Scores, scores_of
from embedforge.evaluate.run import evaluate
from embedforge.files import file_hash, hash_of, read_object, write_json
from embedforge.mine.refresh import refresh_stage
from embedforge.mine.teachers import open_teacher
from embedforge.model.encoder import embedding_model, load
from embedforge.recipe import Recipe, source_of
from embedforge.recipe.objectives import Mntp
from embedforge.run_folder import claim, facts, hold
from embedforge.runtime import pick_device
from embedforge.sweep.grid import Cell, Judged, completed
from embedforge.sweep.page import write_results
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.train.decontamination import MERGED
from embedforge.train.metrics import held_out_ranks, reciprocal
from embedforge.train.mixtures import read_mixture
from embedforge.train.prune import FOLDER as BASE
from embedforge.train.prune import always_kept
from embedforge.train.run import DONE, stage_folder, train

PLAN = "sweep.json"
UNSEEN = (
    "save_steps",
    "keep_checkpoints",
    "held_out",
    "eval_steps",
    "eval_queries",
    "log_steps",
    "report_to",
)
"""Settings of training that change nothing of what is learned."""
Result = Mapping[str, Any]


def sweep(
    cells: Sequence[Cell],
    seeds: int,
    out: Path,
    *,
    judged: Judged,
    device: str | None = None,
    source_folder: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train and compare; return what results.json holds.

    Args:
        cells: the variants (`grid.cells_of`); the first is what the others are compared with.
        seeds: repetitions of each, with the recipe's seed and those after it.
        out: a new folder, or that of an earlier sweep, whose runs of the same recipes are kept.
        judged: on what; the recipe's `training.held_out` where it names neither.
        device: as for `train`.
        source_folder: where relative paths of sources start.
        quiet: no progress bars.

    Raises:
        EmbedforgeError: nothing to compare on, bad data, or another recipe's run in a folder.
        Interrupted: after Ctrl-C, with the state saved.
    """
    judged = completed(judged, cells)
    pools = {path: _examples(path, cells[0].recipe, source_folder) for path in judged.dev}
    if judged.tasks is not None:
        from embedforge.evaluate.tasks import find_tasks  # mteb

        find_tasks(judged.tasks)  # before the training, after which it would be too late
    with hold(out):
        claim(out, {}, PLAN, "sweep")
        shelf = _Shelf(source_folder)
        runs: list[list[Path]] = []
        for cell in cells:
            runs.append([])
            for number in range(seeds):
                recipe, run = cell.seeded(number), out / "runs" / cell.folder / f"seed-{number}"
                if not (run / "model").exists():
                    say(f"{cell.label}, seed {recipe.seed}", stderr())
                    shelf.lend(recipe, run)
                    train(
                        recipe,
                        run,
                        resume=True,
                        device=device,
                        source_folder=source_folder,
                        refresh=refresh_stage,
                        teachers=open_teacher,
                        teacher_cache=out / "teachers",
                        quiet=quiet,
                    )
                shelf.add(recipe, run)
                runs[-1].append(run)
        found: dict[str, Scores] = {
            f"MRR@10, {Path(path).name}": scores_of(
                [[_on_held_out(run, pool, device) for run in row] for row in runs]
            )
            for path, pool in pools.items()
        }
        if judged.tasks is not None:
            found |= _on_tasks(runs, judged.tasks, out / "evaluation", device)
        return write_results(out, cells, seeds, found, facts(device=pick_device(device)))


def _examples(path: str, recipe: Recipe, folder: Path | None) -> Sequence[Example]:
    source = source_of(path, name="dev", instruction=recipe.contract.default_instruction)
    return read_source(source, seed=0, folder=folder)


def _on_held_out(run: Path, pool: Sequence[Example], device: str | None) -> Result:
    """Return a model's result on held-out Examples, kept or made now."""
    key = hash_of([fingerprint(pool), file_hash(run / "model" / CONTRACT)])
    file = run / "dev" / f"{key}.json"
    if not file.exists():
        model = embedding_model(load(str(run / "model"), device=str(pick_device(device))))
        values = reciprocal(held_out_ranks(model, pool))
        units = {"kind": "queries", "values": values.tolist(), "gold": []}
        write_json(file, {"score": float(np.mean(values)), "units": units})
    return read_object(file)


def _on_tasks(runs: Sequence[Sequence[Path]], tasks: str, out: Path, device: str | None) -> dict[str, Scores]:
    """Return what all models score on tasks; those that they cannot do are left out."""
    models = [str(run / "model") for row in runs for run in row]
    results = evaluate(models, tasks, out, device=device)
    seeds, found = len(runs[0]), {}
    for name, by_model in results.tasks.items():
        rows = [by_model[label] for label in results.models]
        known = [row for row in rows if row is not None]
        if len(known) == len(rows):
            found[name] = scores_of([known[start : start + seeds] for start in range(0, len(known), seeds)])
    return found


class _Shelf:
    """Finished stages of the sweep's runs, by all that they depend on, for runs that begin with the same."""

    def __init__(self, source_folder: Path | None) -> None:
        self._source_folder = source_folder
        self._runs: dict[str, tuple[Recipe, Path]] = {}
        self._bases: dict[str, Path] = {}

    def add(self, recipe: Recipe, run: Path) -> None:
        """Offer the stages of a finished run to those that follow."""
        for count in range(1, len(recipe.stages) + 1):
            self._runs.setdefault(_key(recipe, count), (recipe, run))
        if (run / BASE).exists():
            self._bases.setdefault(_key(recipe, 0), run / BASE)

    def lend(self, recipe: Recipe, run: Path) -> None:
        """Put the finished stages that a run would repeat into its folder, before it begins."""
        base = self._bases.get(_key(recipe, 0))
        if base is not None and not (run / BASE).exists():
            _link_folder(base, run / BASE)
        if (run / "stages").exists():
            return
        for count in range(len(recipe.stages), 0, -1):
            known = self._runs.get(_key(recipe, count))
            if known is not None and self._same_data(recipe, known[1], count):
                self._link(*known, run, count)
                return

    def _same_data(self, recipe: Recipe, run: Path, count: int) -> bool:
        """Tell whether the sources of the first stages hold what the other run has read."""
        read = read_object(run / "recipe.json")["data"]
        return all(
            read_mixture(stage, recipe.seed, self._source_folder).fingerprint == read.get(stage.name)
            for stage in recipe.stages[:count]
            if stage.objective.unit != "models"
        )

    @staticmethod
    def _link(recipe: Recipe, run: Path, to: Path, count: int) -> None:
        for number in range(count):
            folder = stage_folder(run, recipe, number)
            for name in (DONE, MERGED):
                if (folder / name).exists():
                    _link_file(folder / name, stage_folder(to, recipe, number) / name)


def _key(recipe: Recipe, count: int) -> str:
    """Return the hash of what the first stages of a run depend on, the data in its files apart.

    What a later stage asks of the base counts too: mask tokens, and what else a pruned vocabulary must have.
    """
    training = recipe.training.model_dump(mode="json", exclude=set(UNSEEN))
    whole = {"model": recipe.model, "contract": recipe.contract}
    objectives = [stage.objective for stage in recipe.stages]
    return hash_of(
        {
            **{name: part.model_dump(mode="json") for name, part in whole.items()},
            "seed": recipe.seed,
            "training": training,
            "stages": [stage.model_dump(mode="json") for stage in recipe.stages[:count]],
            "kept": always_kept(recipe, ()) if recipe.model.prune is not None else [],
            "added": [one.mask_token for one in objectives if isinstance(one, Mntp) and one.add_mask_token],
        }
    )


def _link_folder(source: Path, to: Path) -> None:
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for file in source.rglob("*"):
        if file.is_file():
            _link_file(file, partial / file.relative_to(source))
    partial.rename(to)


def _link_file(source: Path, to: Path) -> None:
    """Give a file a second name; on a file system without that, copy it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(to)
