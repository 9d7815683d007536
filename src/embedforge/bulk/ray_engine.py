"""The same shards under Ray Data: a dataset of shards, and actors that hold the model and write them.

What goes through Ray are the numbers of shards and of rows. Each actor reads its rows and writes their
vectors itself, under the shard's own name: a worker that dies is one shard that is done again, a driver that
dies is started again and finds what is there. Input, model and output must be where all machines see them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedforge.errors import EmbedforgeError, missing_extra

if TYPE_CHECKING:
    from embedforge.bulk.manifest import Manifest, Shard
    from embedforge.bulk.run import MakeProgress

MOST_BLOCKS = 4096
"""What Ray hands out at a time are blocks: of one shard each, unless there are more shards than this."""


def require_ray() -> None:
    """Refuse an engine that is not installed.

    Raises:
        EmbedforgeError: says how to install it.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise missing_extra("ray", "ray", "--engine ray") from None


class RayWorker:
    """An actor: the model is loaded once, then shards come by their numbers.

    Args:
        out: of the run; its plan is read there.
        files: of the input.
        model: a folder or a hub id.
    """

    def __init__(self, out: str, files: Sequence[str], model: str) -> None:
        from embedforge.bulk.manifest import Manifest
        from embedforge.bulk.run import open_encoder
        from embedforge.bulk.shard import ShardWorker

        manifest = Manifest.load(Path(out))
        self._shards = manifest.shards()
        encoder = open_encoder(model, manifest, None)
        self._worker = ShardWorker(manifest, [Path(file) for file in files], encoder)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """Write the shards of these numbers; return them with the rows that were written."""
        numbers = [int(number) for number in batch["shard"]]
        shards = [self._shards[number] for number in numbers]
        rows, empty = [], []
        for shard in shards:
            before = self._worker.empty
            rows.append(shard.part.rows if self._worker.work(shard) else 0)
            empty.append(self._worker.empty - before)
        return {"shard": numbers, "rows": rows, "empty": empty}


def run_on_ray(
    manifest: Manifest,
    files: Sequence[Path],
    pending: Sequence[Shard],
    model: str,
    address: str | None,
    workers: int | None,
    progress: MakeProgress,
) -> tuple[int, int]:
    """Have the pending shards written by actors; return the rows that they wrote, and those without a word.

    Args:
        manifest: of the run.
        files: of the input.
        pending: what is not there yet.
        model: a folder or a hub id.
        address: of a cluster; a local one, which ends with this call, when None.
        workers: actors; one a GPU, or one a machine without any, when None.
        progress: makes a progress bar.

    Raises:
        EmbedforgeError: no cluster at the address; what an actor stopped at.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        _start(address)
    try:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        count = min(workers or gpus or nodes, len(pending))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of its plan at length
        shards = ray.data.from_items(
            [{"shard": item.number} for item in pending], override_num_blocks=min(len(pending), MOST_BLOCKS)
        )
        done = shards.map_batches(
            RayWorker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_gpus=1 if gpus else None,
            num_cpus=max(1, cpus // count),
            fn_constructor_args=(
                str(manifest.out.resolve()),
                [str(file.resolve()) for file in files],
                _as_seen_elsewhere(model),
            ),
        )
        advance = progress(f"embedding on {count} Ray workers", sum(item.part.rows for item in pending))
        rows, empty, rows_of = 0, 0, {item.number: item.part.rows for item in pending}
        for row in done.iter_rows():
            advance(rows_of[int(row["shard"])])
            rows += int(row["rows"])
            empty += int(row["empty"])
        return rows, empty
    except ray.exceptions.RayError as error:
        raise _readable(error) from error
    finally:
        if started:
            ray.shutdown()


def _start(address: str | None) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.WARNING)
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EmbedforgeError(
            f"--ray-address {address}: no Ray cluster answers there ({error}); start one with: "
            "ray start --head"
        ) from error


def _as_seen_elsewhere(model: str) -> str:
    """Return the whole path of a folder; what else it may be means the same everywhere."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def _readable(error: Exception) -> Exception:
    """Return an actor's `EmbedforgeError` as it was raised; anything else stays Ray's error."""
    ours: Exception | None = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EmbedforgeError):
            ours = cause  # the innermost: those around it repeat it with a traceback
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) and inner is not cause else cause.__cause__
    return error if ours is None else EmbedforgeError(str(ours))
