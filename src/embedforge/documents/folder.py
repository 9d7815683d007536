"""From a folder of files to training text, held-out text and held-out questions: the way in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedforge.documents.chunks import chunks
from embedforge.documents.document import Chunk, Folder, Pair
from embedforge.documents.draw import draw, keyed_hash
from embedforge.documents.find_files import DEFAULT_EXCLUDES, PassedOver, find_files
from embedforge.documents.hold_out import (
    Cut,
    distinct,
    held_out_from,
    without_copied_pairs,
    without_copies,
)
from embedforge.documents.pairs import structure_pairs, usable
from embedforge.documents.readers import (
    HTML,
    PDF,
    PLAIN,
    is_boilerplate,
    missing_package,
    read_document,
    suffix_of,
)
from embedforge.documents.words import count_words
from embedforge.errors import EmbedforgeError, missing_extra

Progress = Callable[[int, int], None]
"""Called with the number of files read and of all files to read."""

CHUNK_CHARACTERS = 1500
HOLD_OUT = 0.1
CHUNKS_NEEDED = 50
MAX_FILES = 20_000
MAX_BYTES = 10_000_000
MAX_CHARACTERS = 200_000_000
MAX_PAIRS = 1000
MAX_TRAIN_PAIRS = 50_000
FEWEST_CHARACTERS = 200
MOST_HELD_OUT = 0.5
PAIRS_TO_TRUST = 50
ROWS = frozenset({".csv", ".tsv", ".jsonl", ".json", ".parquet"})
NAMED = 5
"""So many files are named in a notice."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder, by their paths from it."""

    files: list[str]
    """Those that can be read, sorted."""
    others: list[str]
    """Those of other kinds."""
    counts: Counter[str]
    notices: list[str]
    """What the user should know: a missing extra."""


def read_folder(
    folder: Path,
    *,
    seed: int = 0,
    chunk_characters: int = CHUNK_CHARACTERS,
    hold_out: float = HOLD_OUT,
    excludes: Collection[str] = DEFAULT_EXCLUDES,
    chunks_needed: int = CHUNKS_NEEDED,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
    max_characters: int = MAX_CHARACTERS,
    max_pairs: int = MAX_PAIRS,
    max_train_pairs: int = MAX_TRAIN_PAIRS,
    progress: Progress | None = None,
) -> Folder:
    """Read the text, Markdown, HTML, PDF and source files of `folder`, cut them, and hold some out.

    A file that cannot be read is passed over and counted. With 25 files or more, about `hold_out` of them are
    held out whole, at least 5; with fewer, the last part of each. A file is drawn by its path and the seed
    alone, so that more files beside it move it only where there are few. Training text that repeats held-out
    text is dropped.

    Args:
        folder: searched with its subfolders; links to folders are not followed.
        seed: decides what is held out and what is drawn where there is more than the limits; the same folder
            and seed give the same result.
        chunk_characters: size that chunks are cut to, about; from 200.
        hold_out: share of the text to hold out, in [0, 0.5]; 0 holds nothing out, and there are no pairs.
        excludes: names of folders to pass over, besides hidden ones.
        chunks_needed: fewest training chunks that are not an error.
        max_files: most files to read.
        max_bytes: larger files are passed over; PDFs, which hold images, may be ten times as large.
        max_characters: most text to keep; files are read in an order drawn by the seed until it is reached.
        max_pairs: most held-out pairs to keep; 0 for a caller that wants no pairs at all.
        max_train_pairs: most pairs of training text to keep.
        progress: called after every file.

    Raises:
        EmbedforgeError: no such folder, nothing in it that can be read, or too little text.
    """
    if chunk_characters < FEWEST_CHARACTERS or not 0 <= hold_out <= MOST_HELD_OUT:
        raise EmbedforgeError(
            f"chunk_characters must be at least {FEWEST_CHARACTERS} and hold_out in [0, {MOST_HELD_OUT}]; "
            f"found {chunk_characters} and {hold_out}"
        )
    listing = list_folder(folder, excludes)
    files, counts, notices = listing.files, listing.counts, listing.notices
    drawn = sorted(draw(files, max_files, seed), key=lambda file: keyed_hash(seed, file))
    counts["files_over_limit"] = len(files) - len(drawn)
    cuts = _read(folder, drawn, seed, chunk_characters, max_bytes, max_characters, counts, notices, progress)
    starts, parts = held_out_from(cuts, hold_out, seed) if hold_out else ({}, Counter())
    counts.update(parts)
    outside, inside = _parts(cuts, starts)
    held_out, _, repeated = without_copies(inside, ())
    train, sentences, dropped = without_copies(outside, held_out)
    counts.update(dropped, held_out_chunks_repeated=repeated["chunks_repeated"])
    if len(train) < chunks_needed:
        raise _too_little(folder, len(train), chunks_needed, chunk_characters, counts)
    pairs: list[Pair] = []
    train_pairs: list[Pair] = []
    if starts and max_pairs:
        pairs, train_pairs = _pairs(cuts, starts, held_out, max_pairs, max_train_pairs, seed, counts)
    sentences = distinct([*sentences, *_descriptions(cuts, starts)])
    if counts["files_held_out_in_part"]:
        notices.append(_held_out_in_part(counts))
    if hold_out and max_pairs and len(pairs) < PAIRS_TO_TRUST:
        notices.append(
            f"Only {len(pairs)} held-out questions could be made of headings, docstrings and sentences; "
            f"with fewer than {PAIRS_TO_TRUST} a measured gain says little."
        )
    counts.update(
        train_chunks=len(train),
        train_sentences=len(sentences),
        held_out_chunks=len(held_out),
        pairs=len(pairs),
        train_pairs=len(train_pairs),
    )
    notices += _repeated(counts, len(outside) + len(inside))
    return Folder(train, sentences, held_out, pairs, train_pairs, dict(counts), notices)


