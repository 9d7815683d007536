"""Try `embedforge encode --engine ray` on a real local Ray of two workers, with what goes wrong on a cluster.

    python scripts/try_encode_ray.py --rows 1500

1. undisturbed: the vectors are those of `--engine local`
2. a worker is killed (SIGKILL) in the middle: Ray starts another, every row is there once
3. the driver is killed in the middle and started again: what was written stays as it was, the rest is added

Needs: pip install 'embedforge[ray,data]'. Prints one line of JSON a trial, and fails if a row is not exact.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import embedforge
from embedforge.bulk import EncodeSettings, encode_files

ROWS_PER_SHARD = 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1500)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wanted = prepared(folder, rows)
        for trial in (undisturbed, worker_killed, driver_killed):
            began = time.monotonic()
            about = trial(folder, rows)
            found = vectors(folder / trial.__name__, rows)
            difference = float(np.abs(found - wanted).max())
            assert difference < 1e-4, f"{trial.__name__}: vectors differ by {difference}"
            facts = {"trial": trial.__name__, "rows": rows, "largest difference": difference, **about}
            print(json.dumps(facts | {"seconds": round(time.monotonic() - began)}), flush=True)


def prepared(folder: Path, rows: int) -> np.ndarray:
    """Write a model and rows for the trials, and return the vectors that each of them is to give."""
    contract = embedforge.Contract(max_tokens=32)
    embedforge.save(embedforge.build(base="embedforge:base", contract=contract), folder / "model")
    write_rows(folder / "rows.jsonl", rows)
    settings = EncodeSettings(id="id", rows_per_shard=ROWS_PER_SHARD)
    encode_files(folder / "rows.jsonl", folder / "local", model=str(folder / "model"), settings=settings)
    return vectors(folder / "local", rows)


def write_rows(path: Path, rows: int) -> None:
    """Write texts of many lengths, with ids."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(2000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = " ".join(draw.choices(words, k=draw.randint(3, 60)))
            file.write(json.dumps({"id": number, "text": text}) + "\n")


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    """Start the command that is tried."""
    command = [
        sys.executable,
        "-m",
        "embedforge",
        "encode",
        str(folder / "model"),
        str(folder / "rows.jsonl"),
    ]
    command += ["--id", "id", "--rows-per-shard", str(ROWS_PER_SHARD), "--out", str(folder / out)]
    command += ["--engine", "ray", "--workers", "2"]
    return subprocess.Popen(command)


def vectors(out: Path, rows: int) -> np.ndarray:
    """Return the vectors, [rows, dim], once it is sure that each row is there once and in its place."""
    table = pq.read_table(out / "vectors")
    assert table["row"].to_pylist() == list(range(rows)), f"{out}: the rows are not exact"
    assert table["id"].to_pylist() == list(range(rows)), f"{out}: the ids are not exact"
    assert json.loads((out / "done.json").read_text(encoding="utf-8"))["rows"] == rows
    return np.stack(table["vector"].to_numpy())


def undisturbed(folder: Path, rows: int) -> dict[str, object]:
    """Run on two workers."""
    finish(start(folder, "undisturbed"))
    return {}


def worker_killed(folder: Path, rows: int) -> dict[str, object]:
    """Kill one of the two workers after the first shards."""
    out = folder / "worker_killed"
    driver = start(folder, out.name)
    before = wait_for_shards(out, driver, 4)
    workers = [pid for pid in descendants(driver.pid) if "RayWorker" in command_of(pid)]
    os.kill(workers[0], signal.SIGKILL)
    finish(driver)
    return {"workers": len(workers), "shards before the kill": before}


def driver_killed(folder: Path, rows: int) -> dict[str, object]:
    """Kill the driver after the first shards, with all that Ray started for it, and run the command again."""
    out = folder / "driver_killed"
    driver = start(folder, out.name)
    wait_for_shards(out, driver, 4)
    started = descendants(driver.pid)
    driver.kill()
    driver.wait()
    for pid in started:  # on a cluster the job's actors end with their driver; here all of Ray was its child
        if command_of(pid):
            os.kill(pid, signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in out.glob("vectors/*.parquet")}
    finish(start(folder, out.name))
    again = sum(path.stat().st_mtime_ns != changed for path, changed in before.items())
    assert again == 0, "shards were written twice"
    return {"shards before the kill": len(before), "written again": again}


def wait_for_shards(out: Path, driver: subprocess.Popen[bytes], count: int) -> int:
    """Wait until so many are there."""
    while (found := len(list(out.glob("vectors/*.parquet")))) < count:
        assert driver.poll() is None, "the command ended before it could be disturbed; give it more --rows"
        time.sleep(0.02)
    return found


def finish(driver: subprocess.Popen[bytes]) -> None:
    assert driver.wait() == 0, "the command failed"


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that these started."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, rest = [], [pid]
    while rest:
        children = [child for child, parent in parents.items() if parent == rest[0]]
        found += children
        rest = rest[1:] + children
    return found


def command_of(pid: int) -> str:
    """Return a process's command, "" once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
