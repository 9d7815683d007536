"""What stands in a saved folder beside weights, tokenizer and contract: modules.json and its kin, the card.

Where sentence-transformers' own modules make the same vectors, modules.json names those, and the folder
loads without embedforge. Whether they do is decided twice: by rules that say why not, and by loading the
folder that way and comparing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense as StockDense
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PreTrainedModel

from embedforge.files import write_json
from embedforge.model.attention import needs_module_flags
from embedforge.model.decoder import quiet, state_width
from embedforge.model.int8 import is_int8
from embedforge.model.modules import Pool, TextEncoder
from embedforge.model.pooling import pooler_class
from embedforge.model.projection import FOLDER as DENSE_FOLDER
from embedforge.model.projection import Dense
from embedforge.text.contract import Contract

POOL_FOLDER = "1_Pool"
STOCK_POOL_FOLDER = "1_Pooling"
STOCK_CONFIG = "sentence_bert_config.json"
OLDER_MODULES = "sentence_transformers.models"
"""Where its modules were before version 6: the names that servers know, and that later versions read too."""
OLDER_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
TOLERANCE = 1e-3
"""Largest relative distance of two vectors that counts as equal in float32; another pool moves more."""


def prompts(contract: Contract) -> dict[str, str]:
    """Return what `encode_query` and `encode_document` put before a text."""
    return {"query": contract.query_prefix(), "document": contract.document_prefix()}


def write_own_modules(folder: Path, contract: Contract) -> None:
    """Name embedforge's modules in modules.json; their files are already there."""
    _write_modules(folder, [TextEncoder, Pool], Dense, contract)


def prefer_stock_modules(
    folder: Path, contract: Contract, decoder: PreTrainedModel, tokenizer_options: dict[str, str] | None
) -> str | None:
    """Write sentence-transformers' own modules where they give the contract's goldens, else embedforge's.

    Args:
        folder: with weights, tokenizer and `1_Pool` in it.
        contract: with goldens.
        decoder: the one that was saved, to explain a difference.
        tokenizer_options: from `auto_tokenizer_options`.

    Returns:
        Why sentence-transformers' own modules will not do; None when they do.
    """
    obstacle = obstacle_to_stock(contract)
    if is_int8(decoder):
        obstacle = "there are no linear layers with int8 weights and scales"
    if obstacle is None and tokenizer_options is None:
        obstacle = "AutoTokenizer makes other token ids of this folder than the contract's goldens have"
    if obstacle is None:
        write_stock_modules(folder, contract, state_width(decoder), tokenizer_options or {})
        obstacle = difference_of_stock(folder, contract)
        if obstacle is None:
            shutil.rmtree(folder / POOL_FOLDER)
            return None
        if contract.attention == "bidirectional" and needs_module_flags(decoder):
            obstacle = "this decoder would be causal again: its attention modules do not heed the config"
        shutil.rmtree(folder / STOCK_POOL_FOLDER)
        (folder / STOCK_CONFIG).unlink()
    write_own_modules(folder, contract)
    return obstacle


def write_stock_modules(
    folder: Path, contract: Contract, hidden_size: int, tokenizer_options: dict[str, str]
) -> None:
    """Let `SentenceTransformer(folder)` take the folder as its own: Transformer, Pooling, Normalize.

    `tokenizer_options` go along: without them it reads the tokenizers of some families as other ones.
    """
    text_only = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    write_json(
        folder / STOCK_CONFIG,
        {
            "transformer_task": "feature-extraction",
            # Written out, or a tokenizer with a chat template would be fed chat messages.
            "modality_config": text_only,
            "module_output_name": "token_embeddings",
            # For servers, some of which want both keys; the tokenizer says the same.
            "max_seq_length": contract.max_tokens,
            "do_lower_case": False,
        }
        | ({"processor_kwargs": tokenizer_options} if tokenizer_options else {}),
    )
    stock = pooler_class(contract.pooling).stock
    pooling_folder = folder / STOCK_POOL_FOLDER
    pooling_folder.mkdir(exist_ok=True)
    write_json(
        pooling_folder / "config.json",
        {
            "embedding_dimension": hidden_size,
            "pooling_mode": stock,
            "include_prompt": contract.pool_instruction,
            # What sentence-transformers wrote before version 6, and many servers read; without these keys
            # they pool the last token, whatever stands above.
            **{key: mode == stock for key, mode in OLDER_POOLING_KEYS.items()},
        },
    )
    _write_modules(folder, [Transformer, Pooling], StockDense, contract)


