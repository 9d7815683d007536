"""The keys of an Example in a file, read and written."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from embedforge.data.beir import join_title
from embedforge.data.example import Example
from embedforge.data.list_text import text_of_list
from embedforge.data.record import Record

_KEYS = ("query", "positives", "negatives", "instruction", "query_id", "score")
_OTHER_NAMES = ("anchor", "positive", "negative")
_DOCUMENT_KEYS = ("id", "title", "text")
_OTHER_KINDS: dict[tuple[str, ...], str] = {
    ("sentence1", "sentence2", "score"): "scored_pairs",
    ("premise", "hypothesis"): "nli",
    ("text", "label"): "labels",
    ("text",): "texts",
}
"""Keys of rows that are read as another kind of source."""
_LAYOUTS: dict[str, tuple[str, str]] = {
    "pos": ("FlagEmbedding", "{query, positives: .pos, negatives: .neg}"),
    "positive_passages": (
        "Tevatron",
        "{query, query_id, positives: (.positive_passages | map({id: .docid, title, text})), "
        "negatives: (.negative_passages // [] | map({id: .docid, title, text}))}",
    ),
}
"""A key of another project's files: whose it is, and the filter of jq that writes ours."""
_NUMBERED = re.compile(r"negative_\d{1,9}")


def example_of(record: Record) -> Example:
    """Convert a record with the keys of an Example.

    | key | value |
    | --- | --- |
    | query | text; also named anchor |
    | positives | list of documents, or one; also named positive; at least one |
    | negatives | list of documents, or one; also named negative, or negative_1, negative_2, … |
    | instruction | text, for this record instead of the source's |
    | query_id | text or a whole number |
    | score | a number: how alike the query and its one positive are, for `cosent` |

    A document is a text, or an object {"text": …, "title": …, "id": …} of which only the text is needed;
    a title is put before the text. The other names are those of sentence-transformers' datasets. Nulls
    and empty CSV cells count as absent.

    Raises:
        EmbedforgeError: unknown or missing keys, wrong types, no positive, empty text; ids on some
            positives or some negatives only.
    """
    _refuse_other_kinds(record)
    _refuse_other_layouts(record)
    record.refuse_unknown((*_KEYS, *_OTHER_NAMES, *_numbered(record)))
    query = _one_of(record, "query", "anchor")
    positives, negatives = positives_of(record), negatives_of(record)
    if not positives:
        raise record.error(
            f"no positives for the query {record.values.get(query)!r:.60}; give at least one or remove it"
        )
    return Example(
        query=record.text(query),
        positives=tuple(text for text, _ in positives),
        negatives=tuple(text for text, _ in negatives),
        instruction=record.optional_text("instruction"),
        query_id=_optional_id(record, record.values.get("query_id"), "query_id"),
        positive_ids=_ids(record, positives, "positives"),
        negative_ids=_ids(record, negatives, "negatives"),
        score=_score(record, len(positives), len(negatives)),
    )


def _score(record: Record, positives: int, negatives: int) -> float | None:
    if record.values.get("score") in (None, ""):
        return None
    if positives != 1 or negatives:
        raise record.error("a 'score' is that of the query with one positive; this has other documents too")
    return record.number_of("score")


def record_of(example: Example) -> dict[str, Any]:
    """Return the JSON object that `example_of` reads back; the semantics of the source are the recipe's."""
    values: dict[str, Any] = {"query": example.query}
    if example.query_id:
        values["query_id"] = example.query_id
    if example.instruction:
        values["instruction"] = example.instruction
    values["positives"] = _written(example.positives, example.positive_ids)
    if example.negatives:
        values["negatives"] = _written(example.negatives, example.negative_ids)
    if example.score is not None:
        values["score"] = example.score
    return values


def other_kind(keys: Collection[str]) -> str | None:
    """Return the kind of source that rows with these keys are of; None for Examples, and for unknown rows."""
    needed = _keys_of_other_kind(keys)
    return _OTHER_KINDS[needed] if needed else None