def readable_files(folder: Path, excludes: Collection[str] = DEFAULT_EXCLUDES) -> list[str]:
    """Return the files that `read_folder` reads, unless they are too large or too many; sorted paths.

    Raises:
        EmbedforgeError: no such folder, or nothing in it that can be read.
    """
    return list_folder(folder, excludes).files


def list_folder(folder: Path, excludes: Collection[str] = DEFAULT_EXCLUDES) -> Listing:
    """List the files to read, and say what else was found.

    Raises:
        EmbedforgeError: as of `readable_files`.
    """
    all_files, excluded = find_files(folder, excludes)
    counts: Counter[str] = Counter(files_found=len(all_files), folders_excluded=excluded)
    counts.update(files_of_other_kind=0, files_boilerplate=0, files_without_reader=0)
    files: list[str] = []
    others: list[str] = []
    missing: Counter[str] = Counter()
    for file in all_files:
        suffix = suffix_of(file)
        package = missing_package(suffix)
        if not suffix:
            counts["files_of_other_kind"] += 1
            others.append(file)
        elif is_boilerplate(file):
            counts["files_boilerplate"] += 1
        elif package is not None:
            counts["files_without_reader"] += 1
            missing[package] += 1
        else:
            files.append(file)
            counts[f"files_{_group(suffix)}"] += 1
    errors = [
        missing_extra(name, "documents", f"Reading {n} files of {folder}") for name, n in missing.items()
    ]
    if not files:
        raise errors[0] if errors else _nothing_readable(folder, all_files)
    return Listing(files, others, counts, [f"{error} They are passed over." for error in errors])


def _group(suffix: str) -> str:
    return "text" if suffix in PLAIN else "html" if suffix in HTML else "pdf" if suffix in PDF else "code"


def kinds_of(files: Sequence[str]) -> str:
    """Return the suffixes of files and how many there are of each, the commonest first; "" without any.

    >>> kinds_of(["a.png", "b.PNG", "Makefile"])
    '.png 2, no suffix 1'
    """
    suffixes = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in files)
    return ", ".join(f"{suffix} {count}" for suffix, count in suffixes.most_common(12))


def _nothing_readable(folder: Path, files: Sequence[str]) -> EmbedforgeError:
    listed = kinds_of(files)
    rows = next((file for file in files if PurePosixPath(file).suffix.lower() in ROWS), None)
    way = (
        ""
        if rows is None
        else f" Rows of data, such as {rows}, are training data as they are, or can be: name the file as a "
        "source of a recipe for embedforge train, or write a column as .txt, a text a paragraph."
    )
    return EmbedforgeError(
        f"{folder}: nothing to read. Found: {listed or 'no file'}. What is read: .txt, .md, .rst, .html, "
        ".pdf and source code (.py, .js, .java, .go, .rs, .c and others); hidden folders, tests, licences "
        f"and change logs are passed over.{way}"
    )


