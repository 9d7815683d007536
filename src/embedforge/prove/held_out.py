"""What all systems are compared on: questions with their passages, passages cut in two, and plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from embedforge.adapt.plan import Sizes
from embedforge.documents import Chunk, Folder, Pair
from embedforge.documents.draw import draw
from embedforge.documents.sentences import sentence_ends
from embedforge.documents.words import count_words

HALF_WORDS = 5
"""A half with fewer words says too little to be recognised by."""

_LINE = re.compile(r"\n+")


@dataclass(frozen=True)
class HeldOut:
    """Held-out text, and the distractors beside it."""

    pairs: list[Pair]
    distractors: list[str]
    halves: list[tuple[str, str]]
    """Beginning and end of a passage each."""
    texts: list[str]
    """Passages for the MNTP loss."""

    @property
    def documents(self) -> list[str]:
        """What the questions are searched in: the answer of each in its place, then the distractors."""
        return [*(pair.document for pair in self.pairs), *self.distractors]


def held_out_of(folder: Folder, sizes: Sizes, seed: int) -> HeldOut:
    """Draw at most the given numbers of held-out texts."""
    asked = draw((pair.id for pair in folder.pairs), sizes.pairs, seed)
    beside = draw(folder.distractors, sizes.distractors, seed)
    cut = {chunk.id: _halves(chunk) for chunk in folder.held_out}
    halves = {name: both for name, both in cut.items() if both}
    chosen = draw(halves, sizes.halves, seed)
    return HeldOut(
        pairs=[pair for pair in folder.pairs if pair.id in asked],
        distractors=[text for text in folder.distractors if text in beside],
        halves=[both for name, both in halves.items() if name in chosen],
        texts=[chunk.text for chunk in folder.held_out],
    )


def _halves(chunk: Chunk) -> tuple[str, str] | None:
    """Cut a passage at the end of the line or sentence that is nearest its middle; None where it is short."""
    text = chunk.text
    places = [match.end() for match in _LINE.finditer(text)]
    if chunk.kind == "prose":
        places += sentence_ends(text, 0, len(text))
    for place in sorted(places, key=lambda place: abs(2 * place - len(text))):
        both = text[:place].strip(), text[place:].strip()
        if min(map(count_words, both)) >= HALF_WORDS:
            return both
    return None


def split_at(sizes: Sequence[int]) -> list[int]:
    """Return where parts of these sizes are cut, for `numpy.split`.

    >>> split_at([2, 3, 4])
    [2, 5]
    """
    return list(accumulate(sizes))[:-1]
