"""Grounded data: queries are written for passages of the user's documents, which hold the negatives as well.

What is asked for a passage depends on its text and the seed alone: documents added later change no prompt
that was paid for.
"""

from __future__ import annotations

from collections.abc import Sequence

from embedforge.documents.document import Chunk
from embedforge.errors import EmbedforgeError
from embedforge.synthesize.filters import word_count
from embedforge.synthesize.groups import Group, Language, prompt, schema_of
from embedforge.synthesize.plan import Item, Lookup, Request, draw, draw_language, fraction, seed_of
from embedforge.text.near import Shingler
from embedforge.text.same import word_key

CANDIDATES = 50
"""Best passages by BM25 among which the hard negative is looked for."""
SHARE_OF_POSITIVE = 0.95
"""A hard negative scores less than this share of the passage's own score (NV-Retriever's TopK-PercPos)."""

SIMILARITY = 0.8
"""Jaccard similarity of three-word shingles from which on two passages say the same."""


class CorpusPlan:
    """Queries for passages, in an order drawn by the seed; every passage gets one before any gets a second.

    Args:
        passages: of the documents; those too short or too long for the group are passed over.
        group: the group `corpus`.
        languages: of the queries, drawn by their weights; none for the language of each passage.
        examples: how many.
        seed: of everything that is drawn.

    Raises:
        EmbedforgeError: no passage of a usable length.
    """

    def __init__(
        self,
        passages: Sequence[Chunk],
        group: Group,
        languages: Sequence[Language],
        examples: int,
        seed: int,
    ) -> None:
        self._group, self._languages, self._seed, self._examples = group, tuple(languages), seed, examples
        least, most = group.document
        usable = {passage.text: passage for passage in passages if least <= word_count(passage.text) <= most}
        if not usable:
            raise EmbedforgeError(
                f"--corpus: none of its {len(passages)} passages has {least} to {most} words, "
                "as a passage to ask for must"
            )
        self.passages = sorted(usable.values(), key=lambda passage: fraction(seed, "order", passage.text))

    def __len__(self) -> int:
        return self._examples

    def groups(self) -> Sequence[Group]:
        """The one group, `corpus`."""
        return (self._group,)

    def step(self, index: int, lookup: Lookup) -> Item:
        """Return the request for the query of example `index`."""
        turn, row = divmod(index, len(self.passages))
        passage = self.passages[row]
        here = (self._seed, passage.text, turn)
        kinds = self._group.kinds
        first = int(fraction(self._seed, passage.text, "kind") * len(kinds))
        kind = kinds[(first + turn) % len(kinds)]  # A passage's next query is of another kind.
        values = {name: draw(options, *here, name) for name, options in self._group.placeholders.items()}
        values |= {"query_type": kind.query_type, "language": "the language of the passage"}
        code = ""
        if self._languages:
            language = draw_language(self._languages, *here, "language")
            values["language"], code = language.name, language.code
        text = prompt(
            "generate-corpus",
            passage=passage.text,
            headings=f"It stands under: {' > '.join(passage.headings)}" if passage.headings else "",
            **values,
        )
        request = Request("generate", self._group.name, text, seed_of(*here), schema_of(("query",)))
        return Item(self._group, request, kind.instruction, code, "", values, passage)


class Neighbours:
    """Finds a passage that looks like an answer and, by its words, is a worse one."""

    def __init__(self, passages: Sequence[Chunk]) -> None:
        from embedforge.lexical import Bm25

        self._passages = passages
        self._shingler = Shingler()
        self._row_of = {passage.text: row for row, passage in enumerate(passages)}
        self._index = Bm25([passage.text for passage in passages], tokenization="identifiers")

    def negative(self, query: str, passage: Chunk) -> Chunk | None:
        """Return the best passage by BM25 that may be a hard negative of `query`, or None.

        It is from another file, no near-duplicate of `passage`, shares a word with the query, and scores less
        than `SHARE_OF_POSITIVE` of what `passage` does: one that scores as high may well answer too.
        """
        limit = SHARE_OF_POSITIVE * float(self._index.scores(query)[self._row_of[passage.text]])
        rows, scores = self._index.search([query], CANDIDATES)
        for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True):
            other = self._passages[row]
            if not 0 < score < limit or other.file == passage.file:
                continue
            if word_key(other.text) == word_key(query):
                continue
            if self._shingler.similarity(other.text, passage.text) >= SIMILARITY:
                continue
            return other
        return None
