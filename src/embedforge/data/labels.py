"""Classes and clusters to Examples, both ways that NV-Embed uses (arXiv 2405.17428)."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from embedforge.data.example import Example
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError

logger = logging.getLogger(__name__)


def from_classes(records: Iterable[Record], *, seed: str | int, negatives: int) -> Iterator[Example]:
    """Pair each text with a random other text of its class, and with random texts of other classes.

    NV-Embed v2's form of classification and clustering (arXiv 2405.17428). A text that stands under two
    labels is no document for anyone; a text without another one of its class gives no Example, and a
    warning says how many do. In-batch negatives are off: other rows hold texts of the same class.

    Raises:
        EmbedforgeError: all records have one label.
    """
    rows = _labelled(records)
    classes_of: defaultdict[str, set[str]] = defaultdict(set)
    for text, label in rows:
        classes_of[text].add(label)
    texts_of: dict[str, list[str]] = {label: [] for _, label in rows}
    for text, labels in classes_of.items():
        if len(labels) == 1:
            texts_of[next(iter(labels))].append(text)
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
        outside = len(ring) - len(own)
        offsets = draw.sample(range(outside), min(negatives, outside))
        start = first[label] + len(own)
        yield Example(
            query=text,
            positives=(positive,),
            negatives=tuple(ring[(start + offset) % len(ring)] for offset in offsets),
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
    rows = _labelled(records, texts_only=True)
    names = list(dict.fromkeys(_label_text(label) for _, label in rows))
    index_of = {name: index for index, name in enumerate(names)}
    others = len(names) - 1
    for row, (text, label) in enumerate(rows):
        own = index_of[_label_text(label)]
        drawn = random.Random(f"{seed}/{row}").sample(range(others), min(negatives, others))
        yield Example(
            query=text,
            positives=(names[own],),
            negatives=tuple(names[index + (index >= own)] for index in drawn),
            in_batch_negatives=False,
        )


def _labelled(records: Iterable[Record], texts_only: bool = False) -> list[tuple[str, str]]:
    """Return the (text, label) of all records, which have two labels at least."""
    rows: list[tuple[str, str]] = []
    path = ""
    for record in records:
        label, path = record.label("label"), record.path
        if texts_only and (isinstance(label, int) or label.strip().lstrip("-").isdigit()):
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