def obstacle_to_stock(contract: Contract) -> str | None:
    """Say what in the contract sentence-transformers' own modules cannot honour; None when they can."""
    if pooler_class(contract.pooling).stock is None:
        return f"there is no pooling '{contract.pooling}'"
    if obstacle := _obstacle_in_the_string(contract):
        return obstacle
    templates = (contract.query_template, contract.document_template)
    if contract.add_eos and not (contract.pool_eos and contract.eos_survives_truncation):
        return "EOS is always pooled and survives truncation"
    if contract.pooling == "last":
        return None  # The last token is the same whatever stands before it.
    templates_have_prefix = not all(template.startswith("{text}") for template in templates)
    if contract.add_bos:
        stock = "always" if contract.pool_instruction else "without_instruction"
        usual = {stock} if templates_have_prefix else {"always", "without_instruction"}
        if contract.pool_bos not in usual:
            return f"BOS would be pooled {stock.replace('_', ' ')}, not {contract.pool_bos.replace('_', ' ')}"
    if templates_have_prefix and not contract.pool_instruction:
        if not contract.isolate_prefix:
            return "the instruction's tokens are counted apart, and here a token may span its end"
        if contract.pooling == "weighted_mean":
            return "weights would count the tokens of the instruction too"
    return None


def _obstacle_in_the_string(contract: Contract) -> str | None:
    """Say what sentence-transformers cannot do to a text before it is tokenised."""
    if contract.chat_template != "{text}":
        return "texts without a prompt would not get the chat template"
    if contract.text_max_tokens is not None or contract.strip_text_end:
        return "texts are not shortened by words or stripped before they are tokenised"
    templates = (contract.query_template, contract.document_template)
    if not all(template.endswith("{text}") for template in templates):
        return "nothing can follow the text, as it does in the contract's templates"
    return None


def difference_of_stock(folder: Path, contract: Contract) -> str | None:
    """Load a folder with stock modules in plain sentence-transformers and compare with the goldens.

    Returns what differs, None when nothing does.
    """
    with quiet():
        stock = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    for prefix in dict.fromkeys(golden.prefix for golden in contract.goldens):
        goldens = [golden for golden in contract.goldens if golden.prefix == prefix]
        texts = [golden.text for golden in goldens]
        expected = np.array([golden.vector for golden in goldens])
        for batch_size in (1, len(texts)):  # Some decoders differ with padding only, or without.
            vectors = stock.encode(texts, prompt=prefix, batch_size=batch_size, normalize_embeddings=True)
            apart = np.linalg.norm(vectors[:, : expected.shape[1]] - expected, axis=1)
            apart /= np.linalg.norm(expected, axis=1)
            worst = int(apart.argmax())
            if not apart[worst] <= TOLERANCE:  # NaN counts as different.
                return f"the vector of {texts[worst]!r} after {prefix!r} is {apart[worst]:.2g} away"
    return None


def _write_modules(folder: Path, halves: list[type], dense: type, contract: Contract) -> None:
    """Write modules.json, prompts and versions, as sentence-transformers reads them.

    `dense` follows the two halves where the folder holds a map, and Normalize where the contract says so.
    """
    modules = [*halves, dense] if (folder / DENSE_FOLDER).is_dir() else halves
    modules = [*modules, Normalize] if contract.normalize else modules
    entries = []
    for index, module in enumerate(modules):
        path = f"{index}_{module.__name__}" if index else ""
        kind = f"{module.__module__}.{module.__name__}"
        if kind.startswith("sentence_transformers."):
            kind = f"{OLDER_MODULES}.{module.__name__}"
        entries.append({"idx": index, "name": str(index), "path": path, "type": kind})
    write_json(folder / "modules.json", entries)
    if contract.normalize:
        normalize_folder = folder / f"{len(modules) - 1}_Normalize"
        normalize_folder.mkdir(exist_ok=True)
        Normalize().save(str(normalize_folder))
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "__version__": {
                "sentence_transformers": sentence_transformers.__version__,
                "transformers": transformers.__version__,
                "pytorch": torch.__version__,
            },
            "prompts": prompts(contract),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
