"""What a checkpoint and a finished stage hold of the model: its trained parameters, whole, in safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from embedforge.errors import EmbedforgeError
from embedforge.files import follow_umask
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.projection import restore_projection
from embedforge.train.sharding import as_shard, whole

WEIGHTS = "trainable.safetensors"
COMPLETE = "complete"


def save_trainable(model: torch.nn.Module, file: Path, *, write: bool) -> None:
    """Write the trainable parameters; all ranks must call this, those without `write` only hand over shards.

    Only what is trained: for a 7B decoder under LoRA that is 1 % of the weights.

    Raises:
        EmbedforgeError: a weight is not finite; such a state must never take a good one's place.
    """
    state = trainable_state(model, keep=write)
    if write:
        _require_finite(state)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, str(file))
        follow_umask(file)


def trainable_state(model: torch.nn.Module, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """Return the trainable parameters by name, whole, contiguous and on the CPU; nothing without `keep`."""
    values, state = model.state_dict(), {}
    for name in sorted(_trainable(model)):
        value = whole(values[name].detach())
        if keep:
            state[name] = value.cpu().contiguous()
    return state


def load_trainable(model: torch.nn.Module, file: Path) -> None:
    """Put the weights of a checkpoint or of a finished stage into the model, sharded or not.

    Raises:
        EmbedforgeError: the checkpoint is damaged, or of another model or adapter.
    """
    state = _read(file)
    if isinstance(model, EmbeddingModel):
        restore_projection(model, state)
    expected = _trainable(model)
    if set(state) != expected:
        raise EmbedforgeError(
            f"{file}: its weights are not those of this recipe: "
            f"missing {sorted(expected - set(state))[:3]}, unexpected {sorted(set(state) - expected)[:3]}. "
            "Train into another --out folder, or resume with the recipe of this one"
        )
    own = model.state_dict()
    model.load_state_dict({name: as_shard(state[name], own[name]) for name in state}, strict=False)


def load_whole(model: EmbeddingModel, file: Path) -> None:
    """Put all weights of a merged model into one of its shape, which wears no adapter.

    Raises:
        EmbedforgeError: the file is damaged, or of another model.
    """
    state = _read(file)
    restore_projection(model, state)
    floating = {name for name, value in model.state_dict().items() if value.is_floating_point()}
    if set(state) != floating:
        raise EmbedforgeError(f"{file}: its weights are not those of this recipe; train into another --out")
    model.load_state_dict(state, strict=False)


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise EmbedforgeError(
            f"{file}: cannot be read ({error}); remove its folder, and --resume goes on from before it"
        ) from None


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; unfinished ones are removed."""
    complete: list[Path] = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            complete.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _require_finite(state: dict[str, torch.Tensor]) -> None:
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise EmbedforgeError(
            f"training has made {len(broken)} of {len(state)} weight tensors not finite, the first is "
            f"'{broken[0]}'; they are not saved, and earlier checkpoints stay. Lower the learning rate or "
            "max_grad_norm, or use training.precision=float32, and train into another --out"
        )


def _trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
