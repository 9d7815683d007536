"""From text to token ids and masks: the one place where a text is tokenised, cut, pooled and padded.

Training, evaluation and serving all come through here, under one contract. What may enter the embedding is
decided by the character offsets of the one tokenizer call, never by counting the tokens of a prefix
(the count changes when prefix and text share a token) and never by comparing ids (pad may equal EOS).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedforge.errors import EmbedforgeError
from embedforge.text.contract import Contract
from embedforge.text.saved_tokenizer import SavedTokenizer
from embedforge.text.tokenizer import contract_tokenizer, prefix_endings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Rendered:
    """One text as the model takes it, not yet padded."""

    input_ids: list[int]
    pooling_mask: list[int]
    """1 where a token may enter the embedding; as long as `input_ids`, never all 0."""
    cut: int = 0
    """Tokens that a limit has taken from the end, EOS too where the contract lets it go."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands around one text, and the room it has."""

    prefix: str
    text: str
    suffix: str
    max_tokens: int
    shortened: int
    """Tokens that the text has lost by itself already."""
    count: int | None
    """Tokens from the first on, BOS not among them, that are the prefix's; None where positions decide."""


class Renderer:
    """Renders texts under a contract.

    `tokenizer` is the contract's copy of the given tokenizer. Save that one with the model, and a plain
    library makes the same ids of `prefix + text`, unless the contract lets truncation cut EOS, which a saved
    tokenizer cannot express.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | SavedTokenizer, contract: Contract) -> None:
        """Prepare `tokenizer`; the given object is not changed. Errors: see `contract_tokenizer`.

        A `SavedTokenizer` is taken as it is: it was prepared when it was saved.
        """
        self.contract = contract
        saved = isinstance(tokenizer, SavedTokenizer)
        self.tokenizer: Any = tokenizer if saved else contract_tokenizer(tokenizer, contract)
        self._endings = prefix_endings(contract) if contract.isolate_prefix else None
        self._bos = [self.tokenizer.bos_token_id] if contract.add_bos else []
        self._eos = [self.tokenizer.eos_token_id] if contract.add_eos else []
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else pad  # any id will do: masks come from lengths
        first = self.tokenizer.tokenize("a", add_special_tokens=False)[:1]
        self._marks_start = bool(first) and first[0].startswith(("▁", "Ġ"))

    def render(
        self,
        texts: Sequence[str],
        prefixes: str | Sequence[str] = "",
        *,
        suffix: str | Sequence[str] = "",
        max_tokens: int | None = None,
        any_prefix: bool = False,
    ) -> list[Rendered]:
        """Tokenise `prefix + text + suffix` of each text, cut it, and say which tokens are pooled.

        `prefixes` is one string for all texts or one for each (`contract.query_prefix`, `.document_prefix`),
        and so is `suffix` (`contract.query_suffix`, `.document_suffix`).
        `any_prefix` takes an isolated prefix that does not end as the templates do: a token may span its end.
        `max_tokens` can only lower the contract's. Too long a text loses tokens at its end; prefix, suffix,
        BOS and EOS stay. If `contract.eos_survives_truncation` is false, the end that is cut is the whole
        string's, EOS first and suffix next, as in official NV-Embed and LLM2Vec. Before all that, the text
        by itself is shortened by words to `contract.text_max_tokens`, and stripped if the contract says so.

        Pooled is a token that ends beyond the prefix, the suffix's too, or, where the contract counts, one
        beyond as many tokens as the prefix has by itself. Without isolation the former includes
        "▁judo" of "Query: judo"; and where the tokenizer puts a space mark in front of every string, so that
        a text has one by itself, the prefix's trailing spaces count as the text's. BOS, EOS and the
        instruction follow the contract. A row with nothing to pool (an empty text without EOS, say) pools its
        last token; one without any token becomes a single pooled pad token.

        Raises EmbedforgeError when prefix, suffix, BOS and EOS leave no room for text, when an isolated
        prefix does not end as the templates do, for what is no text, and for text that is not valid Unicode.
        """
        texts = texts_in_order(texts)
        before = _one_each(prefixes, len(texts), "prefixes")
        after = _one_each(suffix, len(texts), "suffixes")
        if not texts:
            return []
        for prefix in () if any_prefix else set(before):
            self._check_prefix(prefix)
        most = self.contract.max_tokens
        limit = most if max_tokens is None else min(most, max_tokens)
        prepared, shortened = self._prepare(texts)
        strings = [p + t + s for p, t, s in zip(before, prepared, after, strict=True)]
        ids, offsets = self._tokenize(strings, located=any(before) or any(after))
        counts = self._counts(before)
        each = zip(before, prepared, after, shortened, strict=True)
        frames = [_Frame(p, t, s, limit, lost, counts.get(p)) for p, t, s, lost in each]
        return [self._finish(*row) for row in zip(frames, ids, offsets, strict=True)]

    def prepare(self, texts: Sequence[str]) -> Sequence[str]:
        """Shorten and strip texts by themselves where the contract asks for it; twice is the same as once."""
        return self._prepare(texts)[0]

    def _prepare(self, texts: Sequence[str]) -> tuple[Sequence[str], Sequence[int]]:
        """Return texts as `prepare` does, and how many tokens above the contract's limit each one had."""
        contract = self.contract
        lost = [0] * len(texts)
        if contract.text_max_tokens is not None:
            _refuse_invalid(texts)
            ids, _ = self._tokenize(list(texts), located=False)
            limit = contract.text_max_tokens
            lost = [max(0, len(row) - limit) for row in ids]
            texts = [
                text if len(row) <= limit else self._shortened(text, limit)
                for text, row in zip(texts, ids, strict=True)
            ]
        if contract.strip_text_end:
            _refuse_invalid(texts)
            texts = [text.rstrip() for text in texts]
        return texts, lost

    def pad(
        self, rendered: Sequence[Rendered], *, side: str | None = None, multiple_of: int = 1
    ) -> dict[str, torch.Tensor]:
        """Stack texts into int64 `input_ids`, `attention_mask`, `pooling_mask`, each [texts, tokens].

        `side` is "right" or "left", by default the contract's. The number of tokens is the longest text's,
        rounded up to `multiple_of`. Both masks are 0 on padding.
        """
        import torch

        side = self.contract.padding_side if side is None else side
        if side not in ("right", "left"):
            raise EmbedforgeError(f"the padding side is 'right' or 'left', not {side!r}")
        longest = max((len(row.input_ids) for row in rendered), default=0)
        width = -(-longest // multiple_of) * multiple_of
        shape = (len(rendered), width)
        batch = {
            "input_ids": torch.full(shape, self.pad_id, dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "pooling_mask": torch.zeros(shape, dtype=torch.int64),
        }
        for i, row in enumerate(rendered):
            length = len(row.input_ids)
            span = slice(0, length) if side == "right" else slice(width - length, width)
            batch["input_ids"][i, span] = torch.tensor(row.input_ids)
            batch["attention_mask"][i, span] = 1
            batch["pooling_mask"][i, span] = torch.tensor(row.pooling_mask)
        return batch

    def batch(
        self,
        texts: Sequence[str],
        prefixes: str | Sequence[str] = "",
        *,
        suffix: str | Sequence[str] = "",
        max_tokens: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Render and pad on the contract's side."""
        return self.pad(self.render(texts, prefixes, suffix=suffix, max_tokens=max_tokens))

    def _shortened(self, text: str, limit: int) -> str:
        """Keep the share of a text's words that the limit is of its tokens, until it fits.

        As LLM2Vec's code does, which counts no more than max_tokens at a time; but where that would leave not
        a single word (one long one, Chinese), the text is cut inside the word instead of left empty.
        """
        while True:
            ids, offsets = self._tokenize([text])
            tokens = min(len(ids[0]), self.contract.max_tokens)
            if tokens <= limit:
                return text
            words = text.split()
            kept = int(len(words) * (limit / tokens))
            if kept == 0:
                break
            text = " ".join(words[:kept])
        end = max(1, offsets[0][limit][0])
        while end > 1 and len(self._tokenize([text[:end]], located=False)[0][0]) > limit:
            end -= 1  # Bytes of one character share its offsets.
        return text[:end]

    def knows_prefix(self, prefix: str) -> bool:
        """Say whether a prefix is isolated: it ends as one of the templates does, or nothing is to be."""
        return self._endings is None or not prefix or prefix.endswith(self._endings)

    def _check_prefix(self, prefix: str) -> None:
        if self._endings is None or self.knows_prefix(prefix):
            return
        known = (
            " or ".join(repr(ending) for ending in self._endings) or "nothing (the templates have no prefix)"
        )
        raise EmbedforgeError(
            f"the prefix {prefix!r} does not end in {known}, so its last token could span the text's "
            "beginning: make it with contract.query_prefix(instruction), or set contract.isolate_prefix=false"
        )

    def _tokenize(
        self, strings: list[str], *, located: bool = True
    ) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Return ids of each string, without BOS and EOS and without a limit, and character offsets.

        Not `located`, the offsets are empty: to bring them to Python takes as long as to make the tokens.
        """
        try:
            encoded = self.tokenizer(
                strings,
                add_special_tokens=False,
                return_offsets_mapping=located,
                return_attention_mask=False,
                verbose=False,  # a text longer than the limit is cut here, and no reason for a warning
            )
        except (TypeError, UnicodeEncodeError):
            _refuse_invalid(strings)
            raise
        return encoded["input_ids"], encoded["offset_mapping"] if located else [[]] * len(strings)

    def _finish(self, frame: _Frame, ids: list[int], offsets: list[tuple[int, int]]) -> Rendered:
        """Cut the text, add BOS and EOS, and make the pooling mask."""
        contract = self.contract
        in_text = self._in_text(frame, offsets) if frame.prefix else [1] * len(ids)
        # Tokens come in the order of the text, so the prefix's are the first and the suffix's are the last.
        prefix_tokens = in_text.index(1) if 1 in in_text else len(ids)
        fits = len(self._bos) + len(ids) + len(self._eos) <= frame.max_tokens
        if contract.eos_survives_truncation:
            eos, suffix_tokens = self._eos, self._suffix_tokens(frame, offsets)
        else:
            eos, suffix_tokens = self._eos if fits else [], 0
        fixed = len(self._bos) + suffix_tokens + len(eos)
        if prefix_tokens + fixed >= frame.max_tokens:
            raise EmbedforgeError(
                f"prefix, suffix, BOS and EOS take {prefix_tokens + fixed} tokens of "
                f"max_tokens={frame.max_tokens} and leave no room for text: raise max_tokens, or shorten the "
                f"instruction {frame.prefix!r}"
            )
        text_end = len(ids) - suffix_tokens
        kept = min(text_end, frame.max_tokens - fixed)
        cut, tail = slice(kept), slice(text_end, len(ids))
        pooled = [1] * len(ids) if contract.pool_instruction else in_text
        pool_bos = contract.pool_bos == "always" or (
            contract.pool_bos == "without_instruction" and not frame.prefix
        )
        mask = (
            [int(pool_bos)] * len(self._bos)
            + pooled[cut]
            + pooled[tail]
            + [int(contract.pool_eos)] * len(eos)
        )
        input_ids = self._bos + ids[cut] + ids[tail] + eos
        if not input_ids:
            return Rendered([self.pad_id], [1])
        if 1 not in mask:
            mask[-1] = 1
        lost = frame.shortened + text_end - kept + len(self._eos) - len(eos)
        return Rendered(input_ids, mask, lost)

    def _counts(self, prefixes: Sequence[str]) -> dict[str, int]:
        """Return how many tokens each prefix takes where the contract counts; nothing where it does not."""
        if self.contract.prefix_tokens != "counted":
            return {}
        known = [prefix for prefix in dict.fromkeys(prefixes) if prefix]
        ids = self._tokenize(known, located=False)[0] if known else []
        # BOS is one of the tokens that are counted off, though the prefix was counted without it.
        return {prefix: max(0, len(row) - len(self._bos)) for prefix, row in zip(known, ids, strict=True)}

    def _suffix_tokens(self, frame: _Frame, offsets: list[tuple[int, int]]) -> int:
        """Count the tokens that end in the suffix."""
        return sum(end > len(frame.prefix) + len(frame.text) for _, end in offsets) if frame.suffix else 0

    def _in_text(self, frame: _Frame, offsets: list[tuple[int, int]]) -> list[int]:
        """Return 1 for each token that ends beyond the prefix, or is beyond its count, [tokens]."""
        if frame.count is not None:
            return [int(token >= frame.count) for token in range(len(offsets))]
        own_space = self._marks_start and not self.contract.isolate_prefix
        prefix = frame.prefix.rstrip(" ") if own_space else frame.prefix
        return [int(end > len(prefix)) for _, end in offsets]


def texts_in_order(texts: Iterable[str]) -> Sequence[str]:
    """Return texts as a sequence: lists as they are, and what a table or an array has in its order.

    Raises:
        EmbedforgeError: one text, whose letters would be taken for texts; a set or a mapping, which says
            nothing of an order; something that is no text.
    """
    if isinstance(texts, str | Mapping | AbstractSet):
        raise EmbedforgeError(
            f"texts are a list of strings, not a {type(texts).__name__} ({texts!r:.60}): write [text], or "
            "list(...) of those meant"
        )
    ordered = texts if isinstance(texts, Sequence) else list(texts)
    for number, text in enumerate(ordered):
        if not isinstance(text, str):
            raise EmbedforgeError(f"text {number} is a {type(text).__name__}, not a string: {text!r:.60}")
    return ordered


def _one_each(given: str | Sequence[str], texts: int, name: str) -> list[str]:
    each = [given] * texts if isinstance(given, str) else list(given)
    if len(each) != texts:
        raise EmbedforgeError(f"{texts} texts were given {len(each)} {name}: give one string, or one each")
    return each


def _refuse_invalid(strings: Sequence[str]) -> None:
    for i, string in enumerate(strings):
        try:
            string.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EmbedforgeError(
                f"text {i} is not valid Unicode: {error.reason} at character {error.start} "
                f"({string[error.start]!r}); clean it with text.encode('utf-8', 'replace').decode()"
            ) from None
