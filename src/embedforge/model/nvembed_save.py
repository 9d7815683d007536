"""Writing a model in the layout of the official NV-Embed checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import MistralConfig, MistralModel

from embedforge.errors import EmbedforgeError
from embedforge.files import replace_folder, whole_or_nothing, write_json
from embedforge.model.attention import UNLIMITED
from embedforge.model.embedding_model import EmbeddingModel
from embedforge.model.int8 import is_int8
from embedforge.model.latent import LatentAttention
from embedforge.model.nvembed import CONTRACT_KEY, DECODER_KEYS, DECODER_PREFIX, FIXED, POOLER_PREFIX
from embedforge.model.shards import write_index
from embedforge.text.contract import Contract


def save_nvembed(model: EmbeddingModel, folder: Path, max_shard_bytes: int = 5 * 10**9) -> None:
    """Write a model in the official layout; `load_nvembed` reads it back bit for bit.

    The official Python files are not part of it: to run the folder with them, copy them in, name them in
    config.json's `auto_map`, and give `text_config._name_or_path` the folder. The contract goes into
    config.json too, for what the layout has no place for (templates, the default instruction).

    Args:
        model: a Mistral decoder, adapter merged, with latent pooling of the official feed-forward width
            and a contract that says what the official code does by itself.
        folder: replaced when it exists.
        max_shard_bytes: size of one weights file; more than one get an index.

    Raises:
        EmbedforgeError: the model cannot be expressed in this layout; says why.
    """
    decoder, pooler = model.decoder, model.pooler
    if type(decoder) is not MistralModel or not isinstance(pooler, LatentAttention):
        raise EmbedforgeError(
            "the NV-Embed layout holds a Mistral decoder with latent pooling; this model is "
            f"{type(decoder).__name__} with {type(pooler).__name__}. Merge an adapter first, or save in "
            "embedforge's own format"
        )
    if is_int8(decoder):
        raise EmbedforgeError(
            "the NV-Embed layout has no place for int8 weights; save the model that they were made of"
        )
    if model.projection is not None:
        raise EmbedforgeError(
            "the NV-Embed layout has no place for the linear map that this model has after its pooling; save "
            "it in embedforge's own format"
        )
    config = decoder.config
    _require_official(config, pooler, model.contract)
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    if len(dtypes) > 1:
        raise EmbedforgeError(
            f"the NV-Embed layout has one dtype, this model has {sorted(dtypes)}; cast it first"
        )
    contract = model.contract.model_copy(update={"dtype": dtypes.pop()})
    tensors = {DECODER_PREFIX + name: tensor for name, tensor in decoder.state_dict().items()}
    tensors |= {POOLER_PREFIX + name: tensor for name, tensor in pooler.state_dict().items()}
    with whole_or_nothing(folder), replace_folder(folder, "config.json") as partial:
        _save_shards(tensors, partial, max_shard_bytes)
        write_json(partial / "config.json", _official_config(config, pooler, contract))
        limit = {"max_seq_length": contract.max_tokens, "do_lower_case": False}
        write_json(partial / "sentence_bert_config.json", limit)
        model.tokenizer.save_pretrained(partial)


def _save_shards(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: int) -> None:
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_bytes)
    for name, keys in plan.filename_to_tensors.items():
        save_file({key: tensors[key].contiguous() for key in keys}, folder / name, metadata={"format": "pt"})
    if plan.is_sharded:
        write_index(folder, plan.tensor_to_filename, plan.metadata["total_size"])


def _require_official(config: MistralConfig, pooler: LatentAttention, contract: Contract) -> None:
    """Refuse what the official code could not do, rather than let other readers compute other vectors."""
    fixed = FIXED | {"pool_bos": "always" if contract.pool_instruction else "without_instruction"}
    if contract.query_template.split("{text}")[0].endswith(" "):
        del fixed["prefix_tokens"]  # Counted or by their position, the same tokens are the prefix's.
    problems = [
        f"contract.{key} is {getattr(contract, key)!r}, there it is always {value!r}"
        for key, value in fixed.items()
        if getattr(contract, key) != value
    ]
    if config.sliding_window is not None and config.sliding_window < UNLIMITED:
        problems.append(f"the sliding window of {config.sliding_window} tokens is on, there it is always off")
    if config.rope_parameters["rope_type"] != "default":
        problems.append(f"rope_type is {config.rope_parameters['rope_type']!r}, there it is always 'default'")
    if pooler.feed_forward_multiple != 4:
        problems.append(f"feed_forward_multiple is {pooler.feed_forward_multiple}, there it is always 4")
    if problems:
        raise EmbedforgeError(
            "the NV-Embed layout cannot express this model:\n  "
            + "\n  ".join(problems)
            + "\nTo accept the official behaviour, and other vectors, give the model such a contract: "
            "contract.model_copy(update={...})"
        )


def _official_config(config: MistralConfig, pooler: LatentAttention, contract: Contract) -> dict[str, Any]:
    latents, hidden_size = pooler.latents.shape
    text = {key: getattr(config, key) for key in DECODER_KEYS if hasattr(config, key)}
    return {
        "architectures": ["NVEmbedModel"],
        "model_type": "nvembed",
        "add_eos": contract.add_eos,
        "add_pad_token": True,
        "hidden_size": hidden_size,
        "is_mask_instruction": not contract.pool_instruction,
        "latent_attention_config": {
            "model_type": "latent_attention",
            "num_latents_value": latents,
            "num_cross_heads": pooler.attention.heads,
            "output_normalize": contract.normalize,
            "hidden_dim": hidden_size,
            "latent_dim": hidden_size,
            "cross_dim_head": pooler.attention.head_dim,
        },
        "mask_type": "b",
        "padding_side": "right",  # On the left the official code would pool the instruction.
        "text_config": text
        | {
            "model_type": "bidir_mistral",
            "architectures": ["MistralModel"],
            "rope_theta": cast(dict[str, Any], config.rope_parameters)["rope_theta"],
            "sliding_window": None,
            "torch_dtype": contract.dtype,
        },
        "torch_dtype": contract.dtype,
        CONTRACT_KEY: contract.model_dump(mode="json"),
    }
