"""Questions that a text's own structure asks, to measure retrieval where nobody has labelled anything."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from embedforge.documents.chunks import Locator, section_pieces
from embedforge.documents.document import Chunk, Pair, PairKind, ParsedFile, Section
from embedforge.documents.draw import keyed_fraction
from embedforge.documents.sentences import sentence_ends
from embedforge.documents.words import QUERY_CHARACTERS, count_words
from embedforge.text.same import word_key
from embedforge.text.words import shorten

BODY_WORDS = 20
"""A shorter passage is a stub: a link, a badge, "see below"."""
CODE_WORDS = 8
"""Code says more in a word."""
QUERY_WORDS = 2
CLOZE_WORDS = 6
CLOZE_SENTENCES = 3
MOSTLY = 0.7
HEADINGS_REPEATED = 4
"""A heading that so many files have ("SYNOPSIS") asks for none of them in particular."""
BOILERPLATE = (
    "introduction overview license licence copyright contents table-of-contents references bibliography index"
    " see-also acknowledgements acknowledgments appendix notes note abstract conclusion conclusions changelog"
    " authors contributors preface foreword further-reading external-links related-topics todo"
)
"""Last headings that most documents have, in lower case with a hyphen between words."""

SEPARATOR = " > "

_GENERIC = frozenset(BOILERPLATE.split())
_LEGAL = frozenset({"license", "licence", "licensing", "copyright", "changelog", "trademarks"})
_ITEM_END = re.compile(r"\n(?=\s*\n|\s*(?:[-*+•]|\d{1,3}[.)])\s)")
_ITEM = re.compile(r"\s*(?:(?:[-*+•]|\d{1,3}[.)]|#{1,6}|>)\s+)+")


def structure_pairs(
    document: ParsedFile, chunks: Sequence[Chunk], characters: int, seed: int
) -> Iterator[Pair]:
    """Yield the pairs of a document, those that `usable` would drop included.

    Source code gives its descriptions; prose its headings; prose with at most one heading also a sentence
    of each chunk, taken out of it, which the seed draws.

    Args:
        document: the document.
        chunks: its chunks.
        characters: a passage is at most about so long; of a longer section the beginning is taken.
        seed: draws the sentences.
    """
    locate = Locator(document)

    def pair(kind: PairKind, query: str, answer: str, start: int) -> Pair:
        query = shorten(query, QUERY_CHARACTERS, at=" ")
        name = f"{document.file}#{start}:{kind}"
        return Pair(name, query, answer, kind, document.file, locate(start), start)

    if document.kind == "code":
        for item in document.described:
            code = shorten(item.code, characters, at="\n")
            yield pair("description", item.description, code, locate.start(item.line))
        return
    headed = [section for section in document.sections if section.headings]
    answered = -1
    for section in headed:
        pieces = section_pieces(document, section, characters)
        if pieces:
            start, answered = pieces[0]
            kind: PairKind = "title" if _is_title(document, section) else "heading"
            answer = document.text[start:answered].strip("\n").rstrip()
            yield pair(kind, SEPARATOR.join(section.headings), answer, start)
    if len(headed) <= 1:
        for chunk in chunks:
            if chunk.start >= answered:
                cloze = _cloze(chunk, seed)
                if cloze:
                    yield pair("cloze", *cloze, chunk.start)


def usable(pairs: Sequence[Pair]) -> tuple[list[Pair], Counter[str]]:
    """Drop pairs that do not ask anything in particular, and count them by the reason.

    To be called with the pairs of the whole folder: what asks in particular depends on what others ask. Of
    several pairs with the same passage the first is kept.
    """
    queries = Counter(word_key(pair.query) for pair in pairs)
    answered: set[str] = set()
    headed = {(pair.file, _leaf(pair)) for pair in pairs if pair.kind == "heading"}
    files_with = Counter(leaf for _, leaf in headed)
    tests: list[tuple[str, Callable[[Pair], bool]]] = [
        ("pairs_near_empty", _is_near_empty),
        ("pairs_query_too_short", lambda pair: count_words(pair.query) < QUERY_WORDS),
        ("pairs_of_links", lambda pair: mostly_links(pair.document)),
        ("pairs_boilerplate", lambda pair: _is_boilerplate(pair, files_with)),
        ("pairs_query_in_answer", _is_copied),
        ("pairs_query_repeated", lambda pair: queries[word_key(pair.query)] > 1),
        ("pairs_answer_repeated", lambda pair: word_key(pair.document) in answered),
    ]
    kept: list[Pair] = []
    counts: Counter[str] = Counter({name: 0 for name, _ in tests})
    for pair in pairs:
        reason = next((name for name, applies in tests if applies(pair)), None)
        if reason is None:
            kept.append(pair)
            answered.add(word_key(pair.document))
        else:
            counts[reason] += 1
    return kept, counts


def mostly_links(text: str) -> bool:
    """Tell "See also", a table of contents or a list of commits: most lines hold a link of Markdown."""
    written = [line for line in text.split("\n") if line.strip()]
    return sum("](" in line for line in written) > MOSTLY * len(written)


def _is_title(document: ParsedFile, section: Section) -> bool:
    """The document's title, over its first text."""
    first = next(other for other in document.sections if other.headings)
    return section is first and section.headings == (document.title,)


def _leaf(pair: Pair) -> str:
    return word_key(pair.query.rpartition(SEPARATOR)[2]).replace(" ", "-")


def _is_near_empty(pair: Pair) -> bool:
    return count_words(pair.document) < (CODE_WORDS if pair.kind == "description" else BODY_WORDS)


def _is_boilerplate(pair: Pair, files_with: Counter[str]) -> bool:
    if pair.kind not in {"title", "heading"}:
        return False
    leaf = _leaf(pair)
    return leaf in _GENERIC or not _LEGAL.isdisjoint(leaf.split("-")) or files_with[leaf] >= HEADINGS_REPEATED


def _is_copied(pair: Pair) -> bool:
    """The passage begins with the query's words, or with those of a last heading of two words or more."""
    beginning = word_key(pair.document[: 2 * QUERY_CHARACTERS]) + " "
    leaf = word_key(pair.query.rpartition(SEPARATOR)[2])
    return beginning.startswith(word_key(pair.query) + " ") or (
        count_words(leaf) >= QUERY_WORDS and beginning.startswith(leaf + " ")
    )


def _cloze(chunk: Chunk, seed: int) -> tuple[str, str] | None:
    """Take a sentence out of a chunk of prose; None where it has too few of them."""
    items = (match.end() for match in _ITEM_END.finditer(chunk.text))
    ends = sorted({0, *sentence_ends(chunk.text, 0, len(chunk.text)), *items, len(chunk.text)})
    spans = [
        (start, end)
        for start, end in itertools.pairwise(ends)
        if end - start <= QUERY_CHARACTERS and count_words(chunk.text[start:end]) >= CLOZE_WORDS
    ]
    if len(spans) < CLOZE_SENTENCES:
        return None
    start, end = spans[int(keyed_fraction(seed, chunk.id) * len(spans))]
    query = " ".join(_ITEM.sub("", chunk.text[start:end], count=1).split())
    return query, (chunk.text[:start].rstrip() + " " + chunk.text[end:].lstrip()).strip()