def _read(
    folder: Path,
    files: Sequence[str],
    seed: int,
    chunk_characters: int,
    max_bytes: int,
    max_characters: int,
    counts: Counter[str],
    notices: list[str],
    progress: Progress | None,
) -> list[Cut]:
    """Read and cut files in this order until there is enough text; return them by path."""
    cuts: list[Cut] = []
    scanned: list[str] = []
    left = max_characters
    counts.update(characters=0, characters_dropped=0, chunks_without_words=0)
    for number, file in enumerate(files, start=1):
        if left <= 0:
            counts["files_over_limit"] += len(files) - number + 1
            break
        try:
            document = read_document(folder, file, max_bytes, counts)
        except PassedOver as reason:
            counts[str(reason)] += 1
            scanned += [file] if str(reason) == "files_scanned" else []
        else:
            pieces = chunks(document, chunk_characters)
            kept = [chunk for chunk in pieces if count_words(chunk.text)]
            counts["chunks_without_words"] += len(pieces) - len(kept)
            cuts.append(
                Cut(document.file, kept, list(structure_pairs(document, kept, chunk_characters, seed)))
            )
            left -= len(document.text)
        if progress is not None:
            progress(number, len(files))
    counts["characters"] = max_characters - left
    if scanned:
        named = ", ".join(sorted(scanned)[:NAMED]) + (", ..." if len(scanned) > NAMED else "")
        notices.append(f"{len(scanned)} PDF files hold pictures but no text, and are passed over: {named}")
    return sorted(cuts, key=lambda cut: cut.file)


def _parts(cuts: Sequence[Cut], starts: dict[str, int]) -> tuple[list[Chunk], list[Chunk]]:
    """Return the chunks outside and inside of what is held out."""
    parts: tuple[list[Chunk], list[Chunk]] = ([], [])
    for cut in cuts:
        for chunk in cut.chunks:
            parts[_is_held_out(chunk, starts)].append(chunk)
    return parts


def _held_out_in_part(counts: Counter[str]) -> str:
    return (
        f"Held out: {counts['files_held_out']} whole files, and the last part of "
        f"{counts['files_held_out_in_part']} more: in a folder of few files, or with one that is much of it, "
        "whole files would be too much."
    )


def _repeated(counts: Counter[str], passages: int) -> list[str]:
    """Say how much text is left out because it stands there twice, or is nearly what is held out."""
    reasons = {
        f"of {passages:,} passages": {
            "repeat another": counts["chunks_repeated"] + counts["held_out_chunks_repeated"],
            "are nearly what is held out": counts["chunks_near_held_out"],
        },
        f"of {counts['pairs_found']:,} questions": {
            "or their answers repeat others": counts["pairs_query_repeated"]
            + counts["pairs_answer_repeated"],
            "are nearly those held out": counts["train_pairs_near_held_out"],
        },
    }
    said = [
        f"{what}, " + " and ".join(f"{count:,} {why}" for why, count in dropped.items() if count)
        for what, dropped in reasons.items()
        if any(dropped.values())
    ]
    return [f"Left out as duplicates and near duplicates: {'; '.join(said)}."] if said else []


def _is_held_out(item: Chunk | Pair, starts: dict[str, int]) -> bool:
    return item.file in starts and item.start >= starts[item.file]


def _pairs(
    cuts: Sequence[Cut],
    starts: dict[str, int],
    held_out: Sequence[Chunk],
    max_pairs: int,
    max_train_pairs: int,
    seed: int,
    counts: Counter[str],
) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs of held-out text and of training text."""
    candidates = [pair for cut in cuts for pair in cut.pairs]
    # Of equal passages the held-out one is kept.
    candidates.sort(key=lambda pair: not _is_held_out(pair, starts))
    kept, dropped = usable(candidates)
    counts.update(pairs_found=len(candidates), **dropped)
    held_out_pairs = [pair for pair in kept if _is_held_out(pair, starts)]
    others = [pair for pair in kept if not _is_held_out(pair, starts)]
    pairs = _drawn(held_out_pairs, max_pairs, seed)
    train_pairs = _drawn(others, max_train_pairs, seed)
    counts["pairs_over_limit"] = len(kept) - len(pairs) - len(train_pairs)
    clean = without_copied_pairs(train_pairs, held_out_pairs, held_out)
    counts["train_pairs_near_held_out"] = len(train_pairs) - len(clean)
    return pairs, clean


def _drawn(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    chosen = draw((pair.id for pair in pairs), most, seed)
    return [pair for pair in pairs if pair.id in chosen]


def _descriptions(cuts: Sequence[Cut], starts: dict[str, int]) -> list[str]:
    """Return what is said of training code."""
    return [
        pair.query
        for cut in cuts
        for pair in cut.pairs
        if pair.kind == "description" and not _is_held_out(pair, starts)
    ]


def _too_little(
    folder: Path, available: int, needed: int, characters: int, counts: Counter[str]
) -> EmbedforgeError:
    listed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return EmbedforgeError(
        f"{folder}: too little text: {counts['characters']:,} characters give {available} chunks of about "
        f"{characters} characters for training, at least {needed} are needed (about "
        f"{int(1.2 * needed * characters):,} characters). Counted: {listed}. "
        "Give a folder with more text."
    )
