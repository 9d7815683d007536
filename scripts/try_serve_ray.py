"""Try `embedforge serve`'s application under Ray Serve: two replicas of a model on this machine.

    python scripts/try_serve_ray.py --model embedforge:forge-tiny --requests 200

1. both replicas answer, with the vectors of the model itself and its contract in the header
2. a replica is killed (SIGKILL) under load: Ray starts another; every answer is right, what failed is counted

Needs: pip install 'embedforge[serve]' 'ray[serve]'. Prints a line of JSON a trial; a wrong vector ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# A busy machine takes longer to start Ray's proxy than the 5 seconds after which Ray kills it, for ever.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "120")
os.environ.setdefault("RAY_worker_niceness", "0")
import ray
from ray import serve

import embedforge

TEXTS = [f"text number {number} of a few words" for number in range(64)]


def deployment(model: str) -> Any:
    """Return the application of docs/serve.md, for processors in place of GPUs."""

    def build() -> Any:
        from embedforge.serve.app import create_app
        from embedforge.serve.service import Service

        app = create_app(Service.load(model))

        @app.get("/process")
        def process() -> int:  # which replica answers
            return os.getpid()

        return app

    @serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5})
    @serve.ingress(build)
    class Embedder:
        pass

    return Embedder.bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="embedforge:forge-tiny")
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    model = embedforge.load(arguments.model)
    wanted = embedforge.encode(model, TEXTS)
    fingerprint = embedforge.Contract.load(_folder(arguments.model)).fingerprint
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False)
    try:
        began = time.monotonic()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(deployment(arguments.model))
        print(json.dumps({"ready after seconds": round(time.monotonic() - began)}), flush=True)
        for kill in (False, True):
            statuses = ask(port, arguments.requests, wanted, fingerprint, kill=kill)
            print(json.dumps({"replica killed": kill, **statuses}), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def _folder(model: str) -> Any:
    from embedforge.model.folder import find_folder

    return find_folder(model)


def ask(port: int, requests: int, wanted: np.ndarray, fingerprint: str, *, kill: bool) -> dict[str, Any]:
    """Send requests, eight at a time; check every vector that comes back."""
    seen = {_get(port, "/process") for _ in range(40)}
    assert len(seen) == 2, f"two replicas should answer, {seen} did"
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(_embed, port, n % len(TEXTS)) for n in range(requests)]
        if kill:
            os.kill(min(seen), signal.SIGKILL)
        results = [answer.result() for answer in answers]
    for number, (status, body, header) in enumerate(results):
        if status == 200:
            assert header == fingerprint, "another contract"
            difference = np.abs(np.array(body["data"][0]["embedding"]) - wanted[number % len(TEXTS)]).max()
            assert difference < 1e-4, f"vectors differ by {difference}"
    facts: dict[str, Any] = {"answers": Counter(status for status, _, _ in results)}
    facts["seconds"] = round(time.monotonic() - began, 1)
    if kill:
        facts["seconds until two answer again"] = _two_again(port, seen)
    return facts


def _two_again(port: int, before: set[Any]) -> float:
    began = time.monotonic()
    while time.monotonic() - began < 180:
        now = {_get(port, "/process") for _ in range(20)} - {None}
        if len(now) == 2 and now != before:
            return round(time.monotonic() - began, 1)
        time.sleep(1.0)
    raise AssertionError("the killed replica was not replaced in 180 s")


def _get(port: int, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return json.load(answer)
    except OSError:
        return None


def _embed(port: int, number: int) -> tuple[int, Any, str | None]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings",
        json.dumps({"input": TEXTS[number]}).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer), answer.headers["embedforge-contract"]
    except urllib.error.HTTPError as error:
        return error.code, None, None
    except OSError:
        return 0, None, None


if __name__ == "__main__":
    main()