def _keys_of_other_kind(keys: Collection[str]) -> tuple[str, ...] | None:
    """Return those of the keys that tell another kind."""
    if not {"query", "anchor"}.isdisjoint(keys):
        return None
    return next((needed for needed in _OTHER_KINDS if set(needed) <= set(keys)), None)


def _refuse_other_kinds(record: Record) -> None:
    """Raise for a row of another kind: all its keys would be unknown, and none of them misspelt."""
    keys = _keys_of_other_kind(record.values)
    if keys is not None:
        raise record.error(
            f"a row with {', '.join(map(repr, keys))} is no Example (query, positives, …); "
            f"to read such rows, give the source `kind: {_OTHER_KINDS[keys]}`"
        )


def _refuse_other_layouts(record: Record) -> None:
    """Raise for a row as another project writes it, with what turns its files into ours."""
    for key, (project, form) in _LAYOUTS.items():
        if key in record.values:
            raise record.error(
                f"the key '{key}' is {project}'s. Here a row has positives and negatives; this writes it so: "
                f"jq -c '{form}' FILE > NEW.jsonl"
            )


def _written(texts: tuple[str, ...], ids: tuple[str, ...]) -> list[Any]:
    if not ids:
        return list(texts)
    return [{"id": name, "text": text} for name, text in zip(ids, texts, strict=True)]


def _one_of(record: Record, key: str, other: str) -> str:
    """Which of two names for one thing the record uses."""
    given = [name for name in (key, other) if record.values.get(name) is not None]
    if len(given) == 2:
        raise record.error(f"both '{key}' and '{other}' are given, and they mean the same; keep one")
    if not given and other in record.values:
        return other
    return given[0] if given else key


def positives_of(record: Record) -> list[tuple[str, str]]:
    """Return the (text, id) of the positives, by whichever of their two names."""
    return documents_of(record, _one_of(record, "positives", "positive"))


def negatives_of(record: Record) -> list[tuple[str, str]]:
    """Return the (text, id) of the negatives, by whichever of their names; there need be none."""
    numbered = _numbered(record)
    keys = [key for key in ("negatives", "negative") if record.values.get(key) is not None]
    if len(keys) + bool(numbered) > 1:
        raise record.error(f"negatives stand under {', '.join([*keys, *numbered])}; use one way to give them")
    given = (key for key in keys or numbered if record.values[key] is not None)
    return [document for key in given for document in documents_of(record, key)]


def _numbered(record: Record) -> list[str]:
    return sorted((key for key in record.values if _NUMBERED.fullmatch(key)), key=lambda key: int(key[9:]))


def documents_of(record: Record, key: str) -> list[tuple[str, str]]:
    """Return the (text, id) of the documents under a key, whether a list or one alone.

    Raises:
        EmbedforgeError: no text, or under the name of several the text of a list, as pandas writes one.
    """
    value = record.require(key)
    if key.endswith("s") and isinstance(value, str) and text_of_list(value):
        raise record.error(
            f"'{key}' is the text of a list, {value!r:.60}, not a list; write a list, and a document that "
            "does look so as the one item of a list"
        )
    items = value if isinstance(value, list) else [value]
    return [_document(record, item, f"{key}[{index}]") for index, item in enumerate(items)]


def _document(record: Record, item: Any, key: str) -> tuple[str, str]:
    if not isinstance(item, dict):
        return record.check_text(item, key), ""
    inner = Record(item, record.path, record.number, record.unit)
    inner.refuse_unknown(_DOCUMENT_KEYS)
    text = join_title(inner.optional_text("title"), inner.text("text"))
    return text, _optional_id(record, item.get("id"), f"{key}.id")


def _optional_id(record: Record, value: Any, key: str) -> str:
    return "" if value is None else record.check_identifier(value, key)


def _ids(record: Record, documents: list[tuple[str, str]], key: str) -> tuple[str, ...]:
    """Return the ids of all documents, or () where none has one."""
    ids = tuple(name for _, name in documents)
    if any(ids) and not all(ids):
        raise record.error(
            f"'{key}': {sum(map(bool, ids))} of {len(ids)} documents have an id; give all or none"
        )
    return ids if any(ids) else ()
