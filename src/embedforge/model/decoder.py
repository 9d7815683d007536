"""Reading a decoder and its tokenizer from a folder or a hub, with every doubt an error before training.

Weights come from safetensors only, code of a repository runs only when asked for, and nothing here ever
waits for an answer on stdin.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from embedforge.errors import EmbedforgeError, did_you_mean
from embedforge.files import read_object
from embedforge.model.attention import position_ids, require_decoder, takes_position_ids
from embedforge.model.config_check import culprit
from embedforge.model.folder import find_folder
from embedforge.model.int8 import read_int8
from embedforge.model.memory import require_memory
from embedforge.model.packing import split
from embedforge.model.quick import quick_states
from embedforge.model.shards import INT8_WEIGHTS, TensorEntry, list_tensors

_VOCABULARIES = ("*.model", "vocab*", "*.tiktoken", "tekken.json", "*vocab*", "*.bpe")
"""Files of tokenizers other than tokenizer.json."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_decoder(
    base: str,
    *,
    dtype: str | torch.dtype = "float32",
    attention_implementation: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder without its language-model head, and its tokenizer.

    Args:
        base: `embedforge:base` (the decoder in the package), a folder, or a hub id.
        dtype: of the weights in memory: float32, bfloat16 or float16.
        attention_implementation: sdpa, eager, flash_attention_2, or auto for transformers' choice.
        trust_remote_code: allow a repository whose model type transformers does not know to run its code.

    Raises:
        EmbedforgeError: no such model; not a decoder; weights missing, cut off or not safetensors;
            code that was not asked for; a tokenizer without EOS. Names the file and the way out.
    """
    folder = find_folder(base)
    model = read_decoder(
        folder,
        trust_remote_code=trust_remote_code,
        dtype=torch_dtype(dtype),
        attn_implementation=None if attention_implementation == "auto" else attention_implementation,
    )
    return model, read_tokenizer(folder, model, trust_remote_code=trust_remote_code)


def read_decoder(folder: Path, *, trust_remote_code: bool = False, **model_options: Any) -> PreTrainedModel:
    """Load the decoder of a local folder; `model_options` go to transformers' `from_pretrained`."""
    config = read_config(folder, trust_remote_code)
    trust_remote_code = trust_remote_code and config.model_type not in CONFIG_MAPPING_NAMES
    if (folder / INT8_WEIGHTS).exists():
        options = model_options.get("dtype"), model_options.get("attn_implementation")
        with quiet():
            return read_int8(folder, config, *options).eval()
    try:
        # Refuses missing and cut off files by name.
        require_memory(_bytes_of(list_tensors(folder), model_options.get("dtype")), str(folder))
        with quiet():  # Of the language-model head, which is left out on purpose.
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **model_options,
            )
    except EmbedforgeError:
        raise
    except Exception as error:  # See `read_config`: some wrong values only show when the model is built.
        key = culprit(read_object(folder / "config.json"), str(error))
        raise EmbedforgeError(
            f"{folder}: this model cannot be loaded: {key}{_said(error)}. Is a value of its config.json "
            "wrong?"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise EmbedforgeError(
            f"{folder}: the weights lack {len(missing)} of the model's tensors, first '{missing[0]}'. "
            "Is config.json from another model, or the download incomplete?"
        )
    require_decoder(model)
    return model.eval()


def read_tokenizer(
    folder: Path, model: PreTrainedModel | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder; a missing pad token becomes EOS.

    `tokenizer.json` is taken as it stands: the class AutoTokenizer would choose for some model types
    rebuilds the pipeline from its parts and loses a space token.
    """
    try:
        if (folder / "tokenizer.json").exists():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        else:
            if not trust_remote_code and not any(any(folder.glob(name)) for name in _VOCABULARIES):
                raise ValueError(
                    "there is no file of a vocabulary"
                )  # of which transformers makes an empty one
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # The tokenizers library raises bare Exception for a broken file.
        raise _unreadable_tokenizer(folder, error) from error
    rows = model.get_input_embeddings().num_embeddings if model is not None else len(tokenizer)
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= rows:
        raise EmbedforgeError(
            f"{folder}: the tokenizer has no EOS token that the model knows (EOS {tokenizer.eos_token!r}, id "
            f'{tokenizer.eos_token_id}, of {rows} embeddings). Set "eos_token" in tokenizer_config.json'
            + ("" if (folder / "tokenizer_config.json").exists() else ", which is missing: download it again")
        )
    if model is not None:
        _require_embeddings(folder, tokenizer.get_vocab(), rows, tokenizer.pad_token)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _require_embeddings(folder: Path, vocabulary: dict[str, int], rows: int, pad: str | None) -> None:
    """Refuse tokens that the model has no embedding for: the first text with one of them would end the run.

    A pad token of its own may be one: no text needs it.
    """
    beyond = {number: token for token, number in vocabulary.items() if number >= rows and token != pad}
    if beyond:
        raise EmbedforgeError(
            f"{folder}: the tokenizer has {len(beyond)} tokens that the model has no embedding for, the "
            f"first of them {beyond[min(beyond)]!r} (id {min(beyond)}, of {rows} embeddings). Where they "
            "were added, call model.resize_token_embeddings(len(tokenizer)) and save both; otherwise "
            "take the tokenizer that the model came with"
        )


def token_states(
    decoder: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    rectangles: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Run a decoder, PEFT-wrapped or not; [texts, tokens] int64 twice to [texts, tokens, hidden].

    Positions count real tokens, so that models with absolute positions bear padding on the left. With
    `rectangles` the batch is a packed one, [1, tokens] (`model.packing`). Most decoders go the quick way of
    `quick_states` on a CPU, without gradients: zeros stand for padding.
    """
    if rectangles is not None:
        return _packed_states(decoder, input_ids, attention_mask, rectangles)

    quick = quick_states(decoder, input_ids, attention_mask, partial(stock_states, decoder))
    return stock_states(decoder, input_ids, attention_mask) if quick is None else quick


def stock_states(decoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Run a decoder as `token_states` does, by transformers' own code and no other."""
    positions = {"position_ids": position_ids(attention_mask)} if takes_position_ids(decoder) else {}
    output = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **positions)
    return cast(Tensor, output.last_hidden_state)


def _packed_states(
    decoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, rectangles: Sequence[Sequence[int]]
) -> Tensor:
    parts = split(attention_mask, rectangles)
    positions = torch.cat([position_ids(part).flatten() for part in parts])[None]
    # Four dimensions, which transformers takes for finished: a mask of the whole row would be its square.
    real = attention_mask.bool()[:, None, None]
    output = decoder(
        input_ids=input_ids,
        attention_mask=real[..., :0] if bool(real.all()) else real,
        use_cache=False,
        position_ids=positions,
        rectangles=[(texts, tokens) for texts, tokens in rectangles],
    )
    return output.last_hidden_state


def state_width(decoder: PreTrainedModel) -> int:
    """Return how many numbers a token's last state has.

    That is `hidden_size`, except where a decoder projects its states to the width of its embeddings: OPT-350m
    computes in 1,024 and gives 512.
    """
    config = decoder.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


@torch.no_grad()
def require_state_width(decoder: PreTrainedModel, base: str) -> None:
    """Refuse a decoder whose states are not as wide as its configuration says: no pooler would fit."""
    one = torch.ones((1, 1), dtype=torch.int64, device=decoder.device)
    found, said = token_states(decoder, one, one).shape[-1], state_width(decoder)
    if found != said:
        raise EmbedforgeError(
            f"{base}: a token's state has {found} numbers, and by config.json it would have {said}; decoders "
            "with an output of another width are not supported, but for OPT's"
        )


def _bytes_of(entries: Sequence[TensorEntry], dtype: Any) -> int:
    """Return what tensors take in memory in another dtype, or as they are stored."""
    if not isinstance(dtype, torch.dtype):
        return sum(entry.end - entry.begin for entry in entries)
    return sum(math.prod(entry.shape) for entry in entries) * dtype.itemsize


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars while a model is read or written."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return torch's dtype for float32, bfloat16 or float16."""
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise EmbedforgeError(
            f"dtype is one of {', '.join(DTYPES)}, not '{name}'.{did_you_mean(name, DTYPES)}"
        )
    return DTYPES[name]


def read_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """Read config.json and refuse what is no decoder or needs code that was not asked for."""
    file = folder / "config.json"
    if not file.exists():
        if (folder / "adapter_config.json").exists():
            raise EmbedforgeError(
                f"{folder}: this is a LoRA adapter without its decoder; merge it into its base first"
            )
        if files := sorted(folder.glob("*.gguf")):
            raise EmbedforgeError(f"{folder}: no config.json; to take the GGUF file, name it: {files[0]}")
        held = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise EmbedforgeError(f"{folder}: no config.json, so this is not a model folder (it holds {held})")
    values = read_object(file)
    model_type = values.get("model_type")
    known = model_type in CONFIG_MAPPING_NAMES
    if not known and not (trust_remote_code and "auto_map" in values):
        raise EmbedforgeError(_unknown_type(file, model_type, "auto_map" in values))
    try:
        # Code runs only where nothing else will do. False, not None: then transformers would ask on stdin.
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code and not known)
    except Exception as error:  # Whatever a wrong value leads to, in code that takes it for a right one.
        raise EmbedforgeError(
            f"{file}: {culprit(values, str(error))}transformers cannot read this configuration: "
            f"{_said(error)}"
        ) from error


def _said(error: Exception) -> str:
    """Return what an error says; a bare KeyError or ZeroDivisionError says little without its name."""
    plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    text = str(error)[:1000]
    return text if plain and text else f"{type(error).__name__}: {text}"


def _unreadable_tokenizer(folder: Path, error: Exception) -> EmbedforgeError:
    """Say which file of the tokenizer is missing or damaged; a broken JSON file is raised with its line."""
    held = [folder / name for name in ("tokenizer.json", "tokenizer_config.json") if (folder / name).exists()]
    for file in held:
        read_object(file)
    if folder / "tokenizer.json" in held:
        return EmbedforgeError(f"{folder / 'tokenizer.json'}: cannot be read, download it again ({error})")
    return EmbedforgeError(
        f"{folder}: there is no tokenizer.json. Copy it, and tokenizer_config.json, from the folder or "
        f"repository that the model comes from. (Nothing else would do: {' '.join(str(error).split())})"
    )


def _unknown_type(file: Path, model_type: str | None, has_code: bool) -> str:
    if model_type == "nvembed":
        return f"{file}: this is a finished NV-Embed model; load it with embedforge.load"
    if has_code:
        return (
            f"{file}: model type '{model_type}' runs code that comes with the model. Read that code, "
            "then set trust_remote_code to true"
        )
    return (
        f"{file}: this version of transformers does not know the model type '{model_type}'."
        f"{did_you_mean(str(model_type), CONFIG_MAPPING_NAMES)}"
    )
