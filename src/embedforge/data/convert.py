"""Records of every kind to Examples, and `read_source`, which reads a recipe's source to its Examples.

| kind | keys of a record | becomes |
| --- | --- | --- |
| examples | query, positives, negatives … (`from_examples`) | the same |
| retrieval | a BEIR folder | a query and all its relevant documents |
| labels, clusters | text, label | a text and another of its class, or its label |
| scored_pairs | sentence1, sentence2, score | two Examples for a pair at or above a threshold |
| nli | premise, hypothesis, label | a premise, what follows from it, what contradicts it |
| texts | text, and perhaps title | the text as query and as its own positive, for mntp and simcse |

Of kinds other than "examples" the keys above are needed and further columns of a dataset are not read;
"examples" has optional keys, and therefore refuses those that it does not know.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from embedforge.data.columns import Opened, open_entry, prepared_file
from embedforge.data.example import Example
from embedforge.data.fields import example_of
from embedforge.data.labels import from_classes, from_labels
from embedforge.data.names import CATALOG_PREFIX, HUB_PREFIX, default_name
from embedforge.data.nli import from_nli
from embedforge.data.readers import Retrieval, join_title, read_beir, read_records, require_file
from embedforge.data.record import Record
from embedforge.data.sample import Item, sampled
from embedforge.errors import EmbedforgeError, did_you_mean

logger = logging.getLogger(__name__)

CLASSES = ("labels", "clusters")
"""Kinds whose records have a text and a label."""


class SourceSpec(Protocol):
    """What `read_source` asks of a source; `embedforge.recipe.Source` has these fields and documents them."""

    @property
    def path(self) -> str:
        """A file, a BEIR folder or `hub:owner/name`."""

    @property
    def name(self) -> str:
        """For metrics and messages."""

    @property
    def kind(self) -> str:
        """Which converter."""

    @property
    def split(self) -> str:
        """Of a BEIR folder or a hub dataset."""

    @property
    def instruction(self) -> str:
        """Of records without their own."""

    @property
    def in_batch_negatives(self) -> bool:
        """May documents of other rows be negatives."""

    @property
    def symmetric(self) -> bool:
        """Documents get the instruction as well."""

    @property
    def cap(self) -> int | None:
        """At most so many Examples."""

    @property
    def label_documents(self) -> Literal["examples", "labels"]:
        """Labels and clusters: what the documents are."""

    @property
    def threshold(self) -> float:
        """Scored pairs: the lowest score of a positive."""


def source_name(source: SourceSpec) -> str:
    """Return the source's name: the one given, or the last part of its path without endings.

    A file that is named after its split ("train.jsonl") hardly names a source, but two sources of one
    name are refused where they meet.
    """
    return source.name or default_name(source.path)


def source_file(source: SourceSpec, folder: str | Path | None = None) -> Path | None:
    """Return the file that a source is read from; None for a dataset of the hub, and for a BEIR folder.

    Args:
        source: a recipe's source.
        folder: where a relative path starts.
    """
    if source.path.startswith(HUB_PREFIX):
        return None
    if source.path.startswith(CATALOG_PREFIX):
        return prepared_file(source.path.removeprefix(CATALOG_PREFIX), folder)
    path = Path(folder or "") / source.path
    return path if path.is_file() else None


def read_source(
    source: SourceSpec, *, seed: int, folder: str | Path | None = None, negatives: int = 7
) -> list[Example]:
    """Read a source to its Examples.

    Each Example gets the source's name, its semantics (in-batch negatives, symmetric) and its
    instruction, unless the record brings an instruction of its own. Of more than `cap` Examples the
    seed chooses which are kept, in their order; of labels and clusters it chooses records, and documents are
    drawn from those. Memory is that of the `cap`, however large the dataset.

    Args:
        source: a recipe's source.
        seed: decides the cap's choice and the documents drawn for labels and clusters.
        folder: where a relative path starts.
        negatives: negatives drawn for labels and clusters.

    Raises:
        EmbedforgeError: a bad record (file, line, value), a source without a usable one, or a setting
            that its kind does not know.
    """
    if source.kind != "retrieval":
        opened = open_source(source, folder=folder)
        if opened.kind not in CLASSES and source.label_documents == "labels":
            logger.warning(
                "source '%s': the prepared file holds Examples, which have their documents; "
                "label_documents: labels has no effect on it",
                source_name(source),
            )
        return examples_of(source, opened.kind, opened.records, seed=seed, negatives=negatives)
    _refuse_unused_settings(source)
    if source.path.startswith(HUB_PREFIX):
        raise EmbedforgeError(
            f"{source.path}: kind 'retrieval' reads a BEIR folder; download the dataset into one"
        )
    examples = from_retrieval(read_beir(Path(folder or "") / source.path, source.split))
    return _finished(source, source.kind, examples, seed)


def require_source(source: SourceSpec, folder: str | Path | None = None) -> None:
    """Refuse a source whose file is not there; nothing is read, and no hub is asked.

    Raises:
        EmbedforgeError: names the file, and the nearest one that is there.
    """
    if source.kind != "retrieval" and not source.path.startswith((HUB_PREFIX, CATALOG_PREFIX)):
        require_file(Path(folder or "") / source.path)


def open_source(source: SourceSpec, *, folder: str | Path | None = None) -> Opened:
    """Open a source that has records: any but a BEIR folder.

    Args:
        source: a recipe's source.
        folder: where a relative path starts.

    Raises:
        EmbedforgeError: no such file or entry, or a setting that the source's kind does not know.
    """
    _refuse_unused_settings(source)
    if source.path.startswith(CATALOG_PREFIX):
        return open_entry(source.path, split=source.split, kind=source.kind, folder=folder)
    is_hub = source.path.startswith(HUB_PREFIX)
    path = source.path if is_hub else str(Path(folder or "") / source.path)
    return Opened(source.kind, read_records(path, split=source.split))


def examples_of(
    source: SourceSpec, kind: str, records: Iterable[Record], *, seed: int, negatives: int = 7
) -> list[Example]:
    """Convert the records of a source, as `read_source` does.

    Args:
        source: whose name, semantics, instruction and cap the Examples get.
        kind: which converter, as `open_source` says.
        records: all, or those that are wanted.
        seed: see `read_source`.
        negatives: see `read_source`.
    """
    if kind in ("examples", *CLASSES):
        records = drawn(source, records, seed)
    return _finished(
        source, kind, _convert(source, kind, records, f"{seed}/{source_name(source)}", negatives), seed
    )


def drawn(source: SourceSpec, items: Iterable[Item], seed: int) -> Iterable[Item]:
    """Return the items of a source, or `cap` of them, drawn by the seed, where there are more."""
    if source.cap is None:
        return items
    return sampled(items, source.cap, random.Random(f"{seed}/{source_name(source)}/cap"))


def _finished(source: SourceSpec, kind: str, converted: Iterable[Example], seed: int) -> list[Example]:
    """Give Examples what their source says of them, and draw `cap` of them."""
    name = source_name(source)
    named = (
        replace(
            example,
            source=name,
            instruction=example.instruction or source.instruction,
            in_batch_negatives=source.in_batch_negatives,
            symmetric=source.symmetric,
        )
        for example in converted
    )
    examples = list(drawn(source, named, seed))
    if not examples:
        raise EmbedforgeError(
            f"{source.path}: no Example came out of its records as '{kind}'; check kind and split"
        )
    return examples


def _convert(
    source: SourceSpec, kind: str, records: Iterable[Record], seed: str, negatives: int
) -> Iterator[Example]:
    if kind in CLASSES:
        return _classes(source, records, seed, negatives)
    converters: dict[str, Callable[[Iterable[Record]], Iterator[Example]]] = {
        "examples": from_examples,
        "scored_pairs": partial(from_scored_pairs, threshold=source.threshold),
        "nli": from_nli,
        "texts": from_texts,
    }
    if kind not in converters:
        known = [*converters, "retrieval", *CLASSES]
        raise EmbedforgeError(
            f"{source.path}: kind '{kind}' is none of {', '.join(known)}.{did_you_mean(kind, known)}"
        )
    return converters[kind](records)


def _classes(source: SourceSpec, records: Iterable[Record], seed: str, negatives: int) -> Iterator[Example]:
    if source.label_documents == "labels":
        return from_labels(records, seed=seed, negatives=negatives)
    if source.in_batch_negatives:
        logger.warning(
            "source '%s': documents of other rows may be of the query's own class and would count as "
            "its negatives; set in_batch_negatives: false",
            source_name(source),
        )
    return from_classes(records, seed=seed, negatives=negatives)


def _refuse_unused_settings(source: SourceSpec) -> None:
    """Raise for a setting that would have no effect: it is a mistake in the recipe."""
    is_file = source.kind != "retrieval" and not source.path.startswith((HUB_PREFIX, CATALOG_PREFIX))
    for setting, is_set, use in (
        (
            "split",
            is_file and source.split != "train",
            "BEIR folders and hub datasets; name the split's file in path",
        ),
        (
            "label_documents",
            source.kind not in CLASSES and source.label_documents != "examples",
            "kinds labels and clusters",
        ),
        ("threshold", source.kind != "scored_pairs" and source.threshold != 4.0, "kind scored_pairs"),
        ("symmetric", source.kind == "texts" and source.symmetric, "kinds with queries and documents"),
    ):
        if is_set:
            raise EmbedforgeError(
                f"source '{source_name(source)}': {setting} '{getattr(source, setting)}' has no effect on "
                f"kind '{source.kind}' from {source.path}; it is for {use}"
            )


def from_examples(records: Iterable[Record]) -> Iterator[Example]:
    """Convert pairs, triples and lists; see `embedforge.data.fields.example_of` for the keys."""
    return map(example_of, records)


def from_texts(records: Iterable[Record]) -> Iterator[Example]:
    """Give one Example a text, which is its own positive: what SimCSE embeds twice and MNTP reads once.

    Rows of white space alone, with which wikitext marks its paragraphs, are passed over.
    """
    for record in records:
        given = record.require("text")
        if isinstance(given, str) and not given.strip():
            continue
        text = join_title(record.optional_text("title"), record.text("text"))
        yield Example(text, (text,))


def from_retrieval(data: Retrieval) -> Iterator[Example]:
    """Give one Example a query, in the order of the judgements, with its documents graded above 0.

    Documents graded 0 or below are not used, and a query with no others gives nothing.
    """
    relevant: defaultdict[str, list[str]] = defaultdict(list)
    for judgement in data.judgements:
        if judgement.score > 0 and judgement.document_id not in relevant[judgement.query_id]:
            relevant[judgement.query_id].append(judgement.document_id)
    for query_id, document_ids in relevant.items():
        if document_ids:
            yield Example(
                query=data.queries[query_id],
                positives=tuple(data.documents[name] for name in document_ids),
                query_id=query_id,
                positive_ids=tuple(document_ids),
            )


def from_scored_pairs(records: Iterable[Record], *, threshold: float) -> Iterator[Example]:
    """Give two Examples, a to b and b to a, for a pair that scores at least `threshold`.

    NV-Embed takes STS pairs of 4 and above on the scale 0 to 5 (arXiv 2405.17428). Lower pairs give nothing.

    Raises:
        EmbedforgeError: no pair reaches the threshold.
    """
    highest, path = -float("inf"), ""
    for record in records:
        first, second = record.text("sentence1"), record.text("sentence2")
        score = record.number_of("score")
        highest, path = max(highest, score), record.path
        if score >= threshold:
            yield Example(first, (second,), symmetric=True)
            yield Example(second, (first,), symmetric=True)
    if highest < threshold:
        raise EmbedforgeError(
            f"{path}: no pair reaches the threshold {threshold:g}; the highest score is {highest:g}. "
            "Set the source's threshold on the scale of its scores"
        )
