"""`synthesize` against a real HTTP server: what is asked, what is kept, and that nothing is asked twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("openai", reason="the extra 'synthesize' is not installed")

from embedforge.data.convert import read_source
from embedforge.data.mixture import Mixture
from embedforge.documents.document import Chunk
from embedforge.errors import EmbedforgeError
from embedforge.recipe import Mix
from embedforge.synthesize import run
from embedforge.synthesize.ask import Patience
from embedforge.synthesize.budget import Budget
from embedforge.synthesize.run import Result, SynthesisSettings, synthesize
from endpoint_for_tests import Act, Server, sentence, serve

QUICK = Patience(retries=3, first_wait=0.01, longest_wait=0.05)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def make(out: Path, server: Server, passages=None, budget=Budget(), **changes: Any) -> Result:  # noqa: B008
    settings = SynthesisSettings(
        server.url, "tiny", **{"examples": 30, "concurrency": 4, "timeout": 20.0, **changes}
    )
    return synthesize(out, settings, passages=passages, budget=budget, patience=QUICK)


def journal_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "examples.jsonl").read_text().splitlines()]


def test_all_six_groups_become_examples_that_a_recipe_reads(tmp_path):
    with serve() as server:
        result = make(tmp_path, server, examples=120, languages=("English", "German"))
    totals = result.report["totals"]
    assert (totals["planned"], totals["not asked yet"], result.stopped) == (120, 0, "")
    assert set(result.report["phases"]) == {"asking"}
    # The server writes English only: bitext is dropped for its language, and what was asked for in German.
    assert set(result.report["dropped"]) == {"wrong language"}
    kept = {name for name, group in result.report["groups"].items() if group["kept"]}
    assert kept == {"short-long", "long-short", "short-short", "long-long", "sts"}
    assert all(row["instruction"] for row in rows_of(tmp_path))
    assert len(rows_of(tmp_path)) == totals["kept"]

    mix = Mix.model_validate(yaml.safe_load((tmp_path / "mix.yaml").read_text()))
    examples = {s.name: read_source(s, seed=0, folder=tmp_path) for s in mix.sources}
    assert sum(map(len, examples.values())) == totals["kept"]
    assert all(example.symmetric for example in examples["synthetic-sts"])
    assert not any(example.in_batch_negatives for example in examples["synthetic-long-short"])
    assert all(len(e.negatives) == 1 for e in examples["synthetic-short-long"])
    assert not any(e.negatives for e in examples["synthetic-short-short"])
    step = Mixture(examples, seed=0, batch_queries=8, negatives=1).step(0)
    assert len(step.positive) == 8


def test_a_second_run_asks_nothing_and_more_examples_ask_only_for_themselves(tmp_path):
    with serve() as server:
        make(tmp_path, server)
        asked, first = server.prompts(), rows_of(tmp_path)
        make(tmp_path, server)
        assert server.prompts() == asked
        assert rows_of(tmp_path) == first
        make(tmp_path, server, examples=60)
        assert len(server.prompts()) == len(asked) + 30  # the tasks of the first block serve 60 examples
        assert rows_of(tmp_path)[: len(first)] == first
    assert len(set(server.prompts())) == len(server.prompts())


def test_concurrency_changes_neither_prompts_nor_examples(tmp_path):
    with serve() as one:
        make(tmp_path / "one", one, concurrency=1)
    with serve(lambda number, body: Act(delay=0.01 * (number % 3))) as many:
        make(tmp_path / "many", many, concurrency=16)
    assert set(one.prompts()) == set(many.prompts())
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "many")
    assert one.most_under_way == 1
    assert 1 < many.most_under_way <= 16


def test_another_seed_asks_for_other_things_and_leaves_paid_answers_alone(tmp_path):
    with serve() as server:
        make(tmp_path, server, groups=("sts",))
        result = make(tmp_path, server, groups=("sts",), seed=1)
    assert len(set(server.prompts())) == 60
    assert result.report["spent"]["unused answers"] == 30


def kill_when(process: subprocess.Popen[bytes], server: Server, requests: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.bodies) < requests and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()


SCRIPT = """
import sys
from pathlib import Path
from embedforge.synthesize.run import SynthesisSettings, synthesize
synthesize(Path(sys.argv[1]), SynthesisSettings(sys.argv[2], "tiny", examples=60, concurrency=4))
"""


def test_killed_again_and_again_it_pays_for_nothing_twice(tmp_path):
    with serve(lambda number, body: Act(delay=0.02)) as server:
        for requests in (12, 30):
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), server.url],
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": "src"},
            )
            kill_when(process, server, requests)
        with (tmp_path / "out" / "journal.jsonl").open("a") as journal:
            journal.write('{"kind": "answer", "key": "half a li')
        result = make(tmp_path / "out", server, examples=60)
        again = len(server.bodies) - len(set(server.prompts()))
        assert again <= 2 * 4  # only what was under way at a kill
        assert len({line["key"] for line in journal_of(tmp_path / "out") if "key" in line}) == len(
            [line for line in journal_of(tmp_path / "out") if "key" in line]
        )
    with serve() as other:
        make(tmp_path / "unbroken", other, examples=60)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "unbroken")
    assert result.report["totals"]["not asked yet"] == 0


def test_ctrl_c_lets_requests_under_way_finish(tmp_path):
    def behaviour(number: int, body: dict[str, Any]) -> Act:
        if number == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return Act(delay=0.05)

    with serve(behaviour) as server:
        result = make(tmp_path, server)
        assert result.interrupt
        assert (
            len([line for line in journal_of(tmp_path) if line["kind"] == "answer"])
            == len(server.bodies)
            < 34
        )
        assert result.report["totals"]["not asked yet"] > 0
        server.behaviour = lambda number, body: None
        assert make(tmp_path, server).stopped == ""
        assert len(set(server.prompts())) == len(server.bodies) == 34


def test_max_requests_is_never_exceeded_and_counts_earlier_runs(tmp_path):
    with serve(lambda number, body: Act(status=500) if number % 5 == 0 else None) as server:
        result = make(tmp_path, server, budget=Budget(max_requests=17))
        assert "--max-requests 17" in result.stopped
        assert len(server.bodies) == 17 == result.report["spent"]["requests"]
        assert make(tmp_path, server, budget=Budget(max_requests=17)).stopped
        assert len(server.bodies) == 17
        make(tmp_path, server, budget=Budget(max_requests=20))
        assert len(server.bodies) == 20


def test_tokens_and_cost_stop_after_what_is_under_way(tmp_path):
    with serve() as server:
        tokens = make(tmp_path / "tokens", server, budget=Budget(max_tokens=1500))
        assert "--max-tokens" in tokens.stopped
        assert 10 <= len(server.bodies) <= 10 + 4
        before = len(server.bodies)
        # An answer costs 100 / 1e6 * 1 + 50 / 1e6 * 4 = 0.0003.
        priced = Budget(max_cost=0.003, price_in=1.0, price_out=4.0)
        cost = make(tmp_path / "cost", server, budget=priced)
        assert "--max-cost" in cost.stopped
        assert 10 <= len(server.bodies) - before <= 10 + 4
    requests = cost.report["spent"]["requests"]
    assert cost.report["spent"]["cost"] == pytest.approx(requests * 0.0003)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_cost": 1.0}, "--price-in"),
        ({"price_in": 1.0}, "go together"),
        ({"max_requests": 0}, "above 0"),
        ({"price_in": -1.0, "price_out": 1.0}, "not be below 0"),
    ],
)
def test_budgets_that_make_no_sense(limits, message):
    with pytest.raises(EmbedforgeError, match=message):
        Budget(**limits)


def test_two_runs_at_a_time_on_one_folder_are_refused(tmp_path):
    from embedforge.synthesize.journal import Journal

    with Journal(tmp_path / "journal.jsonl"), serve() as server:
        with pytest.raises(EmbedforgeError, match="another synthesize run"):
            make(tmp_path, server)
        assert not server.bodies


def chunks(count: int = 12) -> list[Chunk]:
    draw = random.Random(0)
    return [
        Chunk(
            f"Topic{n} " + sentence(draw, 40),
            f"file{n // 2}.md",
            f"line {n}",
            ("Guide", f"Part {n}"),
            "prose",
            n,
        )
        for n in range(count)
    ]


def test_a_corpus_gives_queries_for_its_passages_and_negatives_of_other_files(tmp_path):
    passages = chunks()
    by_text = {chunk.text: chunk for chunk in passages}

    def behaviour(number: int, body: dict[str, Any]) -> Act:
        passage = body["messages"][0]["content"].split("<passage>\n")[1].split("\n</passage>")[0]
        words = random.Random(body["seed"]).sample(passage.split(), 6)
        return Act(text=json.dumps({"query": " ".join(words)}))

    with serve(behaviour) as server:
        result = make(tmp_path, server, passages, examples=24)
    assert result.report["totals"] == {"planned": 24, "not asked yet": 0, "kept": 24, "dropped": 0}
    rows = rows_of(tmp_path)
    assert len({row["positives"][0]["id"] for row in rows}) == 12  # each passage twice, none three times
    assert len({row["instruction"] for row in rows}) > 2
    for row in rows:
        positive = by_text[row["positives"][0]["text"]]
        assert positive.id == row["positives"][0]["id"]
        for negative in row.get("negatives", []):
            assert by_text[negative["text"]].file != positive.file
    assert sum("negatives" in row for row in rows) > 12
    assert "Guide > Part" in server.prompts()[0][0]


def test_documents_added_to_a_corpus_keep_what_was_paid_for(tmp_path):
    with serve() as server:
        make(tmp_path, server, chunks(6), examples=6)
        result = make(tmp_path, server, chunks(8), examples=8)
    assert len(server.bodies) == 8
    assert result.report["spent"]["unused answers"] == 0


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-123")

    def behaviour(number: int, body: dict[str, Any]) -> Act | None:
        return Act(status=400, message="bad key sk-secret-123") if number == 12 else None

    with serve(behaviour) as server:
        make(tmp_path, server, key_variable="MY_KEY")
        assert server.headers[0]["authorization"] == "Bearer sk-secret-123"
        with pytest.raises(EmbedforgeError, match="NO_SUCH_KEY"):
            make(tmp_path, server, key_variable="NO_SUCH_KEY")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(b"sk-secret" in path.read_bytes() for path in written)
    assert any("[key]" in line.get("message", "") for line in journal_of(tmp_path))


def test_preview_asks_nothing_and_shows_both_steps():
    plan = run.plan_of(SynthesisSettings("http://127.0.0.1:9", "tiny", languages=("English", "French")), None)
    prompts = run.preview(plan)
    assert {name: len(texts) for name, texts in prompts.items()} == {
        "short-long": 2,
        "long-short": 2,
        "short-short": 2,
        "long-long": 2,
        "sts": 1,
        "bitext": 1,
    }
    assert not any("$" in text for texts in prompts.values() for text in texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ("short-lang",)}, "Did you mean 'short-long'"),
        ({"groups": ("bitext",)}, "two languages"),
        ({"groups": ("sts", "sts")}, "twice"),
        ({"languages": ("Germann",)}, "Did you mean 'German'"),
        ({"examples": 0}, "--examples"),
        ({"top_p": 0.0}, "--top-p"),
        ({"endpoint": "localhost:8000"}, "no address like"),
        ({"endpoint": "http://me:secret@localhost"}, "no user, password"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, message):
    settings = SynthesisSettings(**{"endpoint": "http://127.0.0.1:9", "model": "tiny", **changes})
    with pytest.raises(EmbedforgeError, match=message):
        synthesize(tmp_path, settings)
    assert not list(tmp_path.iterdir())
