"""A stage that trains nothing: what earlier stages have left, and finished models, made into one.

Its folder has `done.safetensors` with all weights, not only trained ones, and `merge.json`, what was merged
and why. Memory is that of `merge`: two models, and three float32 copies of the weights, four with `dev`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from embedforge.data.convert import read_source
from embedforge.data.mixture import fingerprint
from embedforge.errors import EmbedforgeError
from embedforge.files import file_hash, follow_umask, hash_of, write_json
from embedforge.model.adapter import merge_lora
from embedforge.model.encoder import EmbeddingModel
from embedforge.model.folder import find_folder
from embedforge.recipe import Recipe, source_of
from embedforge.recipe.objectives import STAGE_PREFIX, Merge
from embedforge.runtime import is_first_rank, wait_for_first_rank
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.train.decontamination import MERGED
from embedforge.train.merge import Build, check_contracts, load_model, merged, record_of, state_of
from embedforge.train.mixtures import finished_model
from embedforge.train.stages import check_batch, model_after


def merge_fingerprints(recipe: Recipe, source_folder: Path | None) -> dict[str, str]:
    """Return the hash of what each merge of a recipe is made of besides the recipe: models, held-out files.

    Raises:
        EmbedforgeError: no such model or file, or a model of another contract than the recipe's.
    """
    found = {}
    for stage in recipe.stages:
        if isinstance(objective := stage.objective, Merge):
            models = [finished_model(name, source_folder) for name in objective.finished]
            check_contracts(models, first=recipe.contract)
            files = [file_hash(find_folder(name) / CONTRACT) for name in models]  # goldens know the weights
            rows = [read_source(source_of(path), seed=0, folder=source_folder) for path in objective.dev]
            found[stage.name] = hash_of([files, [fingerprint(examples) for examples in rows]])
    return found


def run_merge(
    recipe: Recipe,
    number: int,
    done: Sequence[Path],
    *,
    device: str | None = None,
    source_folder: Path | None = None,
) -> None:
    """Merge what stage `number`, counted from 0, names, and keep the result as the last of `done`.

    Args:
        recipe: of the run, its base pruned already.
        number: of the stage.
        done: what each stage keeps, from the first to this one.
        device: for retrieval on development sets.
        source_folder: where relative paths start.

    Raises:
        EmbedforgeError: see `merged`, or a full disk.
    """
    if not is_first_rank():
        wait_for_first_rank(done[number].exists, str(done[number]))
        return
    stage, file = recipe.stages[number], done[number]
    objective = stage.objective
    assert isinstance(objective, Merge)
    parts, model = merged(
        _builds(recipe, objective, done, source_folder),
        how=objective.how,
        weights=objective.weights,
        dev=objective.dev,
        device=device,
        source_folder=source_folder,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file.parent / MERGED, record_of(objective.how, parts))
    partial_file = file.with_name(f".{file.name}.partial")
    weights, own = state_of(model), model.state_dict()
    try:
        save_file({name: weight.to(own[name].dtype) for name, weight in weights.items()}, str(partial_file))
        follow_umask(partial_file)
        partial_file.replace(file)
    except (OSError, SafetensorError) as error:
        raise EmbedforgeError(
            f"{file}: the merged model could not be written ({error}); free some space and run again with "
            "--resume"
        ) from error
    finally:
        partial_file.unlink(missing_ok=True)


def _builds(
    recipe: Recipe, objective: Merge, done: Sequence[Path], source_folder: Path | None
) -> Mapping[str, Build]:
    names = [stage.name for stage in recipe.stages]
    builds: dict[str, Build] = {}
    for name in objective.models:
        if name.startswith(STAGE_PREFIX):
            last = names.index(name.removeprefix(STAGE_PREFIX))
            builds[name] = partial(_plain_after, recipe, done[: last + 1])
        else:
            builds[name] = partial(load_model, finished_model(name, source_folder))
    return builds


def _plain_after(recipe: Recipe, done: Sequence[Path]) -> EmbeddingModel:
    """Return the model as a stage has left it, its adapters merged."""
    model = model_after(recipe, done, "cpu").eval()
    if isinstance(model.decoder, PeftModel):
        model.decoder = merge_lora(model.decoder, check_batch(model))
    return model
