"""One shard: read its rows, embed them window by window, write them, count them, name the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from embedforge import __version__
from embedforge.bulk.manifest import LOCKS, Manifest, Shard
from embedforge.bulk.rows import Row, row_of, windows
from embedforge.bulk.writers import counted, open_writer
from embedforge.data.ranges import RangeReader
from embedforge.errors import EmbedforgeError
from embedforge.files import replace_file, try_lock
from embedforge.ranking import Floats

Embed = Callable[[Sequence[Row]], Floats]
Progress = Callable[[int], None]


class ShardWorker:
    """Writes shards, one after the other; the input file that it read last stays open.

    Args:
        manifest: of the run.
        files: of the input, as this process sees them.
        embed: rows to vectors, float32 [rows, dim].
        progress: called with the number of rows finished since the last call.
    """

    def __init__(
        self,
        manifest: Manifest,
        files: Sequence[Path],
        embed: Embed,
        progress: Progress = lambda _: None,
    ) -> None:
        self._manifest = manifest
        self._files = files
        self._embed = embed
        self._progress = progress
        self._reader: tuple[int, RangeReader] | None = None
        self.empty = 0
        """Texts without a word among those that were written."""

    def work(self, shard: Shard) -> bool:
        """Write a shard, unless it is there or another process is at it; say whether this process did.

        Raises:
            EmbedforgeError: a row is of no use, the input was changed, the disk is full.
        """
        lock = self._manifest.out / LOCKS / shard.path.stem
        with try_lock(lock) as mine:
            if not mine or shard.done:
                return False
            try:
                self._write(shard)
            except OSError as error:
                raise EmbedforgeError(
                    f"{shard.path}: the shard could not be written ({error.strerror or error}); free some "
                    "space and run again: finished shards are kept"
                ) from error
        return True

    def close(self) -> None:
        """Close the input file."""
        if self._reader is not None:
            self._reader[1].__exit__(None, None, None)
            self._reader = None

    def _write(self, shard: Shard) -> None:
        manifest, rows = self._manifest, shard.part.rows
        settings = manifest.settings
        empty = 0
        about = {"embedforge": __version__, "model": manifest.model, "fingerprint": manifest.fingerprint}
        with replace_file(shard.path, durable=True) as partial:
            with open_writer(partial, shard.path, settings, manifest.ids, rows, about) as write:
                for window in windows(self._rows(shard)):
                    write(window, self._embed(window))
                    empty += sum(not row.text for row in window)
                    self._progress(len(window))
            found, _ = counted(partial, settings.format)
            if found != rows:
                raise EmbedforgeError(f"{shard.path}: {found} rows were written where {rows} should be")
        self.empty += empty

    def _rows(self, shard: Shard) -> Iterator[Row]:
        settings, ids = self._manifest.settings, self._manifest.ids
        for number, record in enumerate(self._open(shard.source).read(shard.part), start=shard.first_row):
            yield row_of(record, number, settings, ids)

    def _open(self, source: int) -> RangeReader:
        if self._reader is None or self._reader[0] != source:
            self.close()
            self._reader = source, RangeReader(self._files[source], self._manifest.settings.columns)
        return self._reader[1]
