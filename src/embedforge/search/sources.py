"""What an index is made of: files of text, code or records, each with a hash that tells a change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedforge.bounds import require_plain
from embedforge.data.beir import document_text
from embedforge.data.readers import read_records
from embedforge.data.record import Record
from embedforge.documents.chunks import chunks
from embedforge.documents.find_files import DEFAULT_EXCLUDES, PassedOver, content_hash
from embedforge.documents.folder import MAX_BYTES, Listing, kinds_of, list_folder
from embedforge.documents.readers import PDF_BYTES, missing_package, read_document, suffix_of
from embedforge.documents.words import count_words
from embedforge.errors import EmbedforgeError, missing_extra
from embedforge.files import file_hash
from embedforge.search.document import FILE, RECORDS, Document, Value

EMPTY_RECORDS = "records without a text"
"""What those that give no document are counted under, as public collections have some."""
HASH = "file_hash"
"""A field of metadata that every document of a file has, as it has `FILE`."""
_KEYS = ("id", "_id", "text", "title")
"""What a record is read by; the rest is metadata."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file to be indexed."""

    name: str
    """What it is called in the index: its path from the root where it lies below, else its whole path."""
    path: Path
    hash: str


def sources_of(
    paths: Sequence[Path],
    root: Path,
    counts: Counter[str],
    notices: list[str],
    excludes: Collection[str] = DEFAULT_EXCLUDES,
) -> list[Source]:
    """List the files of folders, and files; those that cannot be read are counted.

    Args:
        paths: folders and files.
        root: what names are relative to.
        counts: gets what is passed over.
        notices: gets what the user should know of it.
        excludes: names of folders to pass over.

    Raises:
        EmbedforgeError: no such file or folder, one that cannot be read, or nothing to read.
    """
    sources: dict[str, Source] = {}
    for path in paths:
        if path.is_dir():
            listing = list_folder(path, excludes)
            files = [path / name for name in listing.files]
            notices += _passed_over(path, listing)
        elif path.exists():
            _require_readable(path)
            files = [path]
        else:
            raise EmbedforgeError(f"{path}: there is no such file or folder")
        for file in files:
            if _is_records(file):
                require_plain(file)  # a pipe would be waited for
            try:
                hash_ = (
                    file_hash(file)[:32] if _is_records(file) else content_hash(file, PDF_BYTES * MAX_BYTES)
                )
            except PassedOver as reason:
                counts[str(reason)] += 1
                continue
            source = Source(name_of(file, root), file, hash_)
            sources[source.name] = source
    return list(sources.values())


def _passed_over(folder: Path, listing: Listing) -> list[str]:
    """Say which files of a folder are not read, so that nobody looks for them."""
    notices = list(listing.notices)
    records = [name for name in listing.others if name.lower().endswith(RECORDS)]
    if records:
        others = f" and {len(records) - 1:,} more files" if len(records) > 1 else ""
        notices.append(
            f"rows are not read from a folder ({records[0]}{others}); where they are texts, add the file: "
            f"embedforge index add INDEX {folder / records[0]}"
        )
    counts = listing.counts
    named = [
        kinds_of(sorted(set(listing.others) - set(records))),
        f"licences, change logs and the like {n}" if (n := counts["files_boilerplate"]) else "",
        f"folders that are hidden or of tests, builds, packages {n}"
        if (n := counts["folders_excluded"])
        else "",
    ]
    passed_over = [part for part in named if part]
    return [*notices, f"passed over: {'; '.join(passed_over)}"] if passed_over else notices


def name_of(file: Path, root: Path) -> str:
    """Return what a file is called in an index."""
    whole = file.resolve()
    name = whole.relative_to(root).as_posix() if whole.is_relative_to(root) else whole.as_posix()
    return name.encode(errors="surrogateescape").decode(errors="replace")


def documents_of(
    source: Source, characters: Callable[[str], int], counts: Counter[str]
) -> Iterator[Document]:
    """Yield a file's passages, or its records; none of one that gives no text.

    Args:
        source: the file.
        characters: gives the size of a text's passages, about.
        counts: gets what is dropped or passed over.

    Raises:
        EmbedforgeError: a record whose text or id is none; names file and line.
    """
    about: dict[str, Value] = {FILE: source.name, HASH: source.hash}
    if _is_records(source.path):
        for record in read_records(source.path):
            if text := document_text(record):
                yield _document(record, text, source, about)
            else:
                counts[EMPTY_RECORDS] += 1
        return
    try:
        parsed = read_document(source.path.parent, source.path.name, MAX_BYTES, counts)
    except PassedOver as reason:
        counts[str(reason)] += 1
        return
    for chunk in chunks(parsed, characters(parsed.text)):
        if count_words(chunk.text):
            place = f"{source.name}, {chunk.place}" if chunk.place else source.name
            yield Document(f"{source.name}#{chunk.start}", chunk.text, place, about)


def _document(record: Record, text: str, source: Source, about: dict[str, Value]) -> Document:
    values = record.values
    given = next((key for key in ("id", "_id") if values.get(key) is not None), None)
    fields = {
        key: value
        for key, value in values.items()
        if key not in _KEYS and isinstance(value, (str, int, float)) and value != ""
    }
    place = f"{source.name}, {record.unit} {record.number}"
    name = f"{source.name}#{record.number}" if given is None else record.identifier(given)
    return Document(name, text, place, {**fields, **about})


def _is_records(path: Path) -> bool:
    return path.name.lower().endswith(RECORDS)


def _require_readable(path: Path) -> None:
    suffix = suffix_of(path.name)
    if not suffix and not _is_records(path):
        raise EmbedforgeError(
            f"{path}: what is read is .txt, .md, .rst, .html, .pdf, source code, and {', '.join(RECORDS)}"
        )
    package = missing_package(suffix)
    if package is not None:
        raise missing_extra(package, "documents", f"Reading {path}")
