"""A tokenizer cut to the tokens that given texts need.

Byte-pair encoding (BPE) builds a token by merging two shorter ones, always the pair that comes first in its
list of merges. So a token needs the shorter ones it is built of: with those kept, and with every merge among
kept tokens in its old order, a text of kept tokens goes through the very same merges. What is left of the
vocabulary can write any text as long as it has a token for every byte.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from embedforge.errors import EmbedforgeError

SAMPLE_TEXTS, SAMPLE_CHARACTERS = 1000, 500_000
ODD_TEXTS = (
    "",
    " ",
    "  two\n\nlines\t",
    "naïve café",
    "日本語のテキスト 🙂 שלום",
    "\x00\x7f\u00ad\ufffd",
    "0.5 % of §2",
)
"""Text that hardly any training data holds in full: a cut tokenizer must write it with the tokens left."""

_WHITE_SPACE = (" ", "\n", "\t", "a b")
"""Always kept whole: tokenizers of Llama's kind write a space as a sign that no bytes stand for."""
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
_BATCH = 200
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CutVocabulary:
    """What is left of a tokenizer; its entries are numbered anew, in their old order."""

    tokenizer_json: dict[str, Any]
    """The content of tokenizer.json."""
    new_ids: dict[int, int]
    """New id by old id, ascending in both."""
    sample: tuple[str, ...]
    """Some of the texts, to check what is made of this."""


def cut_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    texts: Iterable[str],
    *,
    min_count: int = 1,
    always: Sequence[str] = (),
) -> CutVocabulary:
    """Keep the tokens that texts need, all special and added tokens, and a token for every byte.

    With `min_count` 1 every one of the texts is the same tokens as before; else every one that holds no rare
    token. The given tokenizer stays as it is.

    Args:
        tokenizer: a fast one, of byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) or of BPE that falls back to
            bytes (Llama 2, Mistral, Gemma).
        rows: of the embedding matrix; entries beyond it, which no model knows, are dropped.
        texts: gone through once.
        min_count: a token that occurs less often in all texts together is cut off.
        always: texts, and tokens by name, that are kept however rare.

    Raises:
        EmbedforgeError: another kind of tokenizer, or no text at all.
    """
    state = _state(tokenizer)
    model, byte_tokens = state["model"], _bytes_of(state)
    _warn_of_missing_bytes(byte_tokens)
    backend = Tokenizer.from_str(json.dumps(state))
    counts, sample = _count(backend, texts)
    if not counts:
        raise EmbedforgeError("there is no text to cut the vocabulary to: name files that hold some")
    wanted = {str(backend.id_to_token(number)) for number, count in counts.items() if count >= min_count}
    for text in (*always, *_WHITE_SPACE):
        wanted.update(backend.encode(text, add_special_tokens=False).tokens)
        wanted.update({text} & model["vocab"].keys())
    build = _Build(model)
    kept = (
        {part for token in wanted for part in build.parts(token)}
        | {*byte_tokens.values()}
        | {model["unk_token"]}
    )
    ids = {number for token, number in model["vocab"].items() if token in kept}
    ids |= {entry["id"] for entry in state["added_tokens"]}
    new_ids = {old: new for new, old in enumerate(sorted(number for number in ids if number < rows))}
    return CutVocabulary(_cut_state(state, new_ids), new_ids, tuple(sample))


def prove_cut(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, cut: CutVocabulary) -> None:
    """Hold a cut tokenizer, as it was saved and read again, to the one it was made of.

    Raises:
        EmbedforgeError: one of the sample's texts has other tokens, or an odd text reads otherwise when it is
            decoded.
    """
    for text in cut.sample:
        old, new = (tokenizer(text, verbose=False)["input_ids"] for tokenizer in (before, after))
        if cut.new_ids.keys() >= set(old) and [cut.new_ids[number] for number in old] != new:
            was, is_now = before.convert_ids_to_tokens(old)[:20], after.convert_ids_to_tokens(new)[:20]
            raise EmbedforgeError(
                f"the tokenizer cannot be cut: {text[:80]!r} was the tokens {was}, and is now {is_now}"
            )
    for text in ODD_TEXTS:
        was, is_now = (_round_trip(tokenizer, text) for tokenizer in (before, after))
        if was != is_now:
            raise EmbedforgeError(
                f"the tokenizer cannot be cut: {text!r}, tokenised and decoded, was {was!r}, and is now "
                f"{is_now!r}"
            )


