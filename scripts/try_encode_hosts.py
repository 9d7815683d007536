"""Try `embedforge encode` on two hosts: network namespaces of this machine, joined by a cable of their own.

    sudo python scripts/try_encode_hosts.py --rows 1500

1. the same command on both hosts, without a coordinator: they share the shards by lock files
2. a Ray cluster of two nodes, one a host: an actor on each
3. the same, and the cable is pulled in the middle: Ray gives up the second host, the first one does the rest

The hosts have one file system, as machines with a shared folder do. Needs root on Linux, and
pip install 'embedforge[ray,data]'. Prints one line of JSON a trial, and fails if a row is not exact.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from try_encode_ray import ROWS_PER_SHARD, command_of, finish, prepared, vectors, wait_for_shards

HOSTS = {"embedforge-a": "10.77.0.1", "embedforge-b": "10.77.0.2"}
A, B = HOSTS
PORT = 6399
ENVIRONMENT = {
    **os.environ,
    "RAY_worker_niceness": "0",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_AUTH_MODE": "token",  # each host would make a token of its own, and refuse the other's
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1500)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wanted = prepared(folder, rows)
        try:
            make_hosts()
            for trial in (without_coordinator, ray_on_both, cable_pulled):
                began = time.monotonic()
                about = trial(folder)
                difference = float(np.abs(vectors(folder / trial.__name__, rows) - wanted).max())
                assert difference < 1e-4, f"{trial.__name__}: vectors differ by {difference}"
                facts = {"trial": trial.__name__, "rows": rows, "largest difference": difference, **about}
                print(json.dumps(facts | {"seconds": round(time.monotonic() - began)}), flush=True)
        finally:
            remove_hosts()


# --- hosts -------------------------------------------------------------------------------------------


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


def make_hosts() -> None:
    remove_hosts()
    for host in HOSTS:
        ip("netns", "add", host)
        ip("-n", host, "link", "set", "lo", "up")
    ip("link", "add", "ef-a", "netns", A, "type", "veth", "peer", "name", "ef-b", "netns", B)
    for (host, address), device in zip(HOSTS.items(), ("ef-a", "ef-b"), strict=True):
        ip("-n", host, "addr", "add", f"{address}/24", "dev", device)
        ip("-n", host, "link", "set", device, "up")


def remove_hosts() -> None:
    for host in HOSTS:
        for pid in pids(host):
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
        ip("netns", "del", host, check=False)


def pids(host: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def on(host: str, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["ip", "netns", "exec", host, *command], env=ENVIRONMENT)


def encode(folder: Path, out: str, host: str, *options: str) -> subprocess.Popen[bytes]:
    model, rows = str(folder / "model"), str(folder / "rows.jsonl")
    command = [sys.executable, "-m", "embedforge", "encode", model, rows, "--id", "id"]
    sizes = ["--rows-per-shard", str(ROWS_PER_SHARD), "--out", str(folder / out)]
    return on(host, *command, *sizes, *options)


class Cluster:
    """A Ray node on each host."""

    def __enter__(self) -> str:
        address = f"{HOSTS[A]}:{PORT}"
        head = ("--head", "--port", str(PORT), "--include-dashboard", "false")
        for host, what in ((A, head), (B, ("--address", address))):
            place = ("--node-ip-address", HOSTS[host], "--num-cpus", "1", "--disable-usage-stats")
            ray = str(Path(sys.executable).with_name("ray"))
            assert on(host, ray, "start", *what, *place).wait() == 0, f"no Ray on {host}"
        return address

    def __exit__(self, *_: object) -> None:
        for host in HOSTS:
            for pid in pids(host):
                subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)


def actors(host: str) -> int:
    """Return how many workers of ours a host has."""
    return sum("RayWorker" in command_of(pid) for pid in pids(host))


# --- trials ------------------------------------------------------------------------------------------


def without_coordinator(folder: Path) -> dict[str, object]:
    started = [encode(folder, "without_coordinator", host) for host in HOSTS]
    for process in started:
        finish(process)
    return {}


def ray_on_both(folder: Path) -> dict[str, object]:
    with Cluster() as address:
        driver = encode(folder, "ray_on_both", A, "--engine", "ray", "--ray-address", address)
        wait_for_shards(folder / "ray_on_both", driver, 4)
        counted = {host: actors(host) for host in HOSTS}
        finish(driver)
    return {"actors": counted}


def cable_pulled(folder: Path) -> dict[str, object]:
    with Cluster() as address:
        driver = encode(folder, "cable_pulled", A, "--engine", "ray", "--ray-address", address)
        before = wait_for_shards(folder / "cable_pulled", driver, 4)
        counted = {host: actors(host) for host in HOSTS}
        ip("-n", B, "link", "set", "ef-b", "down")
        finish(driver)
    return {"actors": counted, "shards before": before}


if __name__ == "__main__":
    main()
