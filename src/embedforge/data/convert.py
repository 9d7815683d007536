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

from embedforge.data.catalog import CATALOG_PREFIX
from embedforge.data.columns import open_entry, prepared_file
from embedforge.data.example import Example
from embedforge.data.fields import example_of
from embedforge.data.labels import from_classes, from_labels
from embedforge.data.readers import HUB_PREFIX, Retrieval, join_title, read_beir, read_records
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError, did_you_mean

logger = logging.getLogger(__name__)

_NLI = {0: "entailment", 1: "neutral", 2: "contradiction", -1: "-"}
_NLI_NAMES = ("entailment", "neutral", "contradiction", "not_entailment", "-")


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


def default_name(path: str) -> str:
    """Return the name of a source that has a path only.

    >>> default_name("data/msmarco.jsonl.gz")
    'msmarco'
    """
    return Path(path.removeprefix(HUB_PREFIX).removeprefix(CATALOG_PREFIX)).name.partition(".")[0]


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
    seed chooses which are kept, in their order.

    Args:
        source: a recipe's source.
        seed: decides the cap's choice and the documents drawn for labels and clusters.
        folder: where a relative path starts.
        negatives: negatives drawn for labels and clusters.

    Raises:
        EmbedforgeError: a bad record (file, line, value), a source without a usable one, or a setting
            that its kind does not know.
    """
    _refuse_unused_settings(source)
    name = source_name(source)
    path = source.path
    if folder is not None and not path.startswith((HUB_PREFIX, CATALOG_PREFIX)):
        path = str(Path(folder) / path)
    examples = [
        replace(
            example,
            source=name,
            instruction=example.instruction or source.instruction,
            in_batch_negatives=source.in_batch_negatives,
            symmetric=source.symmetric,
        )
        for example in _convert(source, path, folder, f"{seed}/{name}", negatives)
    ]
    if not examples:
        raise EmbedforgeError(
            f"{path}: no Example came out of its records as '{source.kind}'; check kind and split"
        )
    if source.cap is not None and len(examples) > source.cap:
        kept = random.Random(f"{seed}/{name}/cap").sample(range(len(examples)), source.cap)
        examples = [examples[row] for row in sorted(kept)]
    return examples


def _convert(
    source: SourceSpec, path: str, folder: str | Path | None, seed: str, negatives: int
) -> Iterator[Example]:
    kind = source.kind
    if kind == "retrieval":
        if path.startswith(HUB_PREFIX):
            raise EmbedforgeError(
                f"{path}: kind 'retrieval' reads a BEIR folder; download the dataset into one"
            )
        return from_retrieval(read_beir(path, source.split))
    if path.startswith(CATALOG_PREFIX):
        kind, records = open_entry(path, split=source.split, kind=kind, folder=folder)
    else:
        records = read_records(path, split=source.split)
    if kind in ("labels", "clusters"):
        return _classes(source, records, seed, negatives)
    converters: dict[str, Callable[[Iterable[Record]], Iterator[Example]]] = {
        "examples": from_examples,
        "scored_pairs": partial(from_scored_pairs, threshold=source.threshold),
        "nli": from_nli,
        "texts": from_texts,
    }
    if kind not in converters:
        known = [*converters, "retrieval", "labels", "clusters"]
        raise EmbedforgeError(
            f"{path}: kind '{kind}' is none of {', '.join(known)}.{did_you_mean(kind, known)}"
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
            source.kind not in ("labels", "clusters") and source.label_documents != "examples",
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


def from_nli(records: Iterable[Record]) -> Iterator[Example]:
    """Give one Example a premise: entailed hypotheses are its positives, contradictions its negatives.

    The supervised form of SimCSE and LLM2Vec. Labels are entailment, neutral, contradiction or
    not_entailment, or 0, 1, 2 in the order of SNLI and MNLI; "-" or -1 is a pair without a gold label.
    A premise from which nothing follows gives no Example. A hypothesis labelled both ways stays a positive.
    """
    by_premise: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        premise, hypothesis = record.text("premise"), record.text("hypothesis")
        by_premise[premise][_nli_label(record)].append(hypothesis)
    for premise, hypotheses in by_premise.items():
        positives = tuple(dict.fromkeys(hypotheses["entailment"]))
        negatives = tuple(
            text for text in dict.fromkeys(hypotheses["contradiction"]) if text not in positives
        )
        if positives:
            yield Example(premise, positives, negatives)


def _nli_label(record: Record) -> str:
    label = record.label("label")
    if isinstance(label, str) and label.lstrip("-").isdigit():
        label = int(label)  # from a CSV cell
    name = _NLI.get(label, str(label)) if isinstance(label, int) else label.strip().lower()
    if name not in _NLI_NAMES:
        raise record.error(
            f"'label' is {record.values['label']!r}; known are {', '.join(_NLI_NAMES)}, or 0, 1, 2 and -1."
            f"{did_you_mean(name, _NLI_NAMES)}"
        )
    return name
