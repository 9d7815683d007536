"""Queries for passages that training never sees, as a retrieval dataset that `embedforge evaluate` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedforge.documents.document import Chunk
from embedforge.errors import EmbedforgeError
from embedforge.files import replace_folder
from embedforge.synthesize.harvest import ExampleOutcome, Tally
from embedforge.synthesize.write import EXAMPLES

RETRIEVAL = "retrieval"
_MARKER = "README.txt"
_NOTE = "A test set, written anew by every `embedforge synthesize --test` run with this folder as --out.\n"
_DATASET = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"


@dataclass(frozen=True, slots=True)
class TestSet:
    """What a test set has besides its queries."""

    __test__ = False  # for pytest: this is no test
    name: str
    """Of the dataset."""
    distractors: Sequence[Chunk]
    """Passages that no query was written for: what else the queries are searched in."""

    @property
    def folder(self) -> str:
        """Where it lies in --out: `retrieval/NAME`, as `embedforge evaluate --tasks OUT` expects."""
        return f"{RETRIEVAL}/{re.sub(r'[^A-Za-z0-9._-]+', '-', self.name).strip('.-') or 'documents'}"


def write_test_set(
    out: Path, test: TestSet, passages: Sequence[Chunk], outcomes: Iterable[ExampleOutcome]
) -> Tally:
    """Write what was kept as a BEIR dataset, and count everything; an earlier one is replaced in one step.

    Args:
        out: the run's folder.
        test: name and distractors.
        passages: those that queries were written for, whether one was kept or not.
        outcomes: of the plan.
    """
    tally = Tally(wants_negatives=False)
    with replace_folder(out / RETRIEVAL, _MARKER) as folder:
        (folder / _MARKER).write_text(_NOTE, encoding="utf-8")
        corpus, queries, qrels = (folder / Path(test.folder).name / name for name in _DATASET)
        qrels.parent.mkdir(parents=True)
        with corpus.open("w", encoding="utf-8") as file:
            for chunk in (*passages, *test.distractors):
                file.write(_line({"_id": _id_of(chunk), "text": chunk.text}))
        with queries.open("w", encoding="utf-8") as query_file, qrels.open("w", encoding="utf-8") as judged:
            judged.write("query-id\tcorpus-id\tscore\n")
            for outcome in outcomes:
                tally.add(outcome)
                if outcome.reason or outcome.example is None or outcome.item is None:
                    continue
                if outcome.item.passage is not None:
                    query_file.write(_line({"_id": f"q{outcome.index}", "text": outcome.example.query}))
                    judged.write(f"q{outcome.index}\t{_id_of(outcome.item.passage)}\t1\n")
    return tally


def _line(record: dict[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _id_of(passage: Chunk) -> str:
    """Return its id without what separates the columns and lines of qrels."""
    return " ".join(passage.id.split())


def check_purpose(out: Path, *, is_test: bool) -> None:
    """Refuse a folder that holds training data where a test set is to be written, and the reverse.

    Raises:
        EmbedforgeError: it names what is there.
    """
    other = out / (EXAMPLES if is_test else RETRIEVAL)
    if other.exists():
        held = "training data, and a test set" if is_test else "a test set, and training data"
        raise EmbedforgeError(f"{other}: this folder holds {held} was asked for; name another --out")
