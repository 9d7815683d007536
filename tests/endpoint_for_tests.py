"""A real HTTP server that speaks OpenAI's protocol, writes English nonsense, and misbehaves when asked to."""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = re.findall(
    r"\w+",
    """
    the a river mountain garden kettle window teacher bicycle winter morning paper letter bridge market
    village doctor engine ticket island forest candle harbour kitchen painter concert station library walks
    carries finds opens repairs paints sells remembers follows answers writes measures collects studies slowly
    quietly often never sometimes near behind under between after before because although while and of with
    from old green heavy narrow bright famous empty careful gentle wooden silver distant early
    """,
)


@dataclass
class Act:
    """What the server does instead of answering as it should; what is None is done as usual."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "no"
    """Of the error, for a status other than 200."""
    code: str | None = None
    text: str | None = None
    """The answer's content."""
    finish: str = "stop"
    usage: bool = True
    delay: float = 0.0
    raw: bytes | None = None
    """The whole body, of whatever status."""
    message_fields: dict[str, Any] | None = None
    """Of the answer, in place of its content."""
    cut: int | None = None
    """Bytes after which the connection is closed, though more were announced."""


Behaviour = Callable[[int, dict[str, Any]], Act | None]


class Server:
    """An endpoint; `bodies` are the requests that it got, in the order of arrival."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    def prompts(self) -> list[tuple[str, int]]:
        """Prompt and seed of every request."""
        return [(body["messages"][0]["content"], body.get("seed", -1)) for body in self.bodies]


@contextlib.contextmanager
def serve(behaviour: Behaviour = lambda number, body: None) -> Iterator[Server]:
    """Run the server in a thread; port 0 takes a free one."""
    server = Server(behaviour)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.under_way += 1
                server.most_under_way = max(server.most_under_way, server.under_way)
            try:
                self.answer(body, server.behaviour(number, body) or Act())
            finally:
                with server.lock:
                    server.under_way -= 1

        def do_GET(self) -> None:
            self.send_error(404)  # where a redirected request ends

        def answer(self, body: dict[str, Any], act: Act) -> None:
            time.sleep(act.delay)
            if act.raw is not None:
                payload = act.raw
            elif act.status != 200:
                payload = json.dumps({"error": {"message": act.message, "code": act.code}}).encode()
            else:
                payload = completion(body, act)
            with contextlib.suppress(OSError):
                self.send_response(act.status)
                for name, value in {"Content-Type": "application/json", **act.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload[: act.cut])
                self.close_connection = act.cut is not None or self.close_connection

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def completion(body: dict[str, Any], act: Act) -> bytes:
    text = good_answer(body) if act.text is None else act.text
    message = {
        "role": "assistant",
        **({"content": text} if act.message_fields is None else act.message_fields),
    }
    value = {
        "id": "x",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": act.finish}],
    }
    if act.usage:
        value["usage"] = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    return json.dumps(value).encode()


def good_answer(body: dict[str, Any]) -> str:
    """What a perfect model would answer: the keys that the prompt asks for, with words drawn by the seed."""
    prompt, seed = body["messages"][0]["content"], body.get("seed", 0)
    draw = random.Random(seed)
    if '{"tasks"' in prompt:
        tasks = [f"Given {sentence(draw, 4)}, retrieve {sentence(draw, 4)}." for _ in range(20)]
        return json.dumps({"tasks": tasks})
    keys = re.findall(r'^- "(\w+)":', prompt, re.MULTILINE) or ["query"]
    length = {"label": 2, "misleading_label": 3, "query": 7, "user_query": 7}
    long = 90 if "at least 300 words" in prompt else 30
    return json.dumps({key: sentence(draw, length.get(key, long)) for key in keys})


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))
