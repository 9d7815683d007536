"""What plain transformers makes of a saved tokenizer, and what it has to be told to make the right one.

`AutoTokenizer` chooses a class by the model type. The classes of some families (Qwen2, Qwen3.5) build their
pipeline anew whatever tokenizer.json holds: the isolation of the prefix is lost, token ids change, and no
error says so. Only the goldens do.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from embedforge.model.decoder import quiet
from embedforge.text.contract import Contract

NEUTRAL_TYPE = "glm4"
"""A model type whose class takes tokenizer.json as it stands, in transformers 5.2 as in 5.23.

The class has no name that `AutoTokenizer` accepts in both, and most other types changed theirs in between.
"""


def auto_tokenizer_options(folder: Path, contract: Contract) -> dict[str, str] | None:
    """Find the options with which `AutoTokenizer.from_pretrained(folder)` makes the goldens' token ids.

    Args:
        folder: with the saved tokenizer and config.json.
        contract: with goldens.

    Returns:
        {} where nothing has to be said, as for most families; None where nothing helps.
    """
    for options in ({}, {"tokenizer_type": NEUTRAL_TYPE}):
        if _makes_golden_ids(folder, contract, options):
            return options
    return None


def _makes_golden_ids(folder: Path, contract: Contract, options: dict[str, str]) -> bool:
    try:
        with quiet():
            # An explicit False: with None transformers would ask on stdin.
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception:  # Whatever a class of some family makes of files that are not its own.
        return False
    texts = [golden.prefix + golden.text + golden.suffix for golden in contract.goldens]
    ids = tokenizer(texts, truncation=True, max_length=contract.max_tokens)["input_ids"]
    return all(tuple(row) == golden.input_ids for row, golden in zip(ids, contract.goldens, strict=True))
