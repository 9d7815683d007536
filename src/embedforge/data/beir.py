"""BEIR folders: a corpus, queries, and judgements of a split. One reader and one set of checks for all verbs.

What a judgement names has to be there, and no two judgements may contradict each other. A document without a
text, which several public sets have, is passed over with its judgements, and so is a query for which no
document is relevant: nothing can be learned or measured there. All that is passed over is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from embedforge.data.notes import EMPTY_DOCUMENTS, Notes
from embedforge.data.readers import read_records
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError, did_you_mean

Lines = dict[tuple[str, str], int]
"""The line that first names ("query", id) or ("document", id)."""
_QRELS = "qrels"
_COLUMNS = ("query-id", "corpus-id", "score")
_HIGHEST_GRADE = 1_000_000
"""More than anybody judges with, and less than what the metrics' 32 bits hold."""
UNANSWERED = "queries without a relevant document, passed over"
_NEGATIVE = "grades below 0, taken as 0"
_REPEATED = "judgements given twice, of which one counts"


class Judgement(NamedTuple):
    """One line of a qrels file."""

    query_id: str
    document_id: str
    score: int
    line: int


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One split of a BEIR folder, checked."""

    queries: dict[str, str]
    """The judged queries that have a relevant document, by id."""
    documents: dict[str, str]
    """Those that were asked for, by id; none is empty."""
    grades: dict[str, dict[str, int]]
    """Query id -> document id -> grade, in the order of the judgements; above 0 is relevant."""
    notes: Notes


def is_beir(path: str | Path) -> bool:
    """Say whether a path is a BEIR folder: one with judgements."""
    return (Path(path) / _QRELS).is_dir()


def read_beir(
    folder: str | Path, split: str, corpus: Literal["relevant", "judged", "all"] = "judged"
) -> Retrieval:
    """Read the judgements of `qrels/{split}.tsv`, the queries that they name, and documents.

    Args:
        folder: with `corpus.jsonl`, `queries.jsonl` and `qrels`.
        split: of the judgements.
        corpus: which documents: those above grade 0, those that a judgement names, or all.

    Raises:
        EmbedforgeError: a file or the split is missing, a judgement names an unknown id or contradicts
            another one, or no query has a relevant document; names file and line.
    """
    folder, notes = Path(folder), Notes()
    grades, lines = graded(_qrels_records(folder, split), notes)
    judged = {name for of_query in grades.values() for name in of_query}
    relevant = {name for of_query in grades.values() for name, grade in of_query.items() if grade > 0}
    queries = _queries(folder, split, grades, lines)
    documents, found, empty = dict[str, str](), set[str](), set[str]()
    for name, text in read_corpus(folder, only=None if corpus == "all" else judged):
        found |= {name} & judged
        if not text:
            empty.add(name)
        elif corpus != "relevant" or name in relevant:
            documents[name] = text
    _require_all(folder, split, "document", judged - found, lines)
    if empty:
        notes[EMPTY_DOCUMENTS] = len(empty)
    grades = answered(grades, empty, notes)
    if not grades:
        raise EmbedforgeError(
            f"{qrels_path(folder, split)}: no query has a relevant document, one with a text "
            "and a grade above 0"
        )
    return Retrieval({name: queries[name] for name in grades}, documents, grades, notes)


def read_judged_queries(folder: Path, split: str) -> dict[str, str]:
    """Return all queries that have a judgement, by id, with the checks of `read_beir`."""
    return _queries(folder, split, *graded(_qrels_records(folder, split), Notes()))


def _queries(
    folder: Path, split: str, grades: Mapping[str, Mapping[str, int]], lines: Lines
) -> dict[str, str]:
    queries = dict(read_queries(folder, only=grades.keys()))
    _require_all(folder, split, "query", grades.keys() - queries.keys(), lines)
    return queries


def _require_all(folder: Path, split: str, what: str, missing: Collection[str], lines: Lines) -> None:
    """Refuse a judgement of a query or document that is not there, the first of them."""
    if missing:
        line, name = min((lines[what, name], name) for name in missing)
        raise EmbedforgeError(
            f"{qrels_path(folder, split)}, line {line}: there is no {what} '{name}' in "
            f"{beir_file(folder, 'queries' if what == 'query' else 'corpus')}; "
            "remove the judgement or add the text"
        )


def graded(judgements: Iterable[Record], notes: Notes) -> tuple[dict[str, dict[str, int]], Lines]:
    """Collect judgements by query.

    Args:
        judgements: rows of qrels.
        notes: gets what was repeated or below 0.

    Returns:
        Query id -> document id -> grade; and where each query and document is first named.

    Raises:
        EmbedforgeError: a bad row, or two grades for one document and query.
    """
    grades: dict[str, dict[str, int]] = {}
    lines: Lines = {}
    judged = 0
    for record in judgements:
        query, document, grade, line = _judgement(record)
        lines.setdefault(("query", query), line)
        lines.setdefault(("document", document), line)
        of_query = grades.setdefault(query, {})
        before = of_query.setdefault(document, grade)
        if before != grade:
            raise record.error(
                f"query '{query}' and document '{document}' have grade {grade} here and {before} further up; "
                "keep one of the two judgements"
            )
        judged += 1
    negative = sum(grade < 0 for of_query in grades.values() for grade in of_query.values())
    repeated = judged - sum(map(len, grades.values()))
    notes.update({what: n for what, n in ((_REPEATED, repeated), (_NEGATIVE, negative)) if n})
    return {
        query: {document: max(grade, 0) for document, grade in of_query.items()}
        for query, of_query in grades.items()
    }, lines


def answered(
    grades: dict[str, dict[str, int]], empty: Collection[str], notes: Notes
) -> dict[str, dict[str, int]]:
    """Return the queries that have a relevant document, and their grades without those of empty documents."""
    kept = {}
    for query, of_query in grades.items():
        left = {name: grade for name, grade in of_query.items() if name not in empty}
        if any(grade > 0 for grade in left.values()):
            kept[query] = left
    if len(kept) < len(grades):
        notes[UNANSWERED] = len(grades) - len(kept)
    return kept


def read_corpus(folder: Path, only: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of a BEIR corpus; the text is "" where a document has none."""
    for record in _records(folder, "corpus", only):
        yield record.identifier("_id"), document_text(record)


