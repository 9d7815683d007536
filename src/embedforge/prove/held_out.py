"""What all systems are compared on: questions with their passages, passages cut in two, and plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from embedforge.documents import Chunk, Folder, Pair
from embedforge.documents.draw import keyed_hash
from embedforge.documents.pairs import SEPARATOR
from embedforge.documents.sentences import sentence_ends
from embedforge.documents.words import count_words
from embedforge.prove.plan import Sizes

HALF_WORDS = 5
"""A half with fewer words says too little to be recognised by."""

_LINE = re.compile(r"\n+")


@dataclass(frozen=True)
class HeldOut:
    """Held-out text, and distractors beside it, in an order drawn by the seed: a beginning is a sample."""

    pairs: list[Pair]
    distractors: list[Pair]
    """Of training text: what else the questions are searched in."""
    halves: list[tuple[str, str]]
    """Beginning and end of a passage each."""
    texts: list[str]
    """Passages for the MNTP loss."""

    @property
    def documents(self) -> list[str]:
        """What the questions are searched in: the answer of each in its place, then the distractors."""
        return [pair.document for pair in (*self.pairs, *self.distractors)]

    @property
    def question(self) -> str:
        """One that a reader may ask, rather some words than one; of a heading its own; "" without any."""
        own = [pair.query.rpartition(SEPARATOR)[2] for pair in self.pairs[:50]]
        return next((words for words in own if 4 <= len(words.split()) <= 15), own[0] if own else "")

    def cut(self, sizes: Sizes) -> HeldOut:
        """Return at most so many of each."""
        return replace(
            self,
            pairs=self.pairs[: sizes.pairs],
            distractors=self.distractors[: sizes.distractors],
            halves=self.halves[: sizes.halves],
        )


def held_out_of(folder: Folder, sizes: Sizes, seed: int) -> HeldOut:
    """Draw at most the given numbers of held-out texts."""
    chunks = sorted(folder.held_out, key=lambda chunk: keyed_hash(seed, chunk.id))
    return HeldOut(
        pairs=sorted(folder.pairs, key=lambda pair: keyed_hash(seed, pair.id)),
        distractors=sorted(folder.train_pairs, key=lambda pair: keyed_hash(seed, pair.id)),
        halves=[both for both in map(_halves, chunks) if both],
        texts=[chunk.text for chunk in folder.held_out],
    ).cut(sizes)


def is_code(pairs: Sequence[Pair]) -> bool:
    """Tell whether most questions are asked of code, where BM25 takes identifiers apart."""
    return 2 * sum(pair.kind == "description" for pair in pairs) > len(pairs)


def _halves(chunk: Chunk) -> tuple[str, str] | None:
    """Cut a passage at the end of the line or sentence that is nearest its middle; None where it is short."""
    text = chunk.text
    ends = [match.end() for match in _LINE.finditer(text)]
    if chunk.kind == "prose":
        ends += sentence_ends(text, 0, len(text))
    for end in sorted(ends, key=lambda end: abs(2 * end - len(text))):
        both = text[:end].strip(), text[end:].strip()
        if min(map(count_words, both)) >= HALF_WORDS:
            return both
    return None
