"""What the user of `synthesize` meets where endpoint, key or settings are wrong, and the way out."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the extra 'synthesize' is not installed")

from rich.console import Console
from typer.testing import CliRunner

from embedforge.cli import app
from embedforge.errors import EmbedforgeError
from embedforge.synthesize import ask
from embedforge.synthesize.ask import Patience
from embedforge.synthesize.budget import Budget
from embedforge.synthesize.client import Dialect, adapt, error_words, normal_url
from embedforge.synthesize.plan import Sampling
from embedforge.synthesize.run import Result, SynthesisSettings, read_documents, synthesize
from embedforge.synthesize.terminal import print_result
from endpoint_for_tests import Act, Server, good_answer, serve
from test_synthesize import journal_of, rows_of

QUICK = Patience(retries=3, first_wait=0.01, longest_wait=0.05)
TOO_LONG = "This model's maximum context length is 2048 tokens. However, you requested 4396 tokens."


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def make(out: Path, server: Server, console: Console | None = None, **changes: Any) -> Result:
    budget = changes.pop("budget", Budget())
    settings = {"examples": 12, "concurrency": 3, "timeout": 20.0, "groups": ("sts",), **changes}
    return synthesize(
        out, SynthesisSettings(server.url, "tiny", **settings), budget=budget, patience=QUICK, console=console
    )


def recording() -> Console:
    return Console(file=io.StringIO(), width=200)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_endpoint_that_refuses_everything_loses_no_example(tmp_path):
    """A setting was wrong, or the server's: with it put right, all that was refused is asked again."""
    groups = ("short-long", "sts")
    with serve(lambda number, body: Act(status=400, message=TOO_LONG)) as server:
        with pytest.raises(EmbedforgeError, match=r"2048 tokens.*--max-answer-tokens 4,096: give fewer"):
            make(tmp_path, server, examples=24, groups=groups)
        server.behaviour = lambda number, body: None
        result = make(tmp_path, server, examples=24, groups=groups)
        assert result.report["totals"] == {"planned": 24, "not asked yet": 0, "kept": 24, "dropped": 0}
        # ... and so it is where the endpoint has answered before.
        server.behaviour = lambda number, body: Act(status=400, message=TOO_LONG)
        with pytest.raises(EmbedforgeError, match="10 requests in a row"):
            make(tmp_path, server, examples=48, groups=groups)
        server.behaviour = lambda number, body: None
        assert make(tmp_path, server, examples=48, groups=groups).report["totals"]["kept"] == 48


def test_the_last_request_may_be_refused_for_good_too(tmp_path):
    with serve(
        lambda number, body: Act(status=400, message="content policy") if number == 11 else None
    ) as server:
        assert make(tmp_path, server, concurrency=1).report["dropped"] == {"refused by the endpoint": 1}
        make(tmp_path, server)
        assert len(server.bodies) == 12


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}),
        (400, {"error": "unknown field: seed"}),
        (400, {"object": "error", "message": "seed is not supported"}),
        (400, "Unknown parameter seed"),
        (400, "<html><h1>Bad request</h1><p>seed</p></html>"),
    ],
    ids=["fastapi", "ollama", "flat", "plain", "html"],
)
def test_a_setting_is_found_out_wherever_the_error_names_it(tmp_path, status, body):
    raw = (body if isinstance(body, str) else json.dumps(body)).encode()
    with serve(lambda number, asked: Act(status=status, raw=raw) if "seed" in asked else None) as server:
        assert make(tmp_path, server).stopped == ""
    (line,) = [line for line in journal_of(tmp_path) if line["kind"] == "dialect"]
    found = line["dialect"]
    assert (found["sends_seed"], found["response_format"]) == (False, "json_schema")


def test_words_of_errors():
    assert error_words({"error": {"message": "", "code": 3}}) == '{"message": "", "code": 3}'
    assert error_words(["a"]) == '["a"]'
    assert error_words(None) == error_words("") == error_words({}) == ""
    page = "<!doctype html><style>p {}</style><script>x = 1</script><title>Log in</title><p>now</p>"
    assert error_words(page) == "Log in now"


def test_what_the_user_asked_for_is_not_dropped():
    known = Dialect()
    message = "`temperature` and `top_p` cannot both be specified for this model"
    without = adapt(known, message, Sampling("m"), is_settled=True)
    assert without == Dialect(sends_top_p=False)
    assert adapt(without, "temperature is deprecated", Sampling("m"), is_settled=True) == Dialect(
        sends_top_p=False, sends_temperature=False
    )
    assert adapt(known, message, Sampling("m", top_p=0.9), is_settled=True) == Dialect(
        sends_temperature=False
    )
    assert adapt(known, message, Sampling("m", 0.5, 0.9), is_settled=True) is None


