"""Classes and clusters to Examples, both ways that NV-Embed uses (arXiv 2405.17428)."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from embedforge.data.example import Example
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError
from embedforge.text.same import layout_key

logger = logging.getLogger(__name__)


def from_classes(records: Iterable[Record], *, seed: str | int, negatives: int) -> Iterator[Example]:
    """Pair each text with a random other text of its class, and with random texts of other classes.

    NV-Embed v2's form of classification and clustering (arXiv 2405.17428). A text that stands under two
    labels is no document for anyone, and gets negatives from neither of its classes; a text without another
    one of its class gives no Example, and a warning says how many do. In-batch negatives are off: other rows
    hold texts of the same class.

    Raises:
        EmbedforgeError: all records have one label.
    """
    rows = labelled_rows(records)
    classes_of = _classes_of(rows)
    texts_of: dict[str, list[str]] = {label: [] for _, label in rows}
    for text, label in dict.fromkeys(rows):
        if len(classes_of[layout_key(text)]) == 1:
            texts_of[label].append(text)
    ring = [text for texts in texts_of.values() for text in texts]
    first = dict(zip(texts_of, _running_sum(map(len, texts_of.values())), strict=True))
    alone = 0
    for row, (text, label) in enumerate(rows):
        own = texts_of[label]
        draw = random.Random(f"{seed}/{row}")
        positive = _other(own, text, draw)
        if positive is None:
            alone += 1
            continue
        # From the end of its own class, once round to its start, the ring holds the other classes' texts.
        start = first[label] + len(own)
        others = classes_of[layout_key(text)] - {label}
        closed = sorted(((first[other] - start) % len(ring), len(texts_of[other])) for other in others)
        outside = len(ring) - len(own) - sum(length for _, length in closed)
        offsets = draw.sample(range(outside), min(negatives, outside))
        yield Example(
            query=text,
            positives=(positive,),
            negatives=tuple(ring[(start + _open(offset, closed)) % len(ring)] for offset in offsets),
            in_batch_negatives=False,
            symmetric=True,
        )
    if alone:
        logger.warning(
            "%d of %d texts have no other text of their class and give no Example", alone, len(rows)
        )


def from_labels(records: Iterable[Record], *, seed: str | int, negatives: int) -> Iterator[Example]:
    """Pair each text with its label's text, and with those of random other labels.

    NV-Embed v1's form, and v2's of two-class data (arXiv 2405.17428). Underscores of a label become spaces:
    "card_arrival" is the document "card arrival". In-batch negatives are off.

    Raises:
        EmbedforgeError: all records have one label, or labels are numbers, which say nothing as texts.
    """
    rows = [(text, _label_text(label)) for text, label in labelled_rows(records, names_only=True)]
    names = list(dict.fromkeys(label for _, label in rows))
    index_of = {name: index for index, name in enumerate(names)}
    classes_of = _classes_of(rows)
    for row, (text, label) in enumerate(rows):
        closed = sorted((index_of[name], 1) for name in classes_of[layout_key(text)])
        others = len(names) - len(closed)
        drawn = random.Random(f"{seed}/{row}").sample(range(others), min(negatives, others))
        yield Example(
            query=text,
            positives=(label,),
            negatives=tuple(names[_open(index, closed)] for index in drawn),
            in_batch_negatives=False,
        )


def labelled_rows(records: Iterable[Record], *, names_only: bool = False) -> list[tuple[str, str]]:
    """Return the (text, label) of all records, for training and for evaluation.

    Args:
        records: with text and label, a text or a whole number.
        names_only: refuse numbers.

    Raises:
        EmbedforgeError: a bad record, or all have one label.
    """
    rows: list[tuple[str, str]] = []
    path = ""
    for record in records:
        label, path = record.label("label"), record.path
        if names_only and (isinstance(label, int) or label.strip().lstrip("-").isdigit()):
            raise record.error(
                f"'label' is the number {label}, which says nothing as a document; "
                "write the label's name, or use label_documents: examples"
            )
        rows.append((record.text("text"), str(label)))
    if rows and len({_label_text(label) for _, label in rows}) < 2:
        raise EmbedforgeError(
            f"{path}: all {len(rows)} records have the label '{rows[0][1]}'; two are needed at least"
        )
    return rows


def _classes_of(rows: Iterable[tuple[str, str]]) -> Mapping[str, set[str]]:
    """Return the labels of each text, by its `layout_key`."""
    classes: defaultdict[str, set[str]] = defaultdict(set)
    for text, label in rows:
        classes[layout_key(text)].add(label)
    return classes


def _open(offset: int, closed: Iterable[tuple[int, int]]) -> int:
    """Return the position of the `offset`-th place that lies in none of the closed runs (start, length).

    >>> [_open(offset, [(0, 1), (3, 2)]) for offset in range(4)]
    [1, 2, 5, 6]
    """
    for start, length in closed:
        if offset >= start:
            offset += length
    return offset


def _label_text(label: str) -> str:
    return " ".join(label.replace("_", " ").split())


def _other(texts: Sequence[str], text: str, draw: random.Random) -> str | None:
    """Return a random one of the (different) `texts` that is not `text`, or None."""
    if not texts or texts == [text]:
        return None
    chosen = draw.choice(texts)
    while chosen == text:
        chosen = draw.choice(texts)
    return chosen


def _running_sum(lengths: Iterable[int]) -> Iterator[int]:
    total = 0
    for length in lengths:
        yield total
        total += length
