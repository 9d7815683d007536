"""`read_source`, which reads a recipe's source to its Examples; `kinds` says what each kind of source is."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from embedforge.data.beir import Retrieval, read_beir
from embedforge.data.columns import Opened, open_entry, prepared_file
from embedforge.data.example import Example
from embedforge.data.kinds import SourceSpec, source_kind, source_kinds, source_name
from embedforge.data.names import CATALOG_PREFIX, HUB_PREFIX
from embedforge.data.notes import warn
from embedforge.data.readers import read_records, require_file
from embedforge.data.record import Record
from embedforge.data.sample import Item, sampled
from embedforge.errors import EmbedforgeError

logger = logging.getLogger(__name__)


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
    if not source_kind(source.kind).is_folder:
        opened = open_source(source, folder=folder)
        if "label_documents" not in source_kind(opened.kind).settings and source.label_documents == "labels":
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
    data = read_beir(Path(folder or "") / source.path, source.split, corpus="relevant")
    warn(source.path, data.notes)
    return _finished(source, source.kind, from_retrieval(data), seed)


def require_source(source: SourceSpec, folder: str | Path | None = None) -> None:
    """Refuse a source whose file is not there, or has no first record; no hub is asked.

    Raises:
        EmbedforgeError: names the file, and the nearest one that is there; or what its first record lacks.
    """
    if source.kind != "retrieval" and not source.path.startswith((HUB_PREFIX, CATALOG_PREFIX)):
        path = Path(folder or "") / source.path
        require_file(path)
        next(read_records(path))


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
    converter = source_kind(kind)
    if converter.cap_draws_records:
        records = drawn(source, records, seed)
    examples = converter.examples(records, source, seed=f"{seed}/{source_name(source)}", negatives=negatives)
    return _finished(source, kind, examples, seed)


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
            in_batch_negatives=source.in_batch_negatives and example.score is None,
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


def _refuse_unused_settings(source: SourceSpec) -> None:
    """Raise for a setting that would have no effect: it is a mistake in the recipe."""
    kind = source_kind(source.kind)
    is_file = not kind.is_folder and not source.path.startswith((HUB_PREFIX, CATALOG_PREFIX))
    if is_file and source.split != "train":
        raise _unused(source, "split", "BEIR folders and hub datasets; name the split's file in path")
    for setting, default in (("label_documents", "examples"), ("threshold", 4.0), ("symmetric", False)):
        if setting not in kind.settings and getattr(source, setting) != default:
            users = [name for name, other in source_kinds().items() if setting in other.settings]
            raise _unused(source, setting, f"sources of kind {' or '.join(users)}")


def _unused(source: SourceSpec, setting: str, use: str) -> EmbedforgeError:
    return EmbedforgeError(
        f"source '{source_name(source)}': {setting} '{getattr(source, setting)}' has no effect on "
        f"kind '{source.kind}' from {source.path}; it is for {use}"
    )


def from_retrieval(data: Retrieval) -> Iterator[Example]:
    """Give one Example a query, in the order of the judgements, with its documents graded above 0.

    Documents graded 0 are not used.
    """
    for query_id, grades in data.grades.items():
        relevant = tuple(name for name, grade in grades.items() if grade > 0)
        yield Example(
            query=data.queries[query_id],
            positives=tuple(data.documents[name] for name in relevant),
            query_id=query_id,
            positive_ids=relevant,
        )
