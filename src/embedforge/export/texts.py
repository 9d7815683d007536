"""The texts that an export is checked with: the contract's goldens, and 200 more."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from embedforge.errors import EmbedforgeError
from embedforge.text.contract import Contract
from embedforge.text.goldens import GOLDEN_TEXTS
from embedforge.text.render import Rendered, Renderer

TEXTS = 200
ODD = 40
"""Of those, so many are made of token ids drawn by chance: they reach what no prose does."""
LENGTHS = (1, 3, 8, 20, 60, 150, 400)
"""Words of a text, in turn."""


@dataclass(frozen=True)
class Probe:
    """A text of the check, what stands around it, and what the contract's renderer made of it."""

    text: str
    prefix: str
    suffix: str
    kind: str
    rendered: Rendered


def probes(renderer: Renderer, file: Path | None = None) -> list[Probe]:
    """Return the contract's goldens, then 200 texts or a file's lines, every second one as a query.

    Raises:
        EmbedforgeError: the file cannot be read or has no text.
    """
    contract = renderer.contract
    golden = [(text, kind) for text in GOLDEN_TEXTS for kind in ("document", "query")]
    texts = _texts(renderer) if file is None else _lines(file)
    more = [(text, ("document", "query")[row % 2]) for row, text in enumerate(texts)]
    wanted = [(text, kind, *_frame(contract, kind)) for text, kind in [*golden, *more]]
    rendered = renderer.render(
        [text for text, *_ in wanted],
        [prefix for _, _, prefix, _ in wanted],
        suffix=[suffix for *_, suffix in wanted],
    )
    return [
        Probe(text, prefix, suffix, kind, row)
        for (text, kind, prefix, suffix), row in zip(wanted, rendered, strict=True)
    ]


def _frame(contract: Contract, kind: str) -> tuple[str, str]:
    if kind == "query":
        return contract.query_prefix(), contract.query_suffix()
    return contract.document_prefix(), contract.document_suffix()


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EmbedforgeError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise EmbedforgeError(f"{file}: not text, byte {error.start} is not valid UTF-8") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise EmbedforgeError(f"{file}: there is no text in it; give a text a line")
    return texts


def _texts(renderer: Renderer) -> list[str]:
    """Return prose of Python's own documentation, and strings that tokens drawn by chance spell."""
    from pydoc_data.topics import topics  # half a megabyte of English that every Python has

    draw = random.Random(0)
    words = " ".join(topics[name] for name in sorted(topics)).split()
    texts = []
    for row in range(TEXTS - ODD):
        start = draw.randrange(len(words) - max(LENGTHS))
        texts.append(" ".join(words[start : start + LENGTHS[row % len(LENGTHS)]]))
    vocabulary = len(renderer.tokenizer)
    for row in range(ODD):
        ids = [draw.randrange(vocabulary) for _ in range(LENGTHS[row % 4])]
        texts.append(renderer.tokenizer.decode(ids, skip_special_tokens=True))
    return texts
