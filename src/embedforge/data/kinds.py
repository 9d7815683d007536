"""The kinds of source: what their records hold, and how those become Examples.

| kind | keys of a record | becomes |
| --- | --- | --- |
| examples | query, positives, negatives … (`fields.example_of`) | the same |
| retrieval | a BEIR folder | a query and all its relevant documents |
| labels, clusters | text, label | a text and another of its class, or its label |
| scored_pairs | sentence1, sentence2, score | two Examples for a pair above a threshold; or each, scored |
| nli | premise, hypothesis, label | a premise, what follows from it, what contradicts it |
| texts | text, and perhaps title | the text as query and as its own positive, for mntp and simcse |

Of kinds other than "examples" the keys above are needed and further columns of a dataset are not read;
"examples" has optional keys, and therefore refuses those that it does not know. A kind of your own is a
further subclass of `SourceKind`, imported before the recipe is read.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol

from typing_extensions import override

from embedforge.data.beir import document_text
from embedforge.data.example import Example
from embedforge.data.fields import example_of
from embedforge.data.labels import from_classes, from_labels
from embedforge.data.names import default_name
from embedforge.data.nli import from_nli
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError
from embedforge.validation import unknown_kind

logger = logging.getLogger(__name__)


Records = Iterable[Record]


class SourceSpec(Protocol):
    """What is asked of a source; `embedforge.recipe.Source` has these fields and documents them."""

    path: str
    name: str
    kind: str
    split: str
    instruction: str
    in_batch_negatives: bool
    symmetric: bool
    cap: int | None
    label_documents: Literal["examples", "labels"]
    threshold: float | None


def source_name(source: SourceSpec) -> str:
    """Return the source's name: the one given, or the last part of its path without endings.

    A file that is named after its split ("train.jsonl") hardly names a source, but two sources of one
    name are refused where they meet.
    """
    return source.name or default_name(source.path)


class SourceKind(ABC):
    """What the rows of a source mean. A subclass with a `name` is a kind."""

    name: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ("symmetric",)
    """Of symmetric, label_documents and threshold those that the kind has a use for; others are refused."""
    texts_alone: ClassVar[bool] = False
    """Whether its Examples are texts without an answer, as mntp and simcse learn from."""
    cap_draws_records: ClassVar[bool] = False
    """Whether a source's `cap` chooses records, and not the Examples that come of them."""
    is_folder: ClassVar[bool] = False
    """Whether it is read from a BEIR folder, and has no records."""

    def defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return in_batch_negatives and symmetric of a source that does not say them."""
        return {}

    @abstractmethod
    def examples(self, records: Records, source: SourceSpec, seed: str, negatives: int) -> Iterator[Example]:
        """Convert the records of a source.

        Args:
            records: all, or a drawn part.
            source: its settings; its name, instruction and semantics are put on the Examples afterwards.
            seed: of whatever is drawn.
            negatives: hard negatives that a stage takes of an Example.

        Raises:
            EmbedforgeError: a bad record (`Record.error` names file and line).
        """


def source_kinds() -> dict[str, SourceKind]:
    """Return all kinds that have been imported, by name."""
    waiting = list(SourceKind.__subclasses__())
    for kind in waiting:
        waiting += kind.__subclasses__()
    return {kind.name: kind() for kind in waiting if "name" in vars(kind)}


def source_kind(name: str) -> SourceKind:
    """Return a kind by its name.

    Raises:
        EmbedforgeError: there is none; names the nearest.
    """
    kinds = source_kinds()
    if name not in kinds:
        raise EmbedforgeError(f"kind {unknown_kind(name, list(kinds))}")
    return kinds[name]


class Examples(SourceKind):
    """Pairs, triples and lists."""

    name = "examples"
    cap_draws_records = True

    @override
    def examples(self, records: Records, source: SourceSpec, seed: str, negatives: int) -> Iterator[Example]:
        return map(example_of, records)


class BeirFolder(SourceKind):
    """Queries, documents and judgements; `convert.from_retrieval` reads them."""

    name = "retrieval"
    is_folder = True

    @override
    def examples(self, records: Records, source: SourceSpec, seed: str, negatives: int) -> Iterator[Example]:
        raise EmbedforgeError(f"{source.path}: kind 'retrieval' reads a BEIR folder, which has no records")


class Labels(SourceKind):
    """Texts with a class: another text of it, or its label, is the document."""

    name = "labels"
    settings = ("symmetric", "label_documents")
    cap_draws_records = True

    @override
    def defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        by_example = values.get("label_documents", "examples") == "examples"
        return {"in_batch_negatives": False, "symmetric": by_example}

    @override
    def examples(self, records: Records, source: SourceSpec, seed: str, negatives: int) -> Iterator[Example]:
        if source.label_documents == "labels":
            return from_labels(records, seed=seed, negatives=negatives)
        if source.in_batch_negatives:
            logger.warning(
                "source '%s': documents of other rows may be of the query's own class and would count as "
                "its negatives; set in_batch_negatives: false",
                source_name(source),
            )
        return from_classes(records, seed=seed, negatives=negatives)


class Clusters(Labels):
    """The same, of texts that were clustered."""

    name = "clusters"


class ScoredPairs(SourceKind):
    """Two sentences and how much they are alike."""

    name = "scored_pairs"
    settings = ("symmetric", "threshold")

    @override
    def defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        graded = {"in_batch_negatives": False} if values.get("threshold", 0) is None else {}
        return {"symmetric": True, **graded}

    @override
    def examples(self, records: Records, source: SourceSpec, seed: str, negatives: int) -> Iterator[Example]:
        if source.threshold is None:
            return from_graded_pairs(records)
        return from_scored_pairs(records, threshold=source.threshold)


class Nli(SourceKind):
    """Premises, and what follows from them or contradicts them."""

    name = "nli"

    @override
    def examples(self, records: Records, source: SourceSpec, seed: str, negatives: int) -> Iterator[Example]:
        return from_nli(records)


class Texts(SourceKind):
    """Texts alone: each its own positive, which SimCSE embeds twice and MNTP reads once.

    Rows without a text, with which wikitext marks its paragraphs, are passed over.
    """

    name = "texts"
    settings = ()
    texts_alone = True

    @override
    def examples(self, records: Records, source: SourceSpec, seed: str, negatives: int) -> Iterator[Example]:
        for record in records:
            if text := document_text(record):
                yield Example(text, (text,))


def scored_pair(record: Record) -> tuple[str, str, float]:
    """Return the two sentences of a record, and their score; for training and for evaluation."""
    return record.text("sentence1"), record.text("sentence2"), record.number_of("score")


def from_graded_pairs(records: Iterable[Record]) -> Iterator[Example]:
    """Give one Example, with its score, for each pair."""
    for record in records:
        score = record.number_of("score")
        yield Example(record.text("sentence1"), (record.text("sentence2"),), symmetric=True, score=score)


def from_scored_pairs(records: Iterable[Record], *, threshold: float) -> Iterator[Example]:
    """Give two Examples, a to b and b to a, for a pair that scores at least `threshold`.

    NV-Embed takes STS pairs of 4 and above on the scale 0 to 5 (arXiv 2405.17428). Lower pairs give nothing.

    Raises:
        EmbedforgeError: no pair reaches the threshold.
    """
    highest, path = -float("inf"), ""
    for record in records:
        first, second, score = scored_pair(record)
        highest, path = max(highest, score), record.path
        if score >= threshold:
            yield Example(first, (second,), symmetric=True)
            yield Example(second, (first,), symmetric=True)
    if highest < threshold:
        raise EmbedforgeError(
            f"{path}: no pair reaches the threshold {threshold:g}; the highest score is {highest:g}. "
            "Set the source's threshold on the scale of its scores"
        )
