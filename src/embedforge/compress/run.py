"""The curve of quality against bytes a vector, on one's own tasks. Read this first.

OUT/vectors/          the model's vectors of each set of texts, embedded once
OUT/tasks/TASK.json   scores of every variant on a task
OUT/results.json      all scores, differences, and what is named
OUT/report.html

Every variant is computed from the same vectors. What is there is kept: a run that was stopped goes on, and
more lengths or forms cost only their own scoring.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedforge.compress.derived import require_source, save_derived
from embedforge.compress.page import Curve, write_results
from embedforge.compress.variants import Variant, variants_of
from embedforge.console import add_row, progress_bar
from embedforge.data.convert import read_source
from embedforge.errors import EmbedforgeError
from embedforge.evaluate.results import EvaluationSettings, versions
from embedforge.evaluate.run import (
    file_name,
    model_fingerprint,
    quiet_mteb,
    require_mteb,
    score_task,
    task_inputs,
)
from embedforge.files import hash_of, read_json, write_json
from embedforge.model.encoder import embedding_model, load
from embedforge.model.folder import find_folder, require_model
from embedforge.model.projection import rotate
from embedforge.quantize import principal_rotation
from embedforge.recipe import Source
from embedforge.run_folder import facts, hold
from embedforge.runtime import pick_device
from embedforge.train.prune import texts_of

if TYPE_CHECKING:
    from embedforge.compress.encoder import KeptVectors

SAMPLE = 10_000
"""Texts whose vectors decide about the rotation, at most."""
Rotation = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """What a curve is drawn of."""

    dims: tuple[int, ...] | None = None
    """Lengths of the vectors; the whole, its half and so on when None."""
    forms: tuple[str, ...] | None = None
    """Of `variants.FORMS`; all but float16 when None."""
    rotate: tuple[Source, ...] = ()
    """Texts whose principal directions the vectors are also turned to."""
    candidates: int = 100
    """Documents that a search by bits hands on to be rescored."""
    within: float = 1.0
    """Per cent of the whole vectors' mean score that may be lost."""


def compress(
    model: str,
    tasks: str | Path | Sequence[str],
    out: Path | str,
    *,
    asked: Asked | None = None,
    settings: EvaluationSettings | None = None,
    save_rotated: Path | None = None,
    device: str | None = None,
) -> Curve:
    """Score a model's vectors in every variant and write `results.json` and `report.html` into `out`.

    Args:
        model: what `embedforge.load` reads.
        tasks: as for `evaluate`.
        out: folder of the results.
        asked: lengths, forms, rotation.
        settings: as for `evaluate`.
        save_rotated: a folder for the model with the rotation folded in; needs `asked.rotate`.
        device: "cpu", "cuda", ...

    Raises:
        EmbedforgeError: mteb is missing, a name is unknown, data is broken, a length does not fit.
    """
    require_mteb("embedforge compress")
    require_model(model)
    asked, settings, out = asked or Asked(), settings or EvaluationSettings(), Path(out)
    if save_rotated is not None:
        _refuse_to_save(model, save_rotated, asked)
    from embedforge.compress.encoder import KeptVectors
    from embedforge.evaluate.encoders import Encoder
    from embedforge.evaluate.tasks import find_tasks

    selected = find_tasks([str(tasks)] if isinstance(tasks, Path) else tasks, settings.split)
    with hold(out):
        encoder = Encoder(
            model,
            instructions=settings.instructions,
            device=device,
            dtype=settings.dtype,
            tokens_per_batch=settings.tokens_per_batch,
            max_tokens=settings.max_tokens,
        )
        key = {"model": model_fingerprint(model), **encoder.settings(), "versions": versions()}
        kept = KeptVectors(encoder, out / "vectors", key)
        rotation, width = _rotation(kept, asked)
        variants = variants_of(width, asked.dims, asked.forms, rotated=rotation is not None)
        found: dict[str, dict[str, dict[str, Any]]] = {}
        with quiet_mteb(), progress_bar() as progress:
            row = add_row(progress, "compress", len(selected) * len(variants))
            for task in selected:
                name = task.metadata.name
                inputs = task_inputs(task, key["model"], encoder.instruction(task.metadata), settings)
                inputs |= {"rotation": None if rotation is None else hash_of(np.round(rotation, 6).tolist())}
                inputs |= {"candidates": asked.candidates}
                file = out / "tasks" / f"{file_name(name)}.json"
                step = functools.partial(progress.update, row, note=name)
                found[name] = _task(kept, task, variants, rotation, inputs, file, asked.candidates, step)
                progress.advance(row, len(variants))
                kept.forget()
        if save_rotated is not None and rotation is not None:
            _save(model, save_rotated, rotation)
        curve = Curve(model, variants, found, asked.within, _sampled(asked, rotation))
        write_results(out, curve, facts(device=pick_device(device)))
        return curve


def _task(
    kept: KeptVectors,
    task: Any,
    variants: Sequence[Variant],
    rotation: Rotation | None,
    inputs: dict[str, Any],
    file: Path,
    candidates: int,
    note: Any,
) -> dict[str, dict[str, Any]]:
    """Return the results of all variants on a task by label, from its file or by scoring them."""
    from embedforge.compress.encoder import runner_of

    before = read_json(file) if file.exists() else {}
    done: dict[str, dict[str, Any]] = before["variants"] if before.get("inputs") == inputs else {}
    missing = [variant for variant in variants if variant.label not in done]
    for variant in missing:
        note()
        runner = runner_of(kept, variant, task, rotation, candidates)
        result = score_task(runner, task, variant.label)
        done[variant.label] = {key: value for key, value in result.items() if key != "scores"}
        write_json(file, {"inputs": inputs, "variants": done})
    if task.data_loaded:
        task.unload_data()
    return {variant.label: done[variant.label] for variant in variants}


def _rotation(kept: KeptVectors, asked: Asked) -> tuple[Rotation | None, int]:
    """Return the rotation, if one is asked for, and the width of the vectors."""
    if not asked.rotate:
        return None, kept.of_texts(["how long is a vector?"]).shape[1]
    examples = [example for source in asked.rotate for example in read_source(source, seed=0)]
    texts = list(dict.fromkeys(text for text in texts_of(examples) if text.strip()))
    if len(texts) > SAMPLE:
        drawn = np.random.default_rng(0).choice(len(texts), SAMPLE, replace=False)
        texts = [texts[number] for number in sorted(drawn)]
    vectors = kept.of_texts(texts)
    return principal_rotation(vectors), vectors.shape[1]


def _sampled(asked: Asked, rotation: Rotation | None) -> str:
    return "" if rotation is None else ", ".join(source.path for source in asked.rotate)


def _refuse_to_save(model: str, folder: Path, asked: Asked) -> None:
    if not asked.rotate:
        raise EmbedforgeError("--save-rotated needs a rotation: name texts for it with --rotate FILE")
    require_source(model, folder, "rotated")


def _save(model: str, folder: Path, rotation: Rotation) -> None:
    turned = embedding_model(load(model, device="cpu"))
    rotate(turned, rotation)
    save_derived(turned, find_folder(model), folder)
