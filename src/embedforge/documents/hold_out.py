"""Which text is held out, and keeping its copies out of training.

A file is drawn by the seed and its own path, so that adding files does not move the others. Where whole files
would be too few or too large a part of the text, the last part of a file is held out instead.
"""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from embedforge.documents.chunks import code_passages
from embedforge.documents.document import Chunk, Pair, TextKind
from embedforge.documents.draw import keyed_fraction
from embedforge.documents.sentences import SENTENCE_CHARACTERS, sentences
from embedforge.text.near import near_duplicates
from embedforge.text.same import word_key
from embedforge.text.words import words_of

FILES_ENOUGH = 25
FEWEST_FILES = 5
LARGE_FILE = 0.1
"""A file with more than this share of all text is never held out whole."""
CHUNKS_FOR_TAIL = 8
"""A file with fewer chunks has no last part worth holding out."""
MOSTLY = 0.5
"""A chunk with this share of its words in sentences that are held out repeats held-out text."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A file, cut up."""

    file: str
    chunks: list[Chunk]
    pairs: list[Pair]

    @property
    def characters(self) -> int:
        """The length of all its chunks."""
        return sum(len(chunk.text) for chunk in self.chunks)


def held_out_from(files: Sequence[Cut], share: float, seed: int) -> tuple[dict[str, int], Counter[str]]:
    """Choose what to hold out.

    Returns:
        For every file of which something is held out, the character it is held out from on (0: all of it);
        and counts of files held out whole and of files whose last part is.
    """
    total = sum(cut.characters for cut in files)
    chance = {cut.file: keyed_fraction(seed, f"hold out {cut.file}") for cut in files}
    by_chance = sorted(files, key=lambda cut: (chance[cut.file], cut.file))
    few = len(files) < FILES_ENOUGH
    tails = [
        cut
        for cut in by_chance
        if (few or cut.characters > LARGE_FILE * total) and len(cut.chunks) >= CHUNKS_FOR_TAIL
    ]
    with_tail = {cut.file for cut in tails}
    whole = [cut for cut in by_chance if cut.file not in with_tail]
    starts = {cut.file: _tail_start(cut, share) for cut in tails}
    taken = sum(cut.characters for cut in tails) * share
    drawn = 0
    for cut in whole:
        fits = taken + cut.characters <= share * total
        if fits if few else (drawn < FEWEST_FILES or chance[cut.file] < share):
            starts[cut.file] = 0
            taken += cut.characters
            drawn += 1
    return starts, Counter(files_held_out=drawn, files_held_out_in_part=len(tails))


def _tail_start(cut: Cut, share: float) -> int:
    """Return where the last `share` of a file begins, or up to twice as much if a heading stands there."""
    lengths = [len(chunk.text) for chunk in cut.chunks]
    tails = dict(zip(range(len(lengths) - 1, 0, -1), itertools.accumulate(reversed(lengths)), strict=False))
    least = share * sum(lengths)
    enough = [number for number, size in tails.items() if size >= least]
    at_heading = [
        number
        for number in enough
        if tails[number] <= 2 * least and cut.chunks[number].headings != cut.chunks[number - 1].headings
    ]
    return cut.chunks[next(iter([*at_heading, *enough]), 1)].start


def short_texts(chunk: Chunk) -> list[str]:
    """Return a chunk's sentences; of source code, its definitions or pieces of them."""
    if chunk.kind == "prose":
        return sentences(chunk.text)
    return [textwrap.dedent(code) for code in code_passages(chunk.text, SENTENCE_CHARACTERS)]


def without_copies(
    train: Sequence[Chunk], held_out: Sequence[Chunk]
) -> tuple[list[Chunk], list[str], Counter[str]]:
    """Drop training chunks that repeat held-out ones or each other.

    A chunk repeats held-out text if it has nearly the same shingles as a held-out chunk, or if half of it are
    sentences that are held out: the same text may be cut at other places.

    Returns:
        The chunks kept; their short texts, without held-out ones and each once; counts of the chunks dropped.
    """
    copies = near_duplicates([chunk.text for chunk in train], [chunk.text for chunk in held_out])
    known = {word_key(text) for chunk in held_out for text in short_texts(chunk)}
    kept: list[Chunk] = []
    texts: list[str] = []
    seen: set[str] = set()
    counts = Counter(chunks_near_held_out=0, chunks_repeated=0)
    for chunk, copied in zip(train, copies, strict=True):
        words = word_key(chunk.text)
        if words in seen:
            counts["chunks_repeated"] += 1
            continue
        seen.add(words)
        short = {word_key(text): text for text in short_texts(chunk)}
        if copied or _mostly_known(chunk, short, known):
            counts["chunks_near_held_out"] += 1
        else:
            kept.append(chunk)
            texts += [text for name, text in short.items() if name not in known]
    return kept, distinct(texts), counts


def without_copied_pairs(
    pairs: Sequence[Pair], held_out_pairs: Sequence[Pair], held_out: Sequence[Chunk]
) -> list[Pair]:
    """Drop training pairs whose query or passage repeats held-out text, nearly or in half its sentences."""
    known = {word_key(text) for chunk in held_out for text in short_texts(chunk)}
    queries = near_duplicates([pair.query for pair in pairs], [pair.query for pair in held_out_pairs])
    passages = [*(pair.document for pair in held_out_pairs), *(chunk.text for chunk in held_out)]
    documents = near_duplicates([pair.document for pair in pairs], passages)
    kept = []
    for pair, *copied in zip(pairs, queries, documents, strict=True):
        kind: TextKind = "code" if pair.kind == "description" else "prose"
        chunk = Chunk(pair.document, pair.file, pair.place, (), kind, pair.start)
        short = {word_key(text): text for text in short_texts(chunk)}
        if not any(copied) and not _mostly_known(chunk, short, known):
            kept.append(pair)
    return kept


def _mostly_known(chunk: Chunk, texts: dict[str, str], known: set[str]) -> bool:
    repeated = sum(len(text) for name, text in texts.items() if name in known)
    return repeated > 0 and repeated >= MOSTLY * len(chunk.text)


def distinct(texts: Iterable[str]) -> list[str]:
    """Return texts in their order, of several with the same words the first, none without words."""
    by_words: dict[str, str] = {}
    for text in filter(words_of, texts):
        by_words.setdefault(word_key(text), text)
    return list(by_words.values())