@pytest.mark.parametrize("key", ["sk-secret\nsk-other", "sk-secret-ö", "sk-secret -v"])
def test_a_key_that_no_header_can_hold_is_neither_printed_nor_written(tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serve() as server:
        with pytest.raises(EmbedforgeError, match="OPENAI_API_KEY: the key has") as caught:
            make(tmp_path, server)
        assert not server.bodies
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_key_in_a_page_that_is_no_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    page = f"<pre>{'x' * 60} Authorization: Bearer sk-secret-123</pre>".encode()
    with serve(lambda number, body: Act(raw=page)) as server:
        with pytest.raises(EmbedforgeError, match=r"Bearer \[key\]; check the address") as caught:
            make(tmp_path, server)
        assert len(server.bodies) == 3  # not for minutes
    assert "secret" not in str(caught.value)
    assert "secret" not in (tmp_path / "journal.jsonl").read_text()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:abc/v1",
        "http://localhost:99999/v1",
        "http://[::1/v1",
        "http://my host/v1",
        "http://a..b/v1",
        "http:///v1",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(EmbedforgeError, match="is no address like"):
        normal_url(url)


def test_a_redirect_that_loses_the_request_is_named(tmp_path):
    with serve() as server:
        server.behaviour = lambda number, body: Act(status=301, headers={"Location": f"{server.url}/other"})
        with pytest.raises(EmbedforgeError, match=r"redirects to http.*/v1/other; give that address"):
            make(tmp_path, server)


def test_a_model_without_name_is_refused(tmp_path):
    with pytest.raises(EmbedforgeError, match="--model"):
        synthesize(tmp_path / "out", SynthesisSettings("http://127.0.0.1:9", " "))


def test_refusals_in_the_answer_are_counted_as_such(tmp_path):
    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        if number == 0:
            return Act(message_fields={"content": None, "refusal": "I cannot help with that."})
        return Act(text="", finish="content_filter") if number == 1 else None

    with serve(behaviour) as server:
        result = make(tmp_path, server, concurrency=1)
    assert result.report["dropped"] == {"refused by the endpoint": 2}
    said = [sample["answer"] for sample in result.report["samples"]["dropped"]["refused by the endpoint"][:1]]
    assert said == ["I cannot help with that."]


def test_an_answer_in_parts_is_read_without_the_thoughts(tmp_path):
    def behaviour(number: int, body: dict[str, Any]) -> Act:
        text = good_answer(body)
        parts = [
            {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
            {"type": "text", "text": text[:20]},
            {"type": "text", "text": text[20:]},
        ]
        return Act(message_fields={"content": parts})

    with serve(behaviour) as server:
        assert make(tmp_path, server).report["totals"]["kept"] == 12
        assert len(server.bodies) == 12


def test_the_user_is_told_why_no_answer_comes_and_nothing_counts_as_done(tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "SILENCE", 0.0)
    console = recording()
    with (
        serve(lambda number, body: Act(status=503, message="[/loading] the model")) as server,
        pytest.raises(EmbedforgeError, match="requests in a row failed"),
    ):
        make(tmp_path, server, console)
    assert "503: [/loading] the model; asking again" in text_of(console)
    assert " 0/12 " in text_of(console)


def test_ctrl_c_says_what_is_waited_for(tmp_path):
    def behaviour(number: int, body: dict[str, Any]) -> Act:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return Act(delay=0.05)

    console = recording()
    with serve(behaviour) as server:
        result = make(tmp_path, server, console)
    assert "Waiting for the requests under way; Ctrl-C again" in text_of(console)
    print_result(tmp_path, result, console)
    assert "Stopped: by Ctrl-C or a signal; the same command goes on" in text_of(console)


def test_only_a_budget_asks_for_a_higher_limit(tmp_path):
    console = recording()
    with serve(lambda number, body: Act(status=429, headers={"Retry-After": "90000"})) as server:
        print_result(tmp_path, make(tmp_path, server), console)
        assert "Stopped: the endpoint asks to wait 90,000 s" in text_of(console)
        assert "higher limit" not in text_of(console)
        server.behaviour = lambda number, body: None
        print_result(tmp_path, make(tmp_path, server, budget=Budget(max_requests=4)), console)
    assert "--max-requests 4 is reached; the same command with a higher limit goes on" in text_of(console)
    assert len(rows_of(tmp_path)) == 3


def test_what_failed_is_named_at_the_end(tmp_path):
    console = recording()

    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        return Act(status=500, message="out of memory") if number > 10 else None

    with serve(behaviour) as server:
        print_result(tmp_path, make(tmp_path, server, concurrency=1), console)
    assert "1 examples are missing, the last failed with: 500: out of memory; the same" in text_of(console)


def test_a_folder_of_documents_does_not_hold_what_is_written(tmp_path):
    (tmp_path / "notes.txt").write_text("word " * 300)
    with pytest.raises(EmbedforgeError, match=r"--out .*synthetic lies in --corpus"):
        read_documents(tmp_path, seed=0, out=tmp_path / "synthetic")
    assert read_documents(tmp_path, seed=0, out=tmp_path.parent / "synthetic").train


def test_requests_are_spread_over_the_minute(tmp_path):
    """A lower bound alone: seven requests have six pauses between them, whatever their answers take."""
    with serve(lambda number, body: None) as server:
        started = time.monotonic()
        make(tmp_path, server, examples=7, concurrency=7, requests_per_minute=300)
        assert time.monotonic() - started >= 6 * 0.2
        assert len(server.bodies) == 7
        with pytest.raises(EmbedforgeError, match="--requests-per-minute must be above 0, found 0"):
            make(tmp_path, server, requests_per_minute=0)


def test_the_command_refuses_to_write_among_the_documents(tmp_path):
    (tmp_path / "a.md").write_text("# A title\n\nA text.\n")
    command = ["synthesize", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--corpus", str(tmp_path)]
    found = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "synthetic")])
    assert isinstance(found.exception, EmbedforgeError)
    assert "name another --out" in str(found.exception)
