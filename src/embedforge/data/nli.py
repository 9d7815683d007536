"""Natural language inference to Examples: what follows from a premise, and what contradicts it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from embedforge.data.example import Example
from embedforge.data.record import Record
from embedforge.errors import did_you_mean

_NLI = {0: "entailment", 1: "neutral", 2: "contradiction", -1: "-"}
_NLI_NAMES = ("entailment", "neutral", "contradiction", "not_entailment", "-")


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
