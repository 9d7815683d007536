"""Load on `embedforge serve`: throughput and latency against plain `encode`, and ten times what it can do.

    python benchmarks/serve.py MODEL                      64 clients, one text a request and 16
    python benchmarks/serve.py MODEL --overload           ten times the load that it can answer
    python benchmarks/serve.py MODEL --only embedforge    without the plain handler

Beside it stands what people write first: sentence-transformers behind a FastAPI handler. Every server is a
process of its own on loopback, with the same texts; the load comes from this process, on the same machine.
Besides throughput stands the processor time a text, which company on the machine changes little: its share is
what the throughput would be if nothing but the processor held the server up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import resident

WORDS = """
the a river mountain window teacher winter morning paper letter bridge market doctor engine forest library
walks carries finds opens repairs remembers measures slowly often near behind old green heavy
""".split()  # noqa: SIM905
SERVERS = ("embedforge", "plain")


def texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of 4 to 80 words, most of them short."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=min(80, 4 + int(draw.expovariate(1 / 20))))) for _ in range(count)]


# --- servers -----------------------------------------------------------------------------------------


def plain_app(model: str, port: int) -> None:
    """Serve sentence-transformers by the handler that people write first."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    class Body(BaseModel):
        input: list[str]

    from embedforge.model.folder import find_folder

    app = FastAPI()
    st = SentenceTransformer(str(find_folder(model)), trust_remote_code=True)

    def embeddings(body: Body) -> dict[str, object]:
        vectors = st.encode_document(body.input)
        return {"data": [{"index": i, "embedding": vector.tolist()} for i, vector in enumerate(vectors)]}

    embeddings.__annotations__ = {"body": Body}
    app.post("/v1/embeddings")(embeddings)
    app.get("/health")(lambda: {})
    uvicorn.run(app, port=port, log_level="warning")


@contextmanager
def server(kind: str, model: str, *options: str) -> Iterator[tuple[int, int]]:
    """Start a server; give its port and process id once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "embedforge", "serve", model, "--port", str(port), *options]
    if kind == "plain":
        command = [sys.executable, __file__, model, "--plain-port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{kind} did not start:\n{process.stderr.read().decode()[-2000:]}")
            try:
                asyncio.run(one_request(port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"))
                break
            except OSError:
                time.sleep(0.2)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(60)


# --- a client that costs little ----------------------------------------------------------------------


class Connection:
    """One connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        if self.reader is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head.split(b" ", 2)[1]), await self.reader.readexactly(length)

    def close(self) -> None:
        """Let go of it."""
        if self.reader is not None:
            self.writer.close()


async def one_request(port: int, request: bytes) -> tuple[int, bytes]:
    connection = Connection(port)
    try:
        return await connection.ask(request)
    finally:
        connection.close()


def request_of(batch: list[str]) -> bytes:
    body = json.dumps({"input": batch}).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Load:
    """What came back."""

    seconds: float = 0.0
    processor: float = 0.0
    texts: int = 0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def line(self, name: str, reference: tuple[float, float] | None = None) -> str:
        """Return a row of the table; `reference` is `encode`'s rate and processor time a text."""
        cuts = statistics.quantiles(self.latencies, n=100)
        rate, spent = self.texts / self.seconds, self.processor / self.texts
        share = ""
        if reference is not None:
            share = (
                f"{rate / reference[0]:6.0%}   {1000 * spent:.2f} ms processor {reference[1] / spent:6.0%}"
            )
        p50, p95, p99 = (1000 * cuts[at] for at in (49, 94, 98))
        return f"{name:28} {rate:8.0f} texts/s {share:>6}   p50 {p50:6.0f}  p95 {p95:6.0f}  p99 {p99:6.0f} ms"


async def closed_load(port: int, pid: int, clients: int, per_request: int, seconds: float) -> Load:
    """Let each client send its next request when it has its answer."""
    load, pool = Load(), texts(4096)
    requests = [request_of(pool[at : at + per_request]) for at in range(0, len(pool), per_request)]
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection, at = Connection(port), number * 97
        while time.perf_counter() < end:
            start = time.perf_counter()
            status, _ = await connection.ask(requests[at % len(requests)])
            load.latencies.append(time.perf_counter() - start)
            load.statuses[str(status)] += 1
            load.texts += per_request
            at += 1
        connection.close()

    start, before = time.perf_counter(), processor(pid)
    await asyncio.gather(*(client(number) for number in range(clients)))
    load.seconds, load.processor = time.perf_counter() - start, processor(pid) - before
    return load


