"""A teacher's vectors on disk: a file for each shard of documents and each block of queries.

A file is named by the fingerprint of its texts, and lies in a folder named by the fingerprint of the teacher
and of what it puts round a text. So a file that is there is the right one, whichever run wrote it, and a run
that was killed goes on at the first that is missing. While a file is in the making its windows lie in a
folder beside it, so that no more than the window under way is lost, and paid for twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedforge.errors import EmbedforgeError
from embedforge.files import replace_file
from embedforge.mine.corpus import Corpus
from embedforge.ranking import Floats, Indices

TEXTS_PER_WINDOW = 1024
"""Texts embedded together: enough to sort by length and to keep an endpoint busy, few enough to lose."""
ROWS_PER_READ = 8192

Window = TypeVar("Window", bound=Sized)


def write_vectors(path: Path, windows: Iterable[Floats]) -> None:
    """Write windows of vectors, [any number, dimensions] each, to one .npy file, in one step.

    Raises:
        EmbedforgeError: a window holds what is not finite, or has other dimensions than those before it, or
            the disk is full.
    """
    rows, width = 0, 0
    try:
        with replace_file(path) as partial, partial.open("wb") as file:
            _write_header(file, 0, 0)
            for window in windows:
                width = width or window.shape[1]
                _check(window, width, path)
                rows += len(window)
                file.write(np.ascontiguousarray(window, dtype="<f4").tobytes())
            file.seek(0)
            _write_header(file, rows, width)
    except OSError as error:
        raise EmbedforgeError(
            f"{path}: the vectors could not be written ({error.strerror}); free some space, or name a "
            "--work folder on a larger disk, and run again: finished shards are kept"
        ) from error


def _write_header(file: IO[bytes], rows: int, width: int) -> None:
    """Write the header; it is padded to the same length for any numbers, so it may be written over."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    text = header.ljust(117).encode("latin1") + b"\n"
    file.write(np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text)


def _check(window: Floats, width: int, path: Path) -> None:
    if window.shape[1] != width:
        raise EmbedforgeError(
            f"{path}: the teacher gave vectors of {width} dimensions, then of {window.shape[1]}; "
            "see whether the model behind its name was exchanged"
        )
    if not np.isfinite(window).all():
        raise EmbedforgeError(
            f"{path}: the teacher gave a vector that is not finite (NaN or infinity); "
            "another --dtype (float32) may help, if it overflows"
        )


def shape_of(path: Path) -> tuple[int, int]:
    """Return rows and dimensions of a file of vectors, without reading them."""
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors.shape[0], vectors.shape[1]


def read_blocks(path: Path, rows: int = ROWS_PER_READ) -> Iterator[Floats]:
    """Yield the vectors of a file, `rows` at a time, float32 [rows, dimensions].

    The file is read, not mapped: mapped pages would count as this process's memory for as long as they fit.
    """
    with path.open("rb") as file:
        count, width = _read_header(file, path)
        while count > 0:
            block = np.fromfile(file, dtype="<f4", count=min(rows, count) * width)
            if len(block) < min(rows, count) * width:
                raise EmbedforgeError(f"{path}: the file is cut off; delete it and run again")
            count -= rows
            yield block.reshape(-1, width)


def _read_header(file: IO[bytes], path: Path) -> tuple[int, int]:
    try:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise EmbedforgeError(f"{path}: not a file of vectors ({error}); delete it and run again") from None
    return shape[0], shape[1]


def read_vectors(path: Path) -> Floats:
    """Read all vectors of a file, float32 [rows, dimensions]."""
    return np.concatenate(list(read_blocks(path)))


def document_files(folder: Path, corpus: Corpus) -> list[Path]:
    """Return where the vectors of each shard lie, whether written or not."""
    return [folder / f"{shard.texts}.npy" for shard in corpus.shards]


def embed_corpus(
    folder: Path,
    corpus: Corpus,
    embed: Callable[[list[str]], Floats],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the vectors of every shard that has none yet.

    Args:
        folder: of the teacher.
        corpus: the documents.
        embed: texts to vectors, [texts, dimensions].
        progress: called with the number of documents finished since the last call.
    """
    for shard, path in zip(corpus.shards, document_files(folder, corpus), strict=True):
        if path.exists():
            progress(shard.rows)
        else:
            embed_windows(path, corpus.windows(shard, TEXTS_PER_WINDOW), embed, progress)


def embed_windows(
    path: Path,
    windows: Iterable[Window],
    embed: Callable[[Window], Floats],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Embed window after window and write all of them to `path`.

    Each is kept, until all are there, under the numbers of its texts in a folder beside `path`; those that
    an earlier call left there are not embedded again.

    Args:
        path: the file to be, named by a fingerprint of all texts; it does not exist.
        windows: texts, in order; the same for each call.
        embed: a window to vectors, [texts, dimensions].
        progress: called with the number of texts finished since the last call.
    """
    folder = path.with_name(f"{path.stem}.parts")
    parts: list[Path] = []
    first = 0
    for window in windows:
        part = folder / f"{first}-{first + len(window)}.npy"
        if not part.exists():
            write_vectors(part, [embed(window)])
        parts.append(part)
        first += len(window)
        progress(len(window))
    write_vectors(path, (vectors for part in parts for vectors in read_blocks(part)))
    shutil.rmtree(folder, ignore_errors=True)


def pair_scores(
    queries: NDArray[Any], files: Iterable[Path], query: Indices, document: Indices
) -> NDArray[np.float32]:
    """Return the inner products of pairs, float32 [P]; the documents are read once, block by block.

    Args:
        queries: [n, dimensions].
        files: the documents' vectors, shard by shard.
        query: [P], numbers of queries.
        document: [P], numbers of documents.
    """
    scores = np.empty(len(query), dtype=np.float32)
    order = np.argsort(document, kind="stable")
    ascending = document[order]
    first = 0
    for path in files:
        rows, _ = shape_of(path)
        start, stop = np.searchsorted(ascending, [first, first + rows])
        if start < stop:
            vectors = _Reader(path)
            for offset in range(start, stop, ROWS_PER_READ):
                pairs = order[offset : min(offset + ROWS_PER_READ, stop)]
                block = vectors.rows(document[pairs] - first)
                scores[pairs] = np.einsum("ij,ij->i", queries[query[pairs]], block)
        first += rows
    return scores


class _Reader:
    """Single rows of a file of vectors, read in runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            _, self._width = _read_header(file, path)
            self._start = file.tell()

    def rows(self, positions: Indices) -> Floats:
        """Return the vectors at ascending positions, which may repeat: [positions, dimensions]."""
        wanted, back = np.unique(positions, return_inverse=True)
        vectors = np.empty((len(wanted), self._width), dtype="<f4")
        runs = np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(wanted) > 1) + 1)
        with self._path.open("rb", buffering=0) as file:
            for run in runs:
                file.seek(self._start + int(wanted[run[0]]) * self._width * 4)
                file.readinto(vectors[run[0] : run[-1] + 1].data.cast("B"))
        return vectors[back]
