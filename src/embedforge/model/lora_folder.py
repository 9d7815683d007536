"""A LoRA adapter as peft saves it: a folder, checked against its decoder by name and shape, and merged.

peft itself says little when an adapter does not fit: tensors whose names match nothing are left out with a
warning, the others stay as they were initialised, and the model then equals its base.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object
from embedforge.model.adapter import is_no_op, merge_lora
from embedforge.model.shards import INDEX, WEIGHTS, read_header

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
_PEFT_PREFIX = "base_model.model."


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and not a whole model.

    Raises:
        EmbedforgeError: it holds both; transformers would put the adapter on unasked.
    """
    if not (folder / CONFIG).exists():
        return False
    if (folder / WEIGHTS).exists() or (folder / INDEX).exists():
        raise EmbedforgeError(
            f"{folder}: there are a model's weights and an adapter in one folder, so the adapter may or may "
            f"not be merged into them already. Move {CONFIG} and {TENSORS} into a folder of their own"
        )
    return True


def base_of(folder: Path) -> str:
    """Return the base that an adapter names.

    Raises:
        EmbedforgeError: it names none.
    """
    base = read_object(folder / CONFIG).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise EmbedforgeError(
            f"{folder / CONFIG}: base_model_name_or_path is {base!r}; name the base, a folder or a hub id"
        )
    return base


def refuse_adapter_folder(folder: Path) -> None:
    """Raise for a folder that holds only an adapter, with the command that makes a model of it."""
    if (folder / CONFIG).exists() and not (folder / "modules.json").exists() and is_adapter(folder):
        base = read_object(folder / CONFIG).get("base_model_name_or_path") or "BASE"
        raise EmbedforgeError(
            f"{folder}: this is a LoRA adapter, not a model, and it does not say how text is wrapped and "
            "pooled. Merge it into its base, after the adapters it was trained on:\n"
            f"  embedforge export {base} OUT --adapter {folder} --pooling mean "
            '--chat-template "[INST] {text} [/INST]"\n'
            "(without --chat-template if it was trained without one)"
        )


def merge_adapter(
    decoder: PreTrainedModel, folder: Path, probe_batch: Mapping[str, Tensor]
) -> PreTrainedModel:
    """Merge an adapter's folder into a decoder, in the decoder's dtype, and prove it (see `merge_lora`).

    Adapters saved from a model with a language-model head, or from another wrapper, are taken when every
    tensor fits the bare decoder once the wrapper's part of the names is gone.

    Args:
        decoder: used up, also when this fails.
        folder: with adapter_config.json and adapter_model.safetensors.
        probe_batch: `input_ids` and `attention_mask`, int64 [texts, tokens].

    Returns:
        The plain decoder.

    Raises:
        EmbedforgeError: no adapter, pickles only, not LoRA; tensors missing, left over or of another shape;
            it adds nothing; the merge changed the outputs.
    """
    config, tensors = _read(folder)
    wrapper = _wrapper(folder, decoder, tensors)
    if isinstance(config.target_modules, list | set):
        config.target_modules = {name.removeprefix(wrapper) for name in config.target_modules}
    plain = {
        _PEFT_PREFIX + name.removeprefix(_PEFT_PREFIX + wrapper): tensor for name, tensor in tensors.items()
    }
    adapted = _put_on(decoder, folder, config)
    _check_fit(folder, plain, get_peft_model_state_dict(adapted, save_embedding_layers=False), decoder)
    set_peft_model_state_dict(adapted, plain)
    if is_no_op(adapted):
        raise EmbedforgeError(
            f"{folder}: this adapter adds nothing, every B matrix in {TENSORS} is zero, as before training. "
            "Was it saved from the trained model? Leave it out, or download it again"
        )
    try:
        return merge_lora(adapted, probe_batch)
    except EmbedforgeError as error:
        raise EmbedforgeError(f"{folder}: {error}") from None


