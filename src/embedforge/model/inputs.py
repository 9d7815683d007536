"""What `encode` of sentence-transformers accepts beside texts, rendered under a contract."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

from embedforge.errors import EmbedforgeError
from embedforge.text.render import Rendered, Renderer

logger = logging.getLogger(__name__)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning the first time that it is given."""
    logger.warning(message)


def render_inputs(
    renderer: Renderer, inputs: Sequence[Any], prefix: str, suffix: str, limit: int
) -> list[Rendered]:
    """Render texts, {"text": text}, and pairs of texts, each within `limit` tokens.

    A pair is one text after the other, as a tokenizer of the contract joins two: each has its own BOS and
    EOS, and only the first the prefix. Too long a pair loses the end of the longer text first.

    Raises:
        EmbedforgeError: something else, or see `Renderer.render`.
    """
    texts = [_texts_of(item) for item in inputs]
    options: dict[str, Any] = {"suffix": suffix, "any_prefix": True}
    firsts = renderer.render([text[0] for text in texts], prefix, max_tokens=limit, **options)
    pairs = [row for row, text in enumerate(texts) if len(text) == 2]
    if not pairs:
        return firsts
    warn_once("pairs of texts are not in the contract: the model was trained on single ones")
    seconds = renderer.render([texts[row][1] for row in pairs], max_tokens=limit)
    for row, second in zip(pairs, seconds, strict=True):
        room = _rooms(len(firsts[row].input_ids), len(second.input_ids), limit)
        (first,) = renderer.render([texts[row][0]], prefix, max_tokens=room[0], **options)
        (second,) = renderer.render([texts[row][1]], max_tokens=room[1])
        firsts[row] = Rendered(first.input_ids + second.input_ids, first.pooling_mask + second.pooling_mask)
    return firsts


def _texts_of(item: Any) -> tuple[str, ...]:
    if isinstance(item, dict) and set(item) == {"text"}:
        item = item["text"]
    if isinstance(item, str):
        return (item,)
    if isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(text, str) for text in item):
        return tuple(item)
    raise EmbedforgeError(f"a text to embed is a string, not a {type(item).__name__}: {item!r:.80}")


def _rooms(first: int, second: int, limit: int) -> tuple[int, int]:
    """Return the tokens that two texts may have together, where the longer one is cut first."""
    if first + second <= limit:
        return first, second
    half = limit // 2
    if first <= half:
        return first, limit - first
    return (limit - second, second) if second <= half else (limit - half, half)
