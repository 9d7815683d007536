"""The layout of the official NV-Embed checkpoints: reading, converting and writing it, without remote code.

Such a folder has model type `nvembed` and the decoder and the latent block under two prefixes in one set of
shards. transformers would ask on stdin whether to run the code that belongs to it, so its Auto classes never
see the folder: the configuration is translated to a Mistral one here and the tensors go by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoModel, MistralConfig, MistralModel
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object, replace_folder, whole_or_nothing
from embedforge.model import layout
from embedforge.model.attention import make_bidirectional
from embedforge.model.config_check import require_counts
from embedforge.model.decoder import read_tokenizer, torch_dtype
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.latent import LatentAttention
from embedforge.model.modules import Pool
from embedforge.model.shards import (
    WEIGHTS,
    TensorEntry,
    copy_tensors,
    list_tensors,
    read_tensors,
    write_index,
)
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.contract import Contract
from embedforge.text.goldens import check_goldens, make_goldens
from embedforge.text.render import Renderer

DECODER_PREFIX = "embedding_model."
POOLER_PREFIX = "latent_attention_model."

LATENT_DEFAULTS = {"num_latents_value": 512, "num_cross_heads": 8, "cross_dim_head": 4096}
"""What the official configuration class fills in; the released config.json gives none of them."""

DECODER_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
)
"""Keys of `text_config` that pass unchanged; besides them only rope_theta and the window mean anything."""

CONTRACT_KEY = "embedforge_contract"
"""Our own key of config.json, for what the layout has no place for; the official code passes it over."""

FIXED = {
    "add_bos": True,
    "eos_survives_truncation": False,
    "pool_eos": True,
    "isolate_prefix": False,
    "prefix_tokens": "counted",
    "attention": "bidirectional",
    "pooling": "latent",
    "chat_template": "{text}",
    "text_max_tokens": None,
    "strip_text_end": False,
}
"""What the official code does whatever its configuration says."""

_DTYPES: dict[str, Literal["float32", "bfloat16", "float16"]] = {
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
}


class NVEmbedConfig(NamedTuple):
    """What an official folder's configuration files say, in our terms."""

    decoder: MistralConfig
    """Bidirectional and without a window: the official mask knows neither causality nor window."""
    latent: dict[str, int]
    """Arguments of `LatentAttention` besides the hidden size."""
    contract: Contract


class _Checkpoint(NamedTuple):
    """A checked folder: empty (meta) modules and where the tensors of each lie."""

    config: NVEmbedConfig
    decoder: MistralModel
    pooler: LatentAttention
    decoder_tensors: dict[str, TensorEntry]
    pooler_tensors: dict[str, TensorEntry]


def is_nvembed(folder: Path) -> bool:
    """Tell whether a folder has the layout of the official NV-Embed checkpoints."""
    file = folder / "config.json"
    return file.exists() and read_object(file).get("model_type") == "nvembed"


def read_nvembed_config(folder: Path) -> NVEmbedConfig:
    """Read the configuration of an official folder; nothing is run and nobody is asked.

    The contract's dtype stays at its default, since only the weights know it. A contract that `save_nvembed`
    has put into config.json takes precedence over what the official keys imply.

    Raises:
        EmbedforgeError: not this layout, or numbers that contradict each other.
    """
    file = folder / "config.json"
    values = read_object(file)
    if values.get("model_type") != "nvembed" or "text_config" not in values:
        raise EmbedforgeError(
            f"{file}: model_type is {values.get('model_type')!r}; an NV-Embed folder has 'nvembed', "
            "and a text_config"
        )
    decoder = _decoder_config(values["text_config"])
    given = values.get("latent_attention_config") or {}
    for key in ("hidden_dim", "latent_dim"):
        if given.get(key, decoder.hidden_size) != decoder.hidden_size:
            raise EmbedforgeError(
                f"{file}: latent_attention_config.{key} is {given[key]}, but the decoder's states have width "
                f"{decoder.hidden_size}; the official code cannot bring the two together either"
            )
    require_counts(file, given, LATENT_DEFAULTS)
    numbers = LATENT_DEFAULTS | {key: given[key] for key in LATENT_DEFAULTS if key in given}
    latent = {
        "latents": numbers["num_latents_value"],
        "heads": numbers["num_cross_heads"],
        "head_dim": numbers["cross_dim_head"],
        "feed_forward_multiple": 4,
    }
    if CONTRACT_KEY in values:
        return NVEmbedConfig(decoder, latent, _written_contract(file, values))
    return NVEmbedConfig(decoder, latent, _implied_contract(folder, values, decoder))


