"""The rows of a source, read for curation and written after it.

Pairs become Examples. A text of a class or cluster keeps its label, and a text alone stays one: what
documents they get is for the recipe to say, and drawn when it trains.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from embedforge.curate.outcome import Dropped, LabelledText, Outcome, PlainText
from embedforge.data.beir import document_text
from embedforge.data.convert import drawn, examples_of, open_source, read_source
from embedforge.data.example import Example
from embedforge.data.fields import record_of
from embedforge.data.kinds import Labels, source_kind, source_name
from embedforge.data.record import Record
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Source

_NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "anchor"),
    "positive": ("positives", "positive"),
    "text": ("text",),
    "label": ("label",),
    "sentence1": ("sentence1",),
    "sentence2": ("sentence2",),
    "score": ("score",),
    "premise": ("premise",),
    "hypothesis": ("hypothesis",),
}
"""What a row cannot be without, and the keys it may stand under."""
_QUERIES = ("query", "text", "sentence1", "premise")
_BUFFER = 1 << 20


def read_rows(source: Source, *, seed: int, folder: Path | None = None) -> Outcome:
    """Read a source, leaving out its empty texts.

    Args:
        source: as in a recipe's mix.
        seed: of the source's `cap`.
        folder: where a relative path starts.

    Raises:
        EmbedforgeError: bad data, other than an empty text.
    """
    if source.kind == "retrieval":
        return Outcome(read_source(source, seed=seed, folder=folder), [])
    opened, dropped = open_source(source, folder=folder), list[Dropped]()
    records = _without_empty_texts(opened.records, source_name(source), dropped.append)
    if isinstance(source_kind(opened.kind), Labels):
        return Outcome(_texts(source, records, seed, _labelled), dropped)
    if opened.kind == "texts":
        return Outcome(_texts(source, records, seed, _plain), dropped)
    return Outcome(examples_of(source, opened.kind, records, seed=seed), dropped)


def _texts(
    source: Source, records: Iterable[Record], seed: int, convert: Callable[[Record], Example]
) -> list[Example]:
    name = source_name(source)
    examples = [
        replace(convert(record), source=name, instruction=source.instruction)
        for record in drawn(source, records, seed)
    ]
    if not examples:
        raise EmbedforgeError(f"{source.path}: there is no text in its records")
    return examples


def _labelled(record: Record) -> Example:
    return LabelledText(record.text("text"), (str(record.label("label")),))


def _plain(record: Record) -> Example:
    text = document_text(record)
    return PlainText(text, (text,))


def _without_empty_texts(
    records: Iterable[Record], source: str, drop: Callable[[Dropped], None]
) -> Iterator[Record]:
    """Yield the records without their empty texts, but for those that cannot be without."""
    for record in records:
        values = {key: _filled(value) for key, value in record.values.items()}
        lacking = _lacking(values)
        row = Example(_query(values), ("",), source=source)
        location = f"{record.unit} {record.number} of {Path(record.path).name}"
        if lacking is not None:
            what = "query" if lacking in _QUERIES else "document"
            drop(Dropped(row, "example", "", f"empty {what}", location))
            continue
        for key in values:
            if key.startswith(("positive", "negative")) and values[key] != record.values[key]:
                part: Literal["positive", "negative"] = "positive" if key.startswith("p") else "negative"
                drop(Dropped(row, part, "", "empty document", location))
        yield replace(record, values=values)


def _filled(value: Any) -> Any:
    """Return a value without empty texts: None for one, a list without them."""
    if isinstance(value, list):
        return [item for item in value if _filled(item) is not None]
    text = value.get("text", "-") if isinstance(value, dict) else value
    return None if isinstance(text, str) and not text.strip() else value


def _lacking(values: Mapping[str, Any]) -> str | None:
    """Return what a row has the key of but no value for, though it needs it."""
    for what, keys in _NAMES.items():
        if what == "text" and values.get("title") and "label" not in values:
            continue  # the title of a text alone is a text
        given = [values[key] for key in keys if key in values]
        if given and all(value is None or value == [] for value in given):
            return what
    return None


def _query(values: Mapping[str, Any]) -> str:
    return next((str(values[key]) for key in ("query", "anchor", *_QUERIES) if values.get(key)), "")


def write_rows(path: Path, examples: Sequence[Example], instruction: str) -> None:
    """Write Examples, one a line, and texts as the rows they were; equal bytes for equal data.

    Args:
        path: `.jsonl.gz`.
        examples: of one source.
        instruction: the source's own, which stays the recipe's; another one goes into its row.
    """
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as zipped,
        io.TextIOWrapper(io.BufferedWriter(zipped, _BUFFER), encoding="utf-8", newline="\n") as lines,
    ):
        for example in examples:
            lines.write(json.dumps(_row(example, instruction), ensure_ascii=False) + "\n")


def _row(example: Example, instruction: str) -> dict[str, Any]:
    if isinstance(example, LabelledText):
        return {"text": example.query, "label": example.positives[0]}
    if isinstance(example, PlainText):
        return {"text": example.query}
    row = record_of(example)
    if row.get("instruction") == instruction:
        del row["instruction"]
    return row
