"""A decoder, its tokenizer and its pooling as one GGUF file, for llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedforge.errors import EmbedforgeError
from embedforge.export.gguf_tokens import Vocabulary
from embedforge.model.embedding_model import EmbeddingModel


@dataclass(frozen=True)
class Family:
    """How llama.cpp has a family of decoders."""

    causal: str
    both_ways: str
    """Its names of the architecture."""
    interleaved: bool
    """Rotary pairs are neighbours in queries and keys; transformers has the halves one after the other."""


_LLAMA = Family("llama", "llama-embed", interleaved=True)
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family("qwen2", "qwen2", interleaved=False),
    "qwen3": Family("qwen3", "qwen3", interleaved=False),
}
"""By transformers' model type: all that are tried here."""

_TYPES = {"float32": "F32", "float16": "F16", "int8": "Q8_0"}
_FILES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "int8": "MOSTLY_Q8_0"}

POOLINGS = {"mean": 1, "cls": 2, "last": 3}
"""llama.cpp's numbers of the poolings."""

ROPES = ("default", "linear", "llama3")
"""Rotary embeddings of fixed frequencies."""


def write_gguf(model: EmbeddingModel, vocabulary: Vocabulary, file: Path, dtype: str) -> None:
    """Write a model as one GGUF file.

    Args:
        model: in float32, of one of `FAMILIES`.
        vocabulary: of its tokenizer.
        file: what is written.
        dtype: of the matrices: float32, float16 or int8 (Q8_0); the rest is float32.
    """
    import gguf

    family = FAMILIES[model.decoder.config.model_type]
    architecture = family.both_ways if model.contract.attention == "bidirectional" else family.causal
    writer = gguf.GGUFWriter(str(file), architecture)
    try:
        _describe(writer, model, dtype)
        _tokenizer(writer, model, vocabulary)
        _weights(writer, model, architecture, family, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _describe(writer: Any, model: EmbeddingModel, dtype: str) -> None:
    import gguf

    config, contract = model.decoder.config, model.contract
    heads, head_dim = config.num_attention_heads, _head_dim(model)
    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType[_FILES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    # What the contract reads and no more: llama.cpp refuses a longer text, where it would go on otherwise.
    writer.add_context_length(min(contract.max_tokens, config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_causal_attention(contract.attention == "causal")
    writer.add_uint32(f"{writer.arch}.pooling_type", POOLINGS[contract.pooling])
    writer.add_string("embedforge.fingerprint", contract.fingerprint)
    writer.add_string("embedforge.contract", contract.model_copy(update={"goldens": ()}).model_dump_json())


def _tokenizer(writer: Any, model: EmbeddingModel, vocabulary: Vocabulary) -> None:
    tokenizer, contract = model.tokenizer, model.contract
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(True)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for name in ("bos", "eos", "pad", "unk"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(contract.add_bos)
    writer.add_add_eos_token(contract.add_eos)


def _weights(writer: Any, model: EmbeddingModel, architecture: str, family: Family, dtype: str) -> None:
    import gguf

    config = model.decoder.config
    (number,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    matrices = gguf.GGMLQuantizationType[_TYPES[dtype]]
    for name, weight in model.decoder.state_dict().items():
        new = names.get_name(f"model.{name}", try_suffixes=(".weight", ".bias"))
        if new is None:
            raise EmbedforgeError(f"llama.cpp's {architecture} has no place for the weights {name!r}")
        weight = weight.float()
        if family.interleaved and ".q_proj." in name:
            weight = _neighbours(weight, config.num_attention_heads)
        if family.interleaved and ".k_proj." in name:
            weight = _neighbours(weight, config.num_key_value_heads)
        kind = matrices if weight.dim() > 1 else gguf.GGMLQuantizationType.F32
        if weight.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = gguf.GGMLQuantizationType.F16  # a row that 8 bits' blocks of 32 do not divide
        writer.add_tensor(new, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    factors = rope_factors(model)
    if not torch.allclose(factors, torch.ones_like(factors)):
        writer.add_tensor("rope_freqs.weight", factors.numpy())


def rope_factors(model: EmbeddingModel) -> Tensor:
    """Return by what the decoder divides each rotary frequency, [head_dim / 2]: ones for the plain kind."""
    rope = model.decoder.config.rope_parameters
    size = _head_dim(model)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / model.decoder.rotary_emb.inv_freq.float().cpu()


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Put the two halves of each head's rotary pairs side by side: [heads * 2 * n, ...] as it was."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _head_dim(model: EmbeddingModel) -> int:
    config = model.decoder.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