def read_queries(folder: Path, only: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of the queries of a BEIR folder."""
    for record in _records(folder, "queries", only):
        yield record.identifier("_id"), record.text("text")


def document_text(record: Record) -> str:
    """Return a document as it is embedded: title, space, text, as in mteb; "" where it has neither.

    Raises:
        EmbedforgeError: no key `text` where there is no title, or a value that is no text.
    """
    title = record.optional_text("title")
    if not title and "text" not in record.values:
        record.require("text")
    return join_title(title, record.optional_text("text"))


def join_title(title: str, text: str) -> str:
    """Put a title before a text, with a space."""
    return f"{title} {text}".strip() if title else text


def _records(folder: Path, stem: str, only: Collection[str] | None) -> Iterator[Record]:
    seen: set[str] = set()
    for record in read_records(beir_file(folder, stem)):
        name = record.identifier("_id")
        if only is not None and name not in only:
            continue
        if name in seen:
            raise record.error(f"the _id '{name}' stands in the file twice; ids must differ")
        seen.add(name)
        yield record


def beir_file(folder: Path, stem: str) -> Path:
    """Return the corpus or the queries of a BEIR folder: STEM.jsonl, or the same compressed."""
    plain, zipped = folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"
    return zipped if zipped.exists() and not plain.exists() else plain


def qrels_path(folder: Path, split: str) -> Path:
    """Return the file of a split's judgements."""
    return folder / _QRELS / f"{split}.tsv"


def read_qrels(folder: Path, split: str) -> Iterator[Judgement]:
    """Yield the judgements of a split as they stand: tab-separated, under `query-id corpus-id score`."""
    return map(_judgement, _qrels_records(folder, split))


def _qrels_records(folder: Path, split: str) -> Iterator[Record]:
    path = qrels_path(folder, split)
    if not folder.is_dir():
        near = did_you_mean(folder.name, (p.name for p in folder.parent.glob("*")))
        state = "is a file, and" if folder.exists() else "does not exist;"
        raise EmbedforgeError(f"{folder}: {state} retrieval data is a BEIR folder.{near}")
    if not path.exists():
        splits = sorted(p.stem for p in path.parent.glob("*.tsv"))
        raise EmbedforgeError(
            f"{path}: there is no such file; the splits are: {', '.join(splits) or 'none'}."
            + did_you_mean(split, splits)
        )
    for record in read_records(path):
        if not set(_COLUMNS) <= set(record.values):
            raise EmbedforgeError(
                f"{path}, line 1: the header must be {', '.join(_COLUMNS)} with tabs between; "
                f"found {', '.join(record.values)}"
            )
        yield record


def _judgement(record: Record) -> Judgement:
    score = record.number_of("score")
    if score != int(score):
        raise record.error(f"'score' must be a whole number, found {record.values['score']!r}")
    if abs(score) > _HIGHEST_GRADE:
        raise record.error(f"'score' is {score:g}; a grade is at most {_HIGHEST_GRADE:,}")
    return Judgement(record.identifier("query-id"), record.identifier("corpus-id"), int(score), record.number)
