"""Units to training Examples and to a held-out retrieval pool."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from embedforge.data.example import Example
from embedforge.quickstart.unit import Unit
from embedforge.text.same import word_key

CODE_INSTRUCTION = "Given a description of a Python function or class, retrieve its source code"
TEXT_INSTRUCTION = "Given a heading or an opening sentence, retrieve the text that belongs to it"
CLUSTER_CODE_INSTRUCTION = (
    "Identify the module or package that a piece of Python code or documentation belongs to"
)
CLUSTER_TEXT_INSTRUCTION = "Identify the part of the documentation that a text belongs to"
RETRIEVAL_SOURCE = "retrieval"
CLUSTER_SOURCE = "packages"


@dataclass(frozen=True)
class Pool:
    """A retrieval test: queries, the documents they are searched in, and the right ones."""

    queries: dict[str, str]
    documents: dict[str, str]
    relevant: dict[str, set[str]]
    """Query id -> ids of its documents."""


def retrieval_instruction(units: Sequence[Unit]) -> str:
    """Return the instruction of a corpus's queries; a corpus is all code or all text."""
    return TEXT_INSTRUCTION if units and _is_text(units[0]) else CODE_INSTRUCTION


def cluster_instruction(units: Sequence[Unit]) -> str:
    """Return the instruction of a corpus's cluster examples."""
    return CLUSTER_TEXT_INSTRUCTION if units and _is_text(units[0]) else CLUSTER_CODE_INSTRUCTION


def retrieval_pool(units: Sequence[Unit], distractors: Sequence[Unit] = ()) -> Pool:
    """Ask every unit's query against all their documents, and those of `distractors`.

    Queries equal but for layout become one with several relevant documents; equal documents become one
    that is relevant to the queries of all. Distractors never repeat a document: the split has dropped
    near-duplicates of held-out text, and what is left of equal texts is dropped here.
    """
    queries: dict[str, Unit] = {}
    documents: dict[str, Unit] = {}
    relevant: defaultdict[str, set[str]] = defaultdict(set)
    for unit in units:
        query = queries.setdefault(word_key(unit.query), unit)
        document = documents.setdefault(word_key(unit.document), unit)
        relevant[query.id].add(document.id)
    for unit in distractors:
        documents.setdefault(word_key(unit.document), unit)
    return Pool(
        {unit.id: unit.query for unit in queries.values()},
        {unit.id: unit.document for unit in documents.values()},
        dict(relevant),
    )


def retrieval_examples(units: Sequence[Unit]) -> list[Example]:
    """Return one Example a query, with the documents of all units that ask it; no negatives yet."""
    pool = retrieval_pool(units)
    instruction = retrieval_instruction(units)
    examples = []
    for query_id, query in pool.queries.items():
        ids = tuple(sorted(pool.relevant[query_id]))
        examples.append(
            Example(
                query=query,
                positives=tuple(pool.documents[document_id] for document_id in ids),
                instruction=instruction,
                source=RETRIEVAL_SOURCE,
                query_id=query_id,
                positive_ids=ids,
            )
        )
    return examples


def cluster_examples(units: Sequence[Unit], seed: int, n_negatives: int = 7) -> list[Example]:
    """Return an Example a unit whose positive is of its package and whose negatives are of others.

    All texts of an Example are of one form, queries (documentation) or documents (code), drawn by the
    seed, so that the form gives nothing away. Other rows of a batch may be of the query's package, hence
    no in-batch negatives. Units without a companion in their package are passed over.

    Returns:
        The Examples, symmetric; none where there is only one package. Fewer than `n_negatives` negatives
        where there are fewer other packages.
    """
    random_state = random.Random(seed)
    packages: defaultdict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        packages[unit.package].append(unit)
    names = sorted(packages)
    instruction = cluster_instruction(units)
    examples = []
    for unit in units:
        companions = [other for other in packages[unit.package] if other.id != unit.id]
        others = [name for name in names if name != unit.package]
        if not companions or not others:
            continue
        drawn = random_state.sample(others, min(n_negatives, len(others)))
        texts = [random_state.choice(companions), *(random_state.choice(packages[name]) for name in drawn)]
        of_query = random_state.random() < 0.5
        query, positive, *negatives = (item.query if of_query else item.document for item in (unit, *texts))
        examples.append(
            Example(
                query=query,
                positives=(positive,),
                negatives=tuple(negatives),
                instruction=instruction,
                source=CLUSTER_SOURCE,
                in_batch_negatives=False,
                symmetric=True,
            )
        )
    return examples


def _is_text(unit: Unit) -> bool:
    return unit.kind in {"section", "passage"}