async def open_load(port: int, per_second: float, seconds: float, pid: int) -> tuple[Load, list[float]]:
    """Send requests at a rate, whatever comes back; also return the server's memory in MB, as it went."""
    load, memory, pool = Load(), [], texts(4096)
    requests = [request_of([text]) for text in pool]
    idle: list[Connection] = []

    async def send(request: bytes) -> None:
        connection = idle.pop() if idle else Connection(port)
        start = time.perf_counter()
        try:
            status, body = await connection.ask(request)
        except (OSError, asyncio.IncompleteReadError) as error:
            load.statuses[type(error).__name__] += 1
            return
        whole = status != 200 or len(json.loads(body)["data"]) == 1
        load.statuses[str(status) if whole else "not whole"] += 1
        if status == 200:
            load.latencies.append(time.perf_counter() - start)
            load.texts += 1
        idle.append(connection)

    start, sent, tasks = time.perf_counter(), 0, set()
    while (now := time.perf_counter() - start) < seconds:
        while sent < now * per_second:
            task = asyncio.create_task(send(requests[sent % len(requests)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        if len(memory) < now:
            memory.append(resident(pid))
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - start
    load.statuses["sent"] = sent
    return load, memory


def processor(pid: int) -> float:
    """Return the processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- the runs ----------------------------------------------------------------------------------------


def encode_rate(model: str, seconds: float) -> tuple[float, float]:
    """Return texts per second of `encode` in a process of its own, and processor seconds a text."""
    command = [sys.executable, __file__, model, "--encode-seconds", str(seconds)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(printed[-2]), float(printed[-1])


def encode_here(model: str, seconds: float) -> None:
    import embedforge

    loaded, pool = embedforge.load(model), texts(4096)
    embedforge.encode(loaded, pool[:256])
    start, before, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        embedforge.encode(loaded, pool[done % 4096 : done % 4096 + 256])
        done += 256
    print(done / (time.perf_counter() - start), (time.process_time() - before) / done)


def compare(options: argparse.Namespace) -> None:
    kinds = [options.only] if options.only else list(SERVERS)
    for _ in range(options.repeats):
        reference = encode_rate(options.model, options.seconds)
        print(
            f"{'encode':28} {reference[0]:8.0f} texts/s   {1000 * reference[1]:.2f} ms processor", flush=True
        )
        for kind in kinds:
            with server(kind, options.model) as (port, pid):
                asyncio.run(closed_load(port, pid, options.clients, 16, 1.0))
                for per_request in (1, 16):
                    load = asyncio.run(closed_load(port, pid, options.clients, per_request, options.seconds))
                    name = f"{kind}, {per_request} a request"
                    print(load.line(name, reference), dict(load.statuses), flush=True)


def overload(options: argparse.Namespace) -> None:
    limits = ("--queue-tokens", str(options.queue_tokens))
    with server("embedforge", options.model, *limits) as (port, pid):
        can = asyncio.run(closed_load(port, pid, options.clients, 1, options.seconds))
        rate = can.texts / can.seconds
        print(can.line("what it can do"))
        load, memory = asyncio.run(open_load(port, options.times * rate, options.seconds, pid))
        sent = load.statuses.pop("sent")
        print(load.line(f"{options.times:g} times of it"))
        lost = sent - load.statuses["200"] - load.statuses["429"]
        print(f"sent {sent}, of which lost {lost}; answers {dict(load.statuses)}")
        print("memory, MB, each second:", " ".join(f"{each:.0f}" for each in memory))
        print(asyncio.run(closed_load(port, pid, options.clients, 1, options.seconds)).line("after it"))


def main() -> None:
    """Compare, overload, or be one of the processes of that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", choices=SERVERS)
    parser.add_argument("--overload", action="store_true")
    parser.add_argument("--times", type=float, default=10.0, help="the load, in what it can do")
    parser.add_argument("--queue-tokens", type=int, default=16_384, help="of the overloaded server")
    parser.add_argument("--plain-port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--encode-seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain_port:
        plain_app(options.model, options.plain_port)
    elif options.encode_seconds:
        encode_here(options.model, options.encode_seconds)
    elif options.overload:
        overload(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
