"""The whole run: find the input, plan, let shards be written, and count what is there in the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedforge.bulk.inputs import STDIN_FOLDER, find_inputs
from embedforge.bulk.manifest import LOCKS, VECTORS, Manifest, Progress, Shard, open_manifest
from embedforge.bulk.settings import EncodeSettings
from embedforge.bulk.writers import counted
from embedforge.errors import EmbedforgeError
from embedforge.files import write_json
from embedforge.model.folder import DEFAULT_MODEL, find_folder
from embedforge.run_folder import facts
from embedforge.text.contract import FILE_NAME as CONTRACT
from embedforge.text.contract import Contract

if TYPE_CHECKING:
    from embedforge.bulk.encoder import Encoder

DONE = "done.json"
Engine = Literal["local", "ray"]

MakeProgress = Callable[[str, int | None], Progress]
"""Given what is done and how much of it there is: what is told of each part that is finished."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a run has come to."""

    out: Path
    rows: int
    """Of the whole input."""
    shards: int
    written: int
    """Rows whose vectors this call wrote."""
    empty: int
    """Those of them whose text has no word: their vector is the empty text's."""
    missing: int
    """Shards that are not there yet: other processes have them, or they are of another --shard."""
    seconds: float
    """That this call took to write, the loading of the model not counted."""

    @property
    def vectors(self) -> Path:
        """The folder of the files of vectors."""
        return self.out / VECTORS


def encode_files(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: str = DEFAULT_MODEL,
    settings: EncodeSettings | None = None,
    shard: tuple[int, int] | None = None,
    device: str | None = None,
    engine: Engine = "local",
    ray_address: str | None = None,
    workers: int | None = None,
    stdin_format: str | None = None,
    progress: MakeProgress = lambda _title, _total: lambda _done: None,
) -> Encoded:
    """Write the vectors of files to `out`/vectors, and go on where an earlier call was stopped.

    Any number of processes may be given the same input and `out`: each takes shards that no other has.

    Args:
        inputs: files (.jsonl, .csv, .tsv, .txt, each also .gz; .parquet), folders of them, "-" for stdin.
        out: a new folder, or that of the same run.
        model: a folder or a hub id.
        settings: columns, instruction, precision, format; see `EncodeSettings`.
        shard: (3, 16): only the third of sixteen parts of the shards; all when None.
        device: cpu, cuda, ...
        engine: this process, or Ray Data.
        ray_address: of a Ray cluster; a local one of this machine when None.
        workers: of Ray, each with a model; one a GPU, or one a machine, when None.
        stdin_format: what "-" holds; jsonl when None.
        progress: makes a progress bar.

    Raises:
        EmbedforgeError: see `open_manifest`, `Encoder` and `ShardWorker.work`.
    """
    settings, out = settings or EncodeSettings(), Path(out)
    settings.check()
    _check_engine(engine, ray_address, workers, shard)
    files = find_inputs([inputs] if isinstance(inputs, str | Path) else inputs, out, stdin_format)
    fingerprint, encoder = _fingerprint(model, settings, device)
    manifest = open_manifest(
        out,
        files,
        settings,
        model=model,
        fingerprint=fingerprint,
        progress=progress("reading the input", None),
    )
    shards = manifest.shards()
    pending = [item for item in _part(shards, shard) if not item.done]
    begin, rows, empty = time.monotonic(), 0, 0
    if pending and engine == "ray":
        from embedforge.bulk.ray_engine import run_on_ray

        rows, empty = run_on_ray(manifest, files, pending, model, ray_address, workers, progress)
    elif pending:
        encoder = open_encoder(model, manifest, device, encoder)
        begin = time.monotonic()
        rows, empty = _run_here(manifest, files, pending, encoder, progress)
    missing = sum(not item.done for item in shards)
    if not missing:
        _finish(manifest, shards)
    return Encoded(out, manifest.rows, len(shards), rows, empty, missing, time.monotonic() - begin)


