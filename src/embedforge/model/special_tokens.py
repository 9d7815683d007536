"""BOS and EOS that a model's tokenizer configuration asks for, and its tokenizer.json does not add.

`add_bos_token` and `add_eos_token` of tokenizer_config.json were honoured by the tokenizer classes of
transformers 4, with which E5-Mistral and others were trained and published. transformers 5 passes over both
keys wherever there is a tokenizer.json, so such a model pools another token than its authors' did.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from embedforge.errors import EmbedforgeError
from embedforge.files import read_object

CONFIG = "tokenizer_config.json"


def adds_specials(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Say whether a tokenizer puts BOS before a text, and EOS behind it."""
    ids = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bool(bos is not None and ids[:1] == [bos]), bool(eos is not None and ids[-1:] == [eos])


def add_asked_specials(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    """Let a tokenizer add, in place, the BOS and EOS that its configuration asks for.

    A key that is false or missing changes nothing: then tokenizer.json decides, as it does everywhere.

    Args:
        tokenizer: as transformers loaded it; a slow one honours the keys itself.
        folder: with its tokenizer_config.json.

    Returns:
        What it had not added, "BOS" and "EOS"; mostly nothing.

    Raises:
        EmbedforgeError: what it adds beside them would be lost, it has no such token, or a key is neither
            true nor false ("true" was true for transformers 4, and so was "false").
    """
    file = folder / CONFIG
    if not getattr(tokenizer, "is_fast", False) or not file.exists():
        return []
    values = read_object(file)
    for key in ("add_bos_token", "add_eos_token"):
        if not isinstance(values.get(key), bool | None):
            raise EmbedforgeError(f"{file}: '{key}' is {values[key]!r:.60}; write true or false")
    added = dict(zip(("bos", "eos"), adds_specials(tokenizer), strict=True))
    missing = [name for name, there in added.items() if values.get(f"add_{name}_token") is True and not there]
    for name in missing:
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise EmbedforgeError(
                f'{file}: add_{name}_token is true, and there is no {name}_token: set "{name}_token" to one '
                f"of the tokenizer's, or add_{name}_token to false"
            )
    if missing:
        _require_no_others(tokenizer, file, missing[0], added)
        # Both, and the tokens that are added already too: the library writes the whole rule anew from them.
        tokenizer.add_bos_token = added["bos"] or "bos" in missing
        tokenizer.add_eos_token = added["eos"] or "eos" in missing
    return [name.upper() for name in missing]


def _require_no_others(
    tokenizer: PreTrainedTokenizerBase, file: Path, name: str, added: dict[str, bool]
) -> None:
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = [tokenizer.bos_token_id] if added["bos"] else []
    behind = [tokenizer.eos_token_id] if added["eos"] else []
    if tokenizer("a")["input_ids"] != before + bare + behind:
        raise EmbedforgeError(
            f"{file}: add_{name}_token is true, and the post-processor of tokenizer.json adds other tokens "
            f"and no {name.upper()}: put {name.upper()} into that post-processor, or set add_{name}_token to "
            "false"
        )