def load_nvembed(
    folder: Path, dtype: str | torch.dtype | None = None, *, attention_implementation: str = "auto"
) -> EmbeddingModel:
    """Load an official folder, in eval mode, with bidirectional attention.

    Tensors go one at a time from the file into modules built without memory, so the peak is one copy of the
    model.

    Args:
        folder: the checkpoint.
        dtype: of the weights in memory; the stored one when None.
        attention_implementation: sdpa, eager, flash_attention_2, or auto for transformers' choice.

    Raises:
        EmbedforgeError: a shard is missing or cut off; tensors are missing, unexpected or of another shape.
    """
    checkpoint = _open(folder, None if attention_implementation == "auto" else attention_implementation)
    contract = checkpoint.config.contract
    target = torch_dtype(dtype or contract.dtype)
    decoder, pooler = checkpoint.decoder, checkpoint.pooler
    _fill(decoder, checkpoint.decoder_tensors, DECODER_PREFIX, target)
    _fill(pooler, checkpoint.pooler_tensors, POOLER_PREFIX, target)
    decoder.config.dtype = target
    # Its frequencies are computed, not stored, and have been left without memory like everything else.
    decoder.rotary_emb = MistralRotaryEmbedding(config=decoder.config)
    make_bidirectional(decoder)
    tokenizer = read_tokenizer(folder, decoder)
    return EmbeddingModel(decoder, pooler, tokenizer, contract, checkpoint.config.latent).eval()


def convert_nvembed(folder: Path, out_folder: Path) -> None:
    """Rewrite an official folder as a folder of embedforge's own, as `save` writes it but for golden vectors.

    The tensors' bytes are copied under their new names in small pieces: a few MB of memory whatever the
    model's size, and the weights stay bit for bit what they were. The model is not run, so the goldens hold
    token ids and pooling masks, which `embedforge.load` checks, and no vectors; to add those, where there is
    memory for the model: `save(embedding_model(load(out_folder)), other_folder)`.

    Raises:
        EmbedforgeError: as `load_nvembed`, or the written tokenizer does not make the same ids; nothing is
            written then.
    """
    if out_folder.resolve() == folder.resolve():
        raise EmbedforgeError(
            f"{out_folder}: converting in place would delete the original; name another folder"
        )
    config, _, pooler, decoder_tensors, pooler_tensors = _open(folder)
    renderer = Renderer(read_tokenizer(folder), config.contract)
    contract = config.contract.model_copy(update={"goldens": make_goldens(renderer)})
    size = config.decoder.hidden_size
    with whole_or_nothing(out_folder), replace_folder(out_folder, CONTRACT) as partial:
        _copy_decoder(decoder_tensors, partial)
        config.decoder.architectures = [MistralModel.__name__]
        config.decoder.dtype = contract.dtype
        config.decoder.save_pretrained(partial)
        renderer.tokenizer.save_pretrained(partial)
        check_goldens(Renderer(read_tokenizer(partial), contract), contract)
        contract.save(partial)
        pool = partial / layout.POOL_FOLDER
        pool.mkdir()
        Pool(pooler, "latent", size, config.latent).save_config(str(pool))
        copy_tensors(pooler_tensors, pool / WEIGHTS)
        layout.write_own_modules(partial, contract)


def _decoder_config(text: Mapping[str, Any]) -> MistralConfig:
    kept = {key: text[key] for key in DECODER_KEYS if key in text}
    newer = text.get("rope_parameters") or {}  # where transformers 5 keeps the base
    rope = {"rope_type": "default", "rope_theta": newer.get("rope_theta", text.get("rope_theta", 10000.0))}
    return MistralConfig(**kept, rope_parameters=rope, sliding_window=None, is_causal=False, use_cache=False)


def _written_contract(file: Path, values: Mapping[str, Any]) -> Contract:
    try:
        return Contract.model_validate(values[CONTRACT_KEY])
    except ValidationError as error:
        raise EmbedforgeError(f"{file}, {CONTRACT_KEY}: {error}") from None


