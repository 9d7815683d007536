"""A tokenizer.json as llama.cpp reads a tokenizer: a list of tokens, their kinds, and a rule with a name.

llama.cpp runs two kinds of BPE: over bytes, where the text is first cut by one of its own rules (which a file
only names), and SentencePiece's, where the piece with the highest score is joined first.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from embedforge.text.contract import Contract

Step = dict[str, Any]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    f"{_CONTRACTIONS}\\p{{N}}{{1,3}}{_SIGNS}": "llama-bpe",
    f"{_CONTRACTIONS}\\p{{N}}{_SIGNS}": "qwen2",
}
"""Patterns that cut a text before BPE, as tokenizer.json has them, and llama.cpp's names: Llama 3, Qwen 2."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's kinds of tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file holds of a tokenizer."""

    model: str
    """gpt2 (bytes) or llama (SentencePiece)."""
    pre: str
    """The name of the rule that cuts a text before BPE."""
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    """SentencePiece's: what is joined first."""
    merges: list[str] | None
    one_space: bool = False
    """A text that begins with a space gets no second one, where llama.cpp always puts one before a text."""
    composed: bool = False
    """Texts are put into Unicode's form NFC first, which llama.cpp does not do."""

    def prepare(self, text: str) -> str:
        """Return a text as it has to be sent, so that llama.cpp makes the tokens that the tokenizer makes."""
        text = unicodedata.normalize("NFC", text) if self.composed else text
        return text.removeprefix(" ") if self.one_space else text


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, contract: Contract, rows: int) -> Vocabulary | str:
    """Return a tokenizer as llama.cpp has it, or what stands against that.

    Args:
        tokenizer: the contract's.
        contract: says whether the prefix is isolated, which is a rule that llama.cpp does not have.
        rows: of the decoder's embeddings; ids without a token are filled up.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        return f"llama.cpp reads no tokenizer of the kind {model['type']} for a decoder of this family"
    cuts = _flat(state["pre_tokenizer"], "pretokenizers")
    if contract.isolate_prefix:
        cuts = [step for step in cuts if not _isolates(step)]
    norms = _flat(state["normalizer"], "normalizers")
    if model["byte_fallback"]:
        return _pieces(state, cuts, norms, rows)
    if [step["type"] for step in norms] not in ([], ["NFC"]):
        return f"llama.cpp does not change texts as its tokenizer does ({_names(norms)})"
    pre = _rule(cuts)
    if pre is None:
        return (
            f"its tokenizer cuts texts by a rule that llama.cpp does not have ({_names(cuts)}), so it would "
            "make other tokens; what it knows are the rules of GPT-2, SmolLM, Llama and Qwen"
        )
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return Vocabulary("gpt2", pre, *_tokens(state, rows), None, merges, composed=bool(norms))


def _flat(component: Step | None, key: str) -> list[Step]:
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for part in component[key] for step in _flat(part, key)]


def _isolates(step: Step) -> bool:
    """Say whether a step is the one that ends a token behind the instruction (text/tokenizer.py)."""
    return step["type"] == "Split" and str(step["pattern"].get("Regex", "")).startswith("(?<=")


def _names(steps: list[Step]) -> str:
    return ", ".join(str(step.get("pattern", {}).get("Regex", step["type"])) for step in steps) or "none"


def _rule(cuts: list[Step]) -> str | None:
    """Return llama.cpp's name of the rule that cuts a text before byte-level BPE; None where it has none."""
    *before, last = cuts or [{"type": ""}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        kinds = tuple("each digit" if step.get("individual_digits") else str(step["type"]) for step in before)
        return {(): "gpt-2", ("each digit",): "smollm"}.get(kinds)
    if len(before) != 1 or before[0]["type"] != "Split" or before[0]["behavior"] != "Isolated":
        return None
    return SPLITS.get(str(before[0]["pattern"].get("Regex")))


def _pieces(state: Step, cuts: list[Step], norms: list[Step], rows: int) -> Vocabulary | str:
    """Read SentencePiece's BPE, which puts a space before every text and has a token for each byte."""
    marks = [step for step in cuts if step["type"] == "Metaspace" and step["prepend_scheme"] != "never"]
    prepends = [step for step in norms if step["type"] == "Prepend"]
    known = {"Prepend", "Replace", "Metaspace"}
    if len(marks) + len(prepends) != 1 or {step["type"] for step in (*cuts, *norms)} - known:
        return (
            "llama.cpp does not treat spaces and letters as its tokenizer does "
            f"(normalizer {_names(norms)}; pre-tokenizer {_names(cuts)})"
        )
    tokens, kinds = _tokens(state, rows)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(state["model"]["merges"]):
        ranks.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), rank)
    last = len(ranks)  # single characters; nothing is joined to give one
    scores = [-float(ranks.get(token, last)) for token in tokens]
    return Vocabulary("llama", "default", tokens, kinds, scores, None, one_space=bool(marks))


def _tokens(state: Step, rows: int) -> tuple[list[str], list[int]]:
    """Return every id's token and its kind."""
    model = state["model"]
    tokens = [f"[UNUSED{row}]" for row in range(rows)]
    kinds = [UNUSED] * rows
    for token, row in model["vocab"].items():
        tokens[row], kinds[row] = token, NORMAL
        if model["byte_fallback"] and len(token) == 6 and token.startswith("<0x"):
            kinds[row] = BYTE
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if model.get("unk_token") in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = UNKNOWN
    return tokens, kinds
