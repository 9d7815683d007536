"""Natural language inference: what follows from a premise, and what contradicts it; for all verbs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from embedforge.data.example import Example
from embedforge.data.notes import Notes, warn
from embedforge.data.record import Record
from embedforge.errors import did_you_mean

ENTAILMENT = "entailment"
_NUMBERS = {0: ENTAILMENT, 1: "neutral", 2: "contradiction", -1: "-"}
_NAMES = (ENTAILMENT, "neutral", "contradiction", "not_entailment", "-")
_UNLABELLED = "pairs without a gold label, passed over"
_ZERO_AND_ONE = "labels 0 and 1, read as in SNLI: 0 is entailment, 1 is neutral (words leave no doubt)"


class NliPair(NamedTuple):
    """A premise, a hypothesis, and one of entailment, neutral, contradiction, not_entailment."""

    premise: str
    hypothesis: str
    label: str


def read_nli(records: Iterable[Record], notes: Notes) -> Iterator[NliPair]:
    """Yield the pairs that have a gold label.

    Labels are entailment, neutral, contradiction or not_entailment, or 0, 1, 2 in the order of SNLI and MNLI;
    "-" or -1 is a pair without a gold label. Other collections write 1 for entailment: where no number but 0
    and 1 occurs, how they were read is among the notes.

    Args:
        records: with premise, hypothesis and label.
        notes: gets what was passed over, once all are read.

    Raises:
        EmbedforgeError: a label that is none of these; names file, line and value.
    """
    numbers: Notes = Notes()
    for record in records:
        pair = NliPair(record.text("premise"), record.text("hypothesis"), _label(record, numbers))
        if pair.label == "-":
            notes[_UNLABELLED] += 1
        else:
            yield pair
    if numbers["1"] and not numbers["2"]:
        notes[_ZERO_AND_ONE] = numbers["0"] + numbers["1"]


def from_nli(records: Iterable[Record]) -> Iterator[Example]:
    """Give one Example a premise: entailed hypotheses are its positives, contradictions its negatives.

    The supervised form of SimCSE and LLM2Vec. A premise from which nothing follows gives no Example. A
    hypothesis labelled both ways stays a positive.
    """
    by_premise: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    notes, path = Notes(), ""

    def read() -> Iterator[Record]:
        nonlocal path
        for record in records:
            path = record.path
            yield record

    for premise, hypothesis, label in read_nli(read(), notes):
        by_premise[premise][label].append(hypothesis)
    warn(path, notes)
    for premise, hypotheses in by_premise.items():
        positives = tuple(dict.fromkeys(hypotheses[ENTAILMENT]))
        negatives = tuple(
            text for text in dict.fromkeys(hypotheses["contradiction"]) if text not in positives
        )
        if positives:
            yield Example(premise, positives, negatives)


def _label(record: Record, numbers: Notes) -> str:
    label = record.label("label")
    if isinstance(label, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", label):
        label = int(label)  # from a CSV cell
    if isinstance(label, int):
        numbers[str(label)] += 1
        name = _NUMBERS.get(label, str(label))
    else:
        name = label.strip().lower()
    if name not in _NAMES:
        raise record.error(
            f"'label' is {record.values['label']!r:.60}; known are {', '.join(_NAMES)}, or 0, 1, 2 and -1, "
            f"which are {', '.join(_NUMBERS.values())}.{did_you_mean(name, _NAMES)}"
        )
    return name