class _Build:
    """How BPE builds a token."""

    def __init__(self, model: dict[str, Any]) -> None:
        self._ranks = {pair: rank for rank, pair in enumerate(_pairs(model))}

    def parts(self, token: str) -> set[str]:
        """Return a token and all that it is built of on the way, single characters included.

        One that merges do not lead to (an added token, a word taken whole) is returned alone. What merges do
        inside a token is the same whatever stands around it, as none of them crosses its ends.
        """
        pieces = list(token)
        seen = {*pieces, token}
        while len(pieces) > 1:
            ranks = [self._ranks.get(pair, math.inf) for pair in pairwise(pieces)]
            best = min(ranks)
            if best == math.inf:
                return {token}
            at = ranks.index(best)
            pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
            seen.add(pieces[at])
        return seen


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the content of tokenizer.json, without what cuts or pads; refuse what is no BPE on bytes."""
    if not getattr(tokenizer, "is_fast", False):
        raise EmbedforgeError(
            f"the vocabulary cannot be cut: the tokenizer is a {type(tokenizer).__name__}, and only fast "
            "tokenizers (a folder with a tokenizer.json) can be"
        )
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    model = state["model"]
    if model["type"] != "BPE":
        raise EmbedforgeError(
            f"the vocabulary cannot be cut: the tokenizer is of the kind {model['type']}, and only byte-pair "
            "encoding (BPE) can be; prune layers alone"
        )
    extra = {key for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(key)}
    if extra or not _bytes_of(state):
        why = (
            f"has {', '.join(sorted(extra))}" if extra else "has no tokens for bytes, so words would be lost"
        )
        raise EmbedforgeError(
            f"the vocabulary cannot be cut: this byte-pair encoding {why}; prune layers alone"
        )
    return state


def _bytes_of(state: dict[str, Any]) -> dict[int, str]:
    """Return the tokens that stand for single bytes; none where the tokenizer does not go down to bytes."""
    vocabulary = state["model"]["vocab"]
    if state["model"].get("byte_fallback"):
        signs = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    elif '"ByteLevel"' in json.dumps([state["pre_tokenizer"], state["normalizer"]]):
        signs = _byte_level_signs()
    else:
        signs = {}
    return {byte: sign for byte, sign in signs.items() if sign in vocabulary}


def _byte_level_signs() -> dict[int, str]:
    """Return how byte-level BPE writes each byte: as the Latin-1 character, or as one that can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(0x100 + n) for n, byte in enumerate(unseen)}


def _warn_of_missing_bytes(found: Mapping[int, str]) -> None:
    """Say which bytes of valid text the given tokenizer cannot write; what is left of it cannot either."""
    missing = [f"{byte:02X}" for byte in range(256) if byte not in found and byte not in _NEVER_IN_UTF8]
    if missing:
        logger.warning(
            "the base itself has no token for the bytes %s: it loses the characters that need them, "
            "and so does what is cut of it",
            " ".join(missing),
        )


def _count(backend: Tokenizer, texts: Iterable[str]) -> tuple[Counter[int], list[str]]:
    """Count the tokens of texts, and return the first of them."""
    counts: Counter[int] = Counter()
    sample: list[str] = []
    room = SAMPLE_CHARACTERS
    for batch in _batches(texts):
        for text in batch:
            if room > 0 and len(sample) < SAMPLE_TEXTS:
                sample.append(text)
                room -= len(text)
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(encoding.ids)
    return counts, sample


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    items = iter(texts)
    while batch := list(islice(items, _BATCH)):
        yield batch


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the merges, first to last; older files write a pair as one string."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def _cut_state(state: dict[str, Any], new_ids: dict[int, int]) -> dict[str, Any]:
    """Return a tokenizer.json with the entries that have a new id, and the merges among them."""
    model = state["model"]
    vocabulary = {token: new_ids[number] for token, number in model["vocab"].items() if number in new_ids}
    merges = [
        [left, right]
        for left, right in _pairs(model)
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    added = [
        entry | {"id": new_ids[entry["id"]]} for entry in state["added_tokens"] if entry["id"] in new_ids
    ]
    return state | {
        "model": model | {"vocab": vocabulary, "merges": merges},
        "added_tokens": added,
        "post_processor": _renumbered(state["post_processor"], new_ids),
    }


def _renumbered(processor: Any, new_ids: dict[int, int]) -> Any:
    """Return what puts BOS and EOS around a text, with their new ids."""
    if processor is None:
        return None
    changed = dict(processor)
    if "processors" in changed:
        changed["processors"] = [_renumbered(part, new_ids) for part in changed["processors"]]
    for name in ("sep", "cls"):  # of BERT's and RoBERTa's kind: [token, id]
        if name in changed:
            changed[name] = [changed[name][0], new_ids[changed[name][1]]]
    if "special_tokens" in changed:
        changed["special_tokens"] = {
            name: entry | {"ids": [new_ids[number] for number in entry["ids"]]}
            for name, entry in changed["special_tokens"].items()
        }
    return changed


def _round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
