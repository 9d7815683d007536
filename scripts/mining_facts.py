"""What mined negatives are like: how many a rule keeps, how far down it goes, how many answer after all."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from embedforge.data.example import Example
from embedforge.data.fields import example_of
from embedforge.data.readers import read_records
from embedforge.files import read_json
from embedforge.lexical import words
from embedforge.mine.run import EXAMPLES, FACTS, SCORES
from embedforge.text.near import Shingler
from embedforge.text.same import word_key

NEAR = 0.8
"""Jaccard similarity of three-word shingles from which on two documents say the same."""
Question = tuple[str, ...]
Ranks = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> its rank, from 1, among the candidates that are no positives."""


@dataclass(frozen=True)
class Facts:
    """Counts of a rule's negatives; those of several tasks add up."""

    examples: int
    judged: int
    """Candidates that a rule decides about: no positives, no copies."""
    kept: int
    negatives: int
    with_naive: int
    """Negatives that naive mining takes for the same query."""
    ranked: int
    """Negatives whose rank is known: those of the queries with a whole ranking."""
    ranks: int
    """Sum of these ranks."""
    above: int
    """Negatives that the teacher scores no lower than the query's weakest positive."""
    suspects: int
    """Negatives that all but repeat a labelled answer; see `answers`."""

    @classmethod
    def joined(cls, parts: Iterable[Facts]) -> Facts:
        """Add up."""
        return cls(*map(sum, zip(*map(astuple, parts), strict=True)))

    @staticmethod
    def columns() -> list[str]:
        """What `cells` holds."""
        return [
            "candidates kept",
            "negatives a query",
            "mean rank",
            "shared with naive",
            "above the positive",
            "repeats an answer",
        ]

    def cells(self) -> list[str]:
        """Return the counts as a table has them."""
        share = 1 / max(1, self.negatives)
        return [
            f"{self.kept / max(1, self.judged):.1%}",
            f"{self.negatives / self.examples:.2f}",
            f"{self.ranks / max(1, self.ranked):.1f}",
            f"{self.with_naive * share:.1%}",
            f"{self.above * share:.1%}",
            f"{self.suspects * share:.2%}",
        ]


def facts_of(folder: Path, naive: Path, ranks: Ranks, examples: Sequence[Example]) -> Facts:
    """Count what a folder of `embedforge mine` holds, of one source.

    Args:
        folder: of the rule.
        naive: of naive mining, for the same Examples.
        ranks: of some of the queries.
        examples: all that were mined for.
    """
    (counts,) = read_json(folder / FACTS)["counts"].values()
    asked, shingler = asked_of(examples), Shingler()
    negatives = with_naive = suspects = 0
    found: list[int] = []
    for example, plain in zip(read_examples(folder), read_examples(naive), strict=True):
        negatives += len(example.negatives)
        with_naive += len(set(example.negative_ids) & set(plain.negative_ids))
        known = ranks.get(example.query_id, {})
        found += [known[name] for name in example.negative_ids if name in known]
        for name, text in zip(example.negative_ids, example.negatives, strict=True):
            suspects += answers(text, example, asked[name], shingler)
    return Facts(
        examples=counts["examples"],
        judged=counts["chosen"] + counts["spare"] + counts["rejected"],
        kept=counts["chosen"] + counts["spare"],
        negatives=negatives,
        with_naive=with_naive,
        ranked=len(found),
        ranks=sum(found),
        above=above_positive(folder),
        suspects=suspects,
    )


def answers(document: str, example: Example, asked: set[Question], shingler: Shingler) -> bool:
    """Say whether a negative all but repeats a labelled answer: a rough sign of a false negative.

    It is listed as the answer of the same question but for stop words and punctuation. Or it nearly repeats
    a positive of the query, the question's own words included: templates repeat each other but for these.
    That some other query lists it says nothing: every document of a train part is listed by one.
    """
    question = question_of(example.query)
    return question in asked or any(
        shingler.similarity(document, positive) >= NEAR
        and set(question) & word_set(positive) <= word_set(document)
        for positive in example.positives
    )


def word_set(text: str) -> set[str]:
    """Return the words of a text."""
    return set(word_key(text).split())


def question_of(query: str) -> Question:
    """Return a query's words without stop words; single letters stay, they tell type A from type C."""
    return tuple(word for word in word_key(query).split() if len(word) == 1 or words(word))


def asked_of(examples: Sequence[Example]) -> defaultdict[str, set[Question]]:
    """Return for each document, by id, the questions that list it; none without words."""
    asked: defaultdict[str, set[Question]] = defaultdict(set)
    for example in examples:
        if question := question_of(example.query):
            for name in example.positive_ids:
                asked[name].add(question)
    return asked


def above_positive(folder: Path) -> int:
    """Count the negatives whose score is that of the weakest positive or higher."""
    count = 0
    for record in read_records(folder / SCORES):
        limit = min(record.values["positives"])
        count += sum(score >= limit for score in record.values["negatives"])
    return count


def ranks_of(folder: Path) -> Ranks:
    """Read the ranks from a folder in which naive mining took all candidates."""
    return {
        example.query_id: dict(zip(example.negative_ids, itertools.count(1), strict=False))
        for example in read_examples(folder)
    }


def read_examples(folder: Path) -> Iterable[Example]:
    """Read the Examples of a folder of `embedforge mine`."""
    return map(example_of, read_records(folder / EXAMPLES))