def _read(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    if not (folder / CONFIG).exists():
        what = "a whole model; if it is the base, name it as such" if _has_model(folder) else "no adapter"
        raise EmbedforgeError(f"{folder}: this is {what}: there is no {CONFIG}")
    is_adapter(folder)  # Refuses a folder that is both.
    kind = read_object(folder / CONFIG).get("peft_type")
    if kind != "LORA":
        raise EmbedforgeError(f"{folder / CONFIG}: peft_type is {kind!r}; only 'LORA' can be merged here")
    if not (folder / TENSORS).exists():
        pickled = (folder / PICKLE).exists()
        raise EmbedforgeError(
            f"{folder}: there is no {TENSORS}"
            + (
                f", only {PICKLE}, a pickle, which can run any code when it is read. If you trust it, "
                "convert it once: PeftModel.from_pretrained(base, folder).save_pretrained(folder)"
                if pickled
                else "; download it again (from a hub only safetensors are fetched)"
            )
        )
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise EmbedforgeError(f"{folder / CONFIG}: peft cannot read it: {error}") from error
    config.task_type = None  # A task's wrapper wants the methods of a model with a head.
    read_header(folder / TENSORS)  # Refuses a file that was cut off.
    return config, load_file(folder / TENSORS)


def _has_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in (WEIGHTS, INDEX, "config.json"))


def _wrapper(folder: Path, decoder: PreTrainedModel, tensors: Mapping[str, Tensor]) -> str:
    """Return what stands in the tensors' names between peft's prefix and the decoder's own, as "model."."""
    paths = [
        name.removeprefix(_PEFT_PREFIX).split(".lora_")[0].split(".")
        for name in tensors
        if name.startswith(_PEFT_PREFIX) and ".lora_" in name
    ]
    modules = {name for name, _ in decoder.named_modules()}
    shared = min((len(path) for path in paths), default=0)
    fitting = [
        ".".join([*paths[0][:depth], ""])
        for depth in range(shared)
        if len({tuple(path[:depth]) for path in paths}) == 1
        and all(".".join(path[depth:]) in modules for path in paths)
    ]
    if len(fitting) == 1:
        return fitting[0]
    strange = next(
        (".".join(path) for path in paths if ".".join(path) not in modules), next(iter(tensors), "none")
    )
    known = next((name for name in sorted(modules) if name.endswith("_proj")), "")
    raise EmbedforgeError(
        f"{folder / TENSORS}: the adapter's names do not fit this {decoder.config.model_type} decoder, so it "
        f"would silently do nothing: it has '{strange}'"
        + (f", the decoder has '{known}'" if known else "")
        + f". Was it trained on another model? {CONFIG} says on "
        f"{read_object(folder / CONFIG).get('base_model_name_or_path')!r}"
    )


def _put_on(decoder: PreTrainedModel, folder: Path, config: LoraConfig) -> PeftModel:
    config.base_model_name_or_path = decoder.name_or_path or None  # peft would warn that it changed.
    try:
        with warnings.catch_warnings():
            # peft asks for a property by the name that newer versions of transformers deprecate.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return get_peft_model(decoder, config)
    except (ValueError, TypeError) as error:
        raise EmbedforgeError(
            f"{folder / CONFIG}: this adapter cannot be put on the {decoder.config.model_type} decoder: "
            f"{error}"
        ) from error


def _check_fit(
    folder: Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], decoder: PreTrainedModel
) -> None:
    """Refuse an adapter unless its tensors are those that its configuration makes on this decoder."""
    wrong = [
        f"{name} has shape {list(given[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "left over": sorted(given.keys() - expected.keys()),
        "of another shape": wrong,
    }
    lines = [f"  {len(names)} {what}: {', '.join(names[:3])}" for what, names in problems.items() if names]
    if lines:
        raise EmbedforgeError(
            f"{folder}: the adapter does not fit this {decoder.config.model_type} decoder of hidden size "
            f"{decoder.config.get_text_config().hidden_size}:\n" + "\n".join(lines) + "\nIt was trained on "
            f"another base, or {CONFIG} and {TENSORS} are of two adapters"
        )