def _implied_contract(folder: Path, values: Mapping[str, Any], decoder: MistralConfig) -> Contract:
    """Say what the official code does under these configuration files."""
    padding_side = values.get("padding_side", "right")
    # The official code leaves the instruction in the pool when asked to, and whenever it pads on the left.
    masked = values.get("is_mask_instruction", True) and padding_side == "right"
    return Contract.model_validate(
        FIXED
        | {
            "default_instruction": "",
            "max_tokens": _max_tokens(folder, decoder),
            "add_eos": values.get("add_eos", True),
            "pool_instruction": not masked,
            "pool_bos": "without_instruction" if masked else "always",
            "padding_side": padding_side,
            "normalize": (values.get("latent_attention_config") or {}).get("output_normalize", True),
        }
    )


def _max_tokens(folder: Path, decoder: MistralConfig) -> int:
    """Return sentence-transformers' limit, else the tokenizer's, at most the positions there are."""
    limits = [int(decoder.max_position_embeddings)]
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        if (folder / name).exists():
            limits.append(int(read_object(folder / name).get(key) or limits[0]))
            break
    return min(limits)


def _open(folder: Path, attention_implementation: str | None = None) -> _Checkpoint:
    """Read configuration and headers, and check that they fit each other before any weight is read."""
    config = read_nvembed_config(folder)
    entries = list_tensors(folder)
    stored = {entry.dtype for entry in entries}
    if len(stored) != 1 or not stored <= set(_DTYPES):
        raise EmbedforgeError(
            f"{folder}: the weights have dtypes {sorted(stored)}; expected one of {sorted(_DTYPES)}"
        )
    contract = config.contract.model_copy(update={"dtype": _DTYPES[stored.pop()]})
    config = config._replace(contract=contract)
    with torch.device("meta"):
        decoder = AutoModel.from_config(config.decoder, attn_implementation=attention_implementation)
        pooler = LatentAttention(config.decoder.hidden_size, **config.latent)
    _check_names_and_shapes(
        folder, entries, _with_prefix(decoder, DECODER_PREFIX) | _with_prefix(pooler, POOLER_PREFIX)
    )
    return _Checkpoint(
        config,
        decoder,
        pooler,
        _without_prefix(entries, DECODER_PREFIX),
        _without_prefix(entries, POOLER_PREFIX),
    )


def _check_names_and_shapes(
    folder: Path, entries: Iterable[TensorEntry], expected: Mapping[str, Tensor]
) -> None:
    stored = {entry.name: entry.shape for entry in entries}
    wrong = [
        f"{name} has shape {list(stored[name])} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name] != tuple(tensor.shape)
    ]
    problems = {
        "missing": sorted(expected.keys() - stored.keys()),
        "unexpected": sorted(stored.keys() - expected.keys()),
        "not as config.json says": wrong,
    }
    lines = [f"  {len(names)} {what}: {', '.join(names[:6])}" for what, names in problems.items() if names]
    if lines:
        raise EmbedforgeError(f"{folder}: the tensors do not fit config.json:\n" + "\n".join(lines))


def _with_prefix(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def _without_prefix(entries: Iterable[TensorEntry], prefix: str) -> dict[str, TensorEntry]:
    return {entry.name.removeprefix(prefix): entry for entry in entries if entry.name.startswith(prefix)}


def _fill(module: nn.Module, tensors: Mapping[str, TensorEntry], prefix: str, dtype: torch.dtype) -> None:
    """Give a meta module its weights, one at a time."""
    for stored_name, tensor in read_tensors(tensors.values()):
        path, _, leaf = stored_name.removeprefix(prefix).rpartition(".")
        setattr(module.get_submodule(path), leaf, nn.Parameter(tensor.to(dtype, copy=True)))


def _copy_decoder(tensors: Mapping[str, TensorEntry], folder: Path) -> None:
    """Copy the decoder's tensors, one new file for each old one that has any."""
    sources = sorted({entry.file for entry in tensors.values()})
    if len(sources) == 1:
        copy_tensors(tensors, folder / WEIGHTS)
        return
    files: dict[str, str] = {}
    for number, source in enumerate(sources, start=1):
        name = f"model-{number:05d}-of-{len(sources):05d}.safetensors"
        part = {key: entry for key, entry in tensors.items() if entry.file == source}
        copy_tensors(part, folder / name)
        files |= dict.fromkeys(part, name)
    write_index(folder, files, sum(entry.end - entry.begin for entry in tensors.values()))
