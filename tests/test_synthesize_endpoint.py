"""An endpoint that misbehaves: slow, busy, broken, gone, or without the settings that others know."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

pytest.importorskip("openai", reason="the extra 'synthesize' is not installed")

from embedforge.errors import EmbedforgeError
from embedforge.synthesize.ask import Patience
from embedforge.synthesize.budget import Budget
from embedforge.synthesize.client import (
    Dialect,
    EndpointError,
    adapt,
    normal_url,
    reply_of,
    retry_after,
)
from embedforge.synthesize.plan import Sampling
from embedforge.synthesize.run import Result, SynthesisSettings, synthesize
from endpoint_for_tests import Act, Server, good_answer, serve
from test_synthesize import journal_of, rows_of

QUICK = Patience(retries=3, first_wait=0.01, longest_wait=0.05)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def make(out, server: Server, patience: Patience = QUICK, **changes: Any) -> Result:
    settings = {"examples": 12, "concurrency": 3, "timeout": 20.0, "groups": ("sts",), **changes}
    return synthesize(out, SynthesisSettings(server.url, "tiny", **settings), patience=patience)


def first_time(act: Act):
    """Each prompt is answered with `act` when it comes first, and as it should be from then on."""
    seen: set[int] = set()

    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        if body["seed"] in seen:
            return None
        seen.add(body["seed"])
        return act

    return behaviour


@pytest.mark.parametrize(
    "act",
    [
        Act(status=500),
        Act(status=503, headers={"Retry-After": "0"}),
        Act(status=429, headers={"retry-after-ms": "10"}),
        Act(raw=b'{"choices": [{"message": {"con'),
        Act(raw=b'{"choices": []}'),
        Act(raw=b"<html>gateway</html>", headers={"Content-Type": "text/html"}),
        Act(cut=20),
    ],
    ids=["500", "503", "429", "half-json", "no-choices", "html", "disconnect"],
)
def test_a_passing_fault_is_asked_again_and_every_request_is_counted(tmp_path, act):
    with serve(first_time(act)) as server:
        result = make(tmp_path, server)
    assert result.report["totals"]["kept"] == 12
    assert len(server.bodies) == 24 == result.report["spent"]["requests"]
    answers = [line for line in journal_of(tmp_path) if line["kind"] == "answer"]
    assert [line["attempts"] for line in answers] == [2] * 12


def test_slow_answers_time_out_and_are_asked_again(tmp_path):
    with serve(first_time(Act(delay=1.0))) as server:
        result = make(tmp_path, server, examples=2, timeout=0.3)
    assert result.report["totals"]["kept"] == 2
    assert len(server.bodies) >= 4


def test_what_fails_for_long_is_left_for_the_next_run(tmp_path):
    with serve(lambda number, body: Act(status=500) if body["seed"] % 2 else None) as server:
        result = make(tmp_path, server, examples=8)
        failed = result.report["totals"]["not asked yet"]
        assert 0 < failed < 8
        failures = [line for line in journal_of(tmp_path) if line["kind"] == "failure"]
        assert [(line["error"], line["attempts"]) for line in failures] == [("server", 4)] * failed
        server.behaviour = lambda number, body: None
        before = len(server.bodies)
        assert make(tmp_path, server, examples=8).report["totals"]["kept"] == 8
        assert len(server.bodies) == before + failed


def test_retry_after_holds_back_all_requests(tmp_path):
    """While the endpoint wants to be left alone, none of the other workers asks it."""
    times: list[float] = []

    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        times.append(time.monotonic())
        return Act(status=429, headers={"Retry-After": "0.6"}) if number == 4 else Act(delay=0.05)

    with serve(behaviour) as server:
        make(tmp_path, server)
    after = [moment - times[4] for moment in times[5:]]
    late = [moment for moment in after if moment >= 0.55]
    assert len(late) >= 12 - 4 - 2  # all but those that were under way with it


def test_a_busy_endpoint_that_says_when_to_come_back_gets_more_patience(tmp_path):
    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        return Act(status=429, headers={"Retry-After": "0.01"}) if number < 9 else None

    with serve(behaviour) as server:
        result = make(tmp_path, server, concurrency=1)
    assert result.report["totals"]["kept"] == 12
    assert result.report["spent"]["requests"] == 12 + 9


def test_a_long_retry_after_stops_the_run(tmp_path):
    with serve(lambda number, body: Act(status=429, headers={"Retry-After": "90000"})) as server:
        result = make(tmp_path, server)
    assert "asks to wait 90,000 s" in result.stopped
    assert len(server.bodies) == 1


def refusing(*formats: str):
    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        kind = body.get("response_format", {}).get("type", "none")
        return (
            Act(status=400, message=f"response_format {kind} is not supported") if kind in formats else None
        )

    return behaviour


@pytest.mark.parametrize(
    ("formats", "found", "requests"),
    [
        ((), "json_schema", 12),
        (("json_schema",), "json_object", 13),
        (("json_schema", "json_object"), "none", 14),
    ],
)
def test_the_answers_format_is_found_out_once(tmp_path, formats, found, requests):
    with serve(refusing(*formats)) as server:
        assert make(tmp_path, server).report["totals"]["kept"] == 12
        assert len(server.bodies) == requests
        (line,) = [line for line in journal_of(tmp_path) if line["kind"] == "dialect"]
        assert line["dialect"]["response_format"] == found
        make(tmp_path, server, examples=20)
        assert len(server.bodies) == requests + 8  # the next run knows it
    if not formats:
        schema = server.bodies[0]["response_format"]["json_schema"]
        assert schema["strict"]
        assert schema["schema"]["required"] == ["S1", "S2", "S3"]


def test_a_budget_that_ends_while_the_format_is_found_out_loses_nothing(tmp_path):
    settings = SynthesisSettings("", "tiny", examples=6, groups=("sts",))
    with serve(refusing("json_schema")) as server:
        settings = replace(settings, endpoint=server.url)
        assert synthesize(tmp_path, settings, budget=Budget(max_requests=1)).stopped
        assert synthesize(tmp_path, settings).report["totals"]["kept"] == 6


def test_refusal_of_one_prompt_is_final_and_changes_nothing_for_others(tmp_path):
    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        return Act(status=400, message="content policy") if number in (0, 1, 2, 6) else None

    with serve(behaviour) as server:
        result = make(tmp_path, server)
        # The first three refusals are of one prompt, in three formats; the fourth names no setting.
        assert result.report["dropped"] == {"refused by the endpoint": 2}
        assert "response_format" in server.bodies[-1]
        asked = len(server.bodies)
        make(tmp_path, server)
        assert len(server.bodies) == asked


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, None, "OPENAI_API_KEY"),
        (404, None, "model's name"),
        (429, "insufficient_quota", "does not let us in"),
    ],
)
def test_what_cannot_get_better_stops_at_once(tmp_path, status, code, message):
    with serve(lambda number, body: Act(status=status, code=code)) as server:
        with pytest.raises(EmbedforgeError, match=message):
            make(tmp_path, server)
        assert len(server.bodies) == 1
    assert (tmp_path / "report.html").exists()


def test_an_endpoint_that_is_not_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = SynthesisSettings(f"http://127.0.0.1:{port}", "tiny", examples=12)
    with pytest.raises(EmbedforgeError, match=r"cannot be reached .*is the server running"):
        synthesize(tmp_path, settings, patience=QUICK)


def test_an_endpoint_that_only_fails_is_not_asked_for_ever(tmp_path):
    with serve(lambda number, body: Act(status=500)) as server:
        with pytest.raises(EmbedforgeError, match="requests in a row failed"):
            make(tmp_path, server, examples=100)
        assert len(server.bodies) <= (10 + 3) * 4


def test_bad_answers_are_dropped_counted_and_explained(tmp_path):
    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        fields = json.loads(good_answer(body))
        texts = {
            0: "I am sorry, I cannot do that.",
            1: json.dumps(fields)[:-40],
            2: json.dumps({**fields, "S3": None}),
            3: json.dumps({"S1": fields["S1"]}),
            4: json.dumps({**fields, "S3": fields["S2"].upper()}),
            5: json.dumps({**fields, "S2": fields["S1"]}),
            6: json.dumps(
                {**fields, "S1": "Der Fluss ist an dieser Stelle so tief, dass man nicht hindurchgehen kann."}
            ),
            7: "",
            8: json.dumps({"S1": "one two three", "S2": "four five six", "S3": "seven"}),
            9: json.dumps({"S1": "One two, three.", "S2": "four five six!", "S3": "eight"}),
            10: f"<think>hm {{}}</think>Sure:\n```json\n{json.dumps(fields)[:-1]},}}\n```",
        }
        finish = "length" if number == 1 else "stop"
        return Act(text=texts[number], finish=finish, usage=number != 10) if number in texts else None

    with serve(behaviour) as server:
        result = make(tmp_path, server, concurrency=1)
    assert result.report["dropped"] == {
        "does not parse": 2,
        "cut off at the token limit": 1,
        "wrong types": 1,
        "missing fields": 1,
        "hard negative equals positive or query": 1,
        "query equals positive": 1,
        "wrong language": 1,
        "exact duplicate": 1,
    }
    assert result.report["totals"]["kept"] == len(rows_of(tmp_path)) == 3
    assert result.report["spent"]["answers with estimated tokens"] == 1
    why = {one["why"] for samples in result.report["samples"]["dropped"].values() for one in samples}
    assert "the query is in 'de' instead of 'en'" in why
    page = (tmp_path / "report.html").read_text()
    assert all(reason in page for reason in result.report["dropped"])


def test_nothing_kept_leaves_no_file_of_an_earlier_run(tmp_path):
    with serve() as server:
        make(tmp_path, server)
        server.behaviour = lambda number, body: Act(text="<script>alert(1)</script>")
        result = make(tmp_path, server, seed=1)
    assert result.report["totals"]["kept"] == 0
    assert not (tmp_path / "examples.jsonl").exists()
    assert [path.name for path in (tmp_path / "groups").iterdir()] == ["README.txt"]
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_brainstorming_that_holds_no_task_is_asked_again_thrice(tmp_path):
    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        return Act(text="No idea.") if '{"tasks"' in body["messages"][0]["content"] else None

    with serve(behaviour) as server:
        result = make(tmp_path, server, groups=("short-long",))
    assert len(server.bodies) == 3
    assert result.report["dropped"] == {"no task": 12}
    assert result.report["samples"]["dropped"]["no task"][0]["answer"] == "No idea."


def test_adapt_changes_what_the_message_names():
    known = Dialect()
    assert adapt(known, "Use 'max_completion_tokens' instead", Sampling("m"), is_settled=True) == Dialect(
        limit="max_completion_tokens"
    )
    assert adapt(known, "seed: extra inputs are not permitted", Sampling("m"), is_settled=True) == Dialect(
        sends_seed=False
    )
    assert adapt(known, "top_p is deprecated", Sampling("m"), is_settled=True) == Dialect(sends_top_p=False)
    assert adapt(known, "context length exceeded", Sampling("m"), is_settled=True) is None
    assert adapt(known, "bad request", Sampling("m"), is_settled=False) == Dialect(
        response_format="json_object"
    )
    assert adapt(Dialect(response_format="none"), "bad request", Sampling("m"), is_settled=False) is None


def test_retry_after_as_seconds_milliseconds_or_date():
    assert retry_after({}, 0.0) is None
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}, 0.0) == 1.5
    assert retry_after({"retry-after": formatdate(1000, usegmt=True)}, 940.0) == 60.0
    assert retry_after({"retry-after": "soon"}, 0.0) is None
    assert retry_after({"retry-after": "inf"}, 0.0) is None


def test_addresses():
    assert normal_url("https://api.example.org/v1/") == "https://api.example.org/v1"
    assert normal_url("http://[::1]:9/openai/v1/chat/completions") == "http://[::1]:9/openai/v1"


@pytest.mark.parametrize(
    "body", ["", "null", "[]", '{"choices": [{}]}', '{"choices": [{"message": {"content": 3}}]}']
)
def test_bodies_that_are_no_completion(body):
    with pytest.raises(EndpointError, match="no chat completion"):
        reply_of(body, "prompt")
