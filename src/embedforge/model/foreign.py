"""Loading models that have no contract: those of sentence-transformers, and what only looks like one."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from embedforge.errors import EmbedforgeError
from embedforge.files import read_json, read_object
from embedforge.model.special_tokens import CONFIG, add_asked_specials

logger = logging.getLogger(__name__)


def load_foreign(
    path_or_id: str, folder: Path, device: str, dtype: torch.dtype | None
) -> SentenceTransformer:
    """Load a model as sentence-transformers does, in the dtype it was saved in when `dtype` is None.

    BOS and EOS that the model's tokenizer_config.json asks for and transformers 5 passes over are added, as
    its authors' code did; a warning says so. A missing pad token becomes EOS.

    Args:
        path_or_id: of the model.
        folder: where its files lie, from `find_folder`.
        device: cpu, cuda, ...
        dtype: of the weights in memory.

    Raises:
        EmbedforgeError: a folder of embedforge that lost its contract; a bare decoder, for which
            sentence-transformers would invent a pooling; a tokenizer that cannot be mended; anything it
            cannot load.
    """
    if (folder / "modules.json").exists():
        _refuse_lost_contract(folder)
    elif (folder / "config.json").exists():
        _refuse_bare_decoder(folder)
    options = {} if dtype is None else {"dtype": dtype}
    try:
        st = SentenceTransformer(path_or_id, device=device, model_kwargs=options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise EmbedforgeError(f"{path_or_id}: sentence-transformers cannot load it: {error}") from error
    _mend_tokenizer(st, path_or_id, folder)
    return st


def _mend_tokenizer(st: SentenceTransformer, path_or_id: str, folder: Path) -> None:
    tokenizer = getattr(st, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = (
            tokenizer.eos_token
        )  # padding is masked; without any, no two texts embed at once
    places = (folder, folder / "0_Transformer")  # where sentence-transformers keeps its first module
    place = next((place for place in places if (place / CONFIG).exists()), folder)
    if added := add_asked_specials(tokenizer, place):
        logger.warning(
            "%s: %s asks for %s, which tokenizer.json does not add and transformers 5 passes over. Here it "
            "is added, as the authors' code did; plain sentence-transformers makes other vectors, until "
            "model.save_pretrained(...) has written a tokenizer.json that adds it",
            path_or_id,
            CONFIG,
            " and ".join(added),
        )


def _refuse_lost_contract(folder: Path) -> None:
    if any("embedforge." in str(module) for module in read_json(folder / "modules.json")):
        raise EmbedforgeError(
            f"{folder}: modules.json asks for embedforge, and there is no contract.json, which says how a "
            "text becomes a vector; copy it from where the folder comes from"
        )


def _refuse_bare_decoder(folder: Path) -> None:
    model_type = read_object(folder / "config.json").get("model_type")
    if (
        model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    ):
        raise EmbedforgeError(
            f"{folder}: this is a language model ('{model_type}'), not yet an embedding model. Train it: "
            f"embedforge train RECIPE --set model.base={folder}; to evaluate it as it is: {folder}@mean"
        )
