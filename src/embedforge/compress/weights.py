"""Pruned and int8 weights of a finished model, and training that takes back what pruning lost.

OUT/pruned/     the pruned model
OUT/recovery/   the run that trains it (as `embedforge train` leaves it), where steps were asked for
OUT/model/      the result: a model like any other

Recovery is a stage of objective `distill` whose teacher is the model that was pruned; what is zero stays
zero (`training.keep_zeros`). Rounding to int8 comes last.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedforge.compress.derived import require_source, save_derived
from embedforge.data.convert import read_source
from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.mine.teachers import open_teacher
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.encoder import embedding_model, load
from embedforge.model.int8 import Int8Linear, to_int8
from embedforge.model.sparsity import How, Sparsity, linear_layers, sparsify
from embedforge.recipe import Recipe, Source, parse_recipe
from embedforge.run_folder import claim, hold
from embedforge.runtime import pick_device
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.train.prune import texts_of
from embedforge.train.run import train

PLAN = "weights.json"
CALIBRATION = 128
"""Sample texts of Wanda, as in its paper."""
PRUNED, RECOVERY, MODEL = "pruned", "recovery", "model"


@dataclass(frozen=True)
class WeightSettings:
    """What is done to the weights, in this order."""

    prune: How | None = None
    sparsity: str = "0.5"
    """A share, or n:m."""
    texts: tuple[Source, ...] = ()
    """For Wanda, and to recover on."""
    recover: int = 0
    """Steps of distillation."""
    int8: bool = False
    batch: int = 64
    """Texts of a step."""
    learning_rate: float = 5e-5
    seed: int = 0


@dataclass(frozen=True)
class WeightFacts:
    """What became of the weights."""

    zero: float
    """Share of the linear layers' weights."""
    before: int
    """Bytes of the weights on the disk."""
    after: int


def compress_weights(
    model: str, out: Path, settings: WeightSettings, device: str | None = None
) -> WeightFacts:
    """Prune, recover and round a finished model; the result is OUT/model.

    Run again it goes on where it stopped.

    Args:
        model: a folder that embedforge saved, or a hub id of one.
        out: see the module.
        settings: what is asked.
        device: of pruning and training.

    Raises:
        EmbedforgeError: nothing is asked, texts are missing, the model is not embedforge's, or another run
            is in `out`.
    """
    _check(settings)
    source = require_source(model, out / MODEL, "compressed")
    asked = {
        "model": str(source.resolve()),
        **{key: getattr(settings, key) for key in ("prune", "sparsity", "recover", "int8", "batch", "seed")},
        "learning_rate": settings.learning_rate,
        "texts": [item.model_dump(mode="json") for item in settings.texts],
    }
    with hold(out):
        claim(out, asked, PLAN, "run of compress weights")
        latest = source
        if settings.prune is not None:
            latest = out / PRUNED
            if not latest.exists():
                pruned = embedding_model(load(str(source), device=str(pick_device(device))))
                sparsify(pruned, settings.prune, Sparsity.parse(settings.sparsity), _sample(settings))
                save_derived(pruned.cpu(), source, latest)
        if settings.recover:
            recipe = recovery(source, latest, settings)
            latest = train(
                recipe,
                out / RECOVERY,
                resume=True,
                device=device,
                source_folder=Path.cwd(),
                teachers=open_teacher,
            )
        result = out / MODEL
        if not result.exists():
            if settings.int8:
                rounded = embedding_model(load(str(latest), device="cpu"))
                to_int8(rounded.decoder)
                save_derived(rounded, latest, result)
            else:
                _link(latest, result)
        made = embedding_model(load(str(result), device="cpu"))
        return WeightFacts(_zero_share(made), _weight_bytes(source), _weight_bytes(result))


def recovery(teacher: Path, pruned: Path, settings: WeightSettings) -> Recipe:
    """Return the recipe that trains a pruned model towards the vectors of the one that it was.

    Everything about the model is as it was made; a folder without a recipe has recipes' defaults.
    """
    student = embedding_model(load(str(pruned), device="cpu"))
    known = read_object(pruned / "recipe.json") if (pruned / "recipe.json").exists() else {"model": {}}
    kept = ("sliding_window", "allow_causal_layers", "attention_implementation", "trust_remote_code")
    contract = read_object(pruned / CONTRACT)
    for key in ("version", "goldens", "dtype"):
        contract.pop(key, None)
    pooling = {"kind": student.contract.pooling, **student.pooling}
    return parse_recipe(
        {
            "name": "recovery",
            "seed": settings.seed,
            "model": {
                **{key: known["model"][key] for key in kept if key in known["model"]},
                "base": str(pruned),
                "pooling": pooling,
            },
            "contract": contract,
            "training": {
                "keep_zeros": True,
                "precision": "float32" if student.contract.dtype == "float32" else "bfloat16",
            },
            "stages": [
                {
                    "name": "recover",
                    "steps": settings.recover,
                    "batch_queries": settings.batch,
                    "learning_rate": settings.learning_rate,
                    "warmup_steps": settings.recover // 10,
                    "negatives": 0,
                    "objective": {
                        "kind": "distill",
                        "teacher": str(teacher),
                        "projection": "none" if student.projection is None else "keep",
                    },
                    "mix": {"sources": [source.model_dump(mode="json") for source in settings.texts]},
                }
            ],
        },
        "recovery",
    )


def _check(settings: WeightSettings) -> None:
    """Refuse what cannot be meant, before anything is loaded."""
    Sparsity.parse(settings.sparsity)
    if settings.prune is None and not settings.int8:
        raise EmbedforgeError("nothing is to be done: ask for --prune magnitude, --prune wanda or --int8")
    if settings.recover and settings.prune is None:
        raise EmbedforgeError("--recover trains what pruning has left; ask for --prune too")
    if not settings.texts and (settings.prune == "wanda" or settings.recover):
        purpose = "--recover trains on" if settings.recover else "--prune wanda is calibrated on"
        raise EmbedforgeError(f"{purpose} texts like those that will be embedded: name a file with --texts")


def _sample(settings: WeightSettings) -> list[str]:
    if settings.prune != "wanda":
        return []
    examples = [example for source in settings.texts for example in read_source(source, seed=0)]
    texts = list(dict.fromkeys(text for text in texts_of(examples) if text.strip()))
    drawn = np.random.default_rng(settings.seed).permutation(len(texts))[:CALIBRATION]
    return [texts[number] for number in sorted(drawn)]


def _zero_share(model: EmbeddingModel) -> float:
    weights = [part.weight for part in model.decoder.modules() if isinstance(part, Int8Linear)]
    weights = weights or [linear.weight for maps in linear_layers(model) for linear in maps.values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _link(source: Path, to: Path) -> None:
    """Put a folder's files under a second name, which costs no space; copied where that cannot be."""
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)

    def place(one: str, other: str) -> Any:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)
        return other

    shutil.copytree(source, partial, copy_function=place)
    partial.rename(to)


def told(facts: WeightFacts) -> str:
    """Say what became of the weights."""
    return (
        f"{facts.zero:.1%} of the linear layers' weights are zero; "
        f"{facts.before / 1e6:.1f} MB before, {facts.after / 1e6:.1f} MB after"
    )