def _fingerprint(model: str, settings: EncodeSettings, device: str | None) -> tuple[str, Encoder | None]:
    """Return the model's fingerprint, and the model where it had to be loaded for that."""
    folder = find_folder(model)
    if (folder / CONTRACT).exists():
        contract = Contract.load(folder)
        if contract.knows_weights:
            return contract.fingerprint, None
    from embedforge.bulk.encoder import Encoder  # torch

    encoder = Encoder(model, settings, device)
    return encoder.fingerprint, encoder


def _run_here(
    manifest: Manifest,
    files: Sequence[Path],
    pending: Sequence[Shard],
    encoder: Encoder,
    progress: MakeProgress,
) -> tuple[int, int]:
    """Write what no other process has; return the number of rows, and of those without a word."""
    from embedforge.bulk.shard import ShardWorker

    rows = 0
    advance = progress("embedding", sum(item.part.rows for item in pending))
    worker = ShardWorker(manifest, files, encoder, advance)
    try:
        for item in pending:
            if worker.work(item):
                rows += item.part.rows
            else:
                advance(item.part.rows)
    finally:
        worker.close()
    return rows, worker.empty


def open_encoder(
    model: str, manifest: Manifest, device: str | None, encoder: Encoder | None = None
) -> Encoder:
    """Return the model of a run, loaded; refuse one that is another by now than when the run was planned."""
    from embedforge.bulk.encoder import Encoder  # torch

    encoder = encoder or Encoder(model, manifest.settings, device)
    if encoder.fingerprint != manifest.fingerprint:
        raise EmbedforgeError(
            f"{model}: the model was changed while the run was under way; choose another --out"
        )
    return encoder


def _finish(manifest: Manifest, shards: Sequence[Shard]) -> None:
    """Count the rows of all files, and say in done.json that they are whole."""
    widths = set()
    for shard in shards:
        try:
            rows, width = counted(shard.path, manifest.settings.format)
        except (OSError, ValueError) as error:
            raise EmbedforgeError(
                f"{shard.path}: the file is damaged ({error}); delete it and run again"
            ) from None
        if rows != shard.part.rows:
            raise EmbedforgeError(
                f"{shard.path}: it holds {rows} rows where {shard.part.rows} should be; delete it and run "
                "again"
            )
        widths.add(width)
    done: dict[str, Any] = {
        "rows": manifest.rows,
        "shards": len(shards),
        "width": sorted(widths),
        "precision": manifest.settings.precision,
        "bytes": sum(shard.path.stat().st_size for shard in shards),
        "model": manifest.model,
        "fingerprint": manifest.fingerprint,
    }
    if not (manifest.out / DONE).exists():
        write_json(manifest.out / DONE, done | facts())
    for name in (LOCKS, STDIN_FOLDER):
        shutil.rmtree(manifest.out / name, ignore_errors=True)


def _check_engine(
    engine: str, ray_address: str | None, workers: int | None, shard: tuple[int, int] | None
) -> None:
    if engine not in ("local", "ray"):
        raise EmbedforgeError(f"--engine {engine}: there is local and ray")
    if engine == "local" and (ray_address is not None or workers is not None):
        raise EmbedforgeError("--ray-address and --workers are for --engine ray")
    if engine == "ray":
        if shard is not None:
            raise EmbedforgeError(
                "--shard is for processes that know nothing of each other; Ray does all parts"
            )
        from embedforge.bulk.ray_engine import require_ray

        require_ray()


def _part(shards: Sequence[Shard], part: tuple[int, int] | None) -> Sequence[Shard]:
    """Return the shards of part k of n, neighbours, so that few files are opened."""
    if part is None:
        return shards
    k, n = part
    if not 1 <= k <= n:
        raise EmbedforgeError(f"--shard {k}/{n}: the parts of {n} are 1/{n} to {n}/{n}")
    return shards[(k - 1) * len(shards) // n : k * len(shards) // n]


def parse_part(text: str) -> tuple[int, int]:
    """Read "3/16".

    >>> parse_part("3/16")
    (3, 16)
    """
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal()):
        raise EmbedforgeError(f"--shard {text}: write 3/16 for the third of sixteen parts")
    return int(k), int(n)
