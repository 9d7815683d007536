"""What must not happen whatever is asked: secrets printed, two runs in a folder, a signal without a word."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Run
from datasets_for_tests import write_datasets
from disk_for_tests import disk_with_room_for
from embedforge.endpoint import Secret
from embedforge.errors import EmbedforgeError
from embedforge.model.config_check import check_values
from embedforge.model.encoder import load_decoder
from embedforge.parse import parse_json, parse_yaml
from embedforge.recipe import load_recipe, parse_recipe
from embedforge.run_folder import LOCK, contents, hold
from embedforge.stopping import Terminated
from endpoint_for_tests import Act, serve
from training_for_tests import tiny_recipe, write_pairs

KEY = "sk-very-secret-0123456789"


# --- keys and passwords ---------------------------------------------------------------------------


def test_a_teachers_key_is_not_printed_whatever_its_endpoint_says(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", rows=4)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    acts = [
        Act(status=401, message=f"no such key: {KEY}"),
        Act(status=403, raw=f"<h1>who is {KEY}?</h1>".encode()),
        Act(raw=json.dumps({"data": KEY}).encode()),
    ]
    for number, act in enumerate(acts):
        with serve(lambda *_, act=act: act) as server:
            line = (
                "mine",
                tmp_path / "pairs.jsonl",
                "--teacher",
                f"{server.url}#m",
                "--out",
                tmp_path / str(number),
            )
            code, out, err = run(*line)
        assert code == 1
        assert KEY not in out + err
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert not [file for file in written if KEY.encode() in file.read_bytes()]


def test_a_password_in_a_teachers_address_is_refused_and_not_repeated(run: Run, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", rows=4)
    for address in (
        "http://me:hunter2@host/v1#m",
        "http://me:hunter2@ho st/v1#m",
        "http://host/v1?key=hunter2#m",
        "HTTP://me:hunter2@host/v1#m",
        *(
            f"http://me:{password}@host/v1#m"
            for password in ("hun/hunter2", "hunter2#x", "hunter2?x", "x hunter2")
        ),
        "http://ho st/v1?key=hunter2#m",
    ):
        line = ("mine", tmp_path / "pairs.jsonl", "--teacher", address, "--out", tmp_path / "out")
        code, out, err = run(*line)
        assert code == 1
        assert "hunter2" not in out + err
        values = {"teacher": address, "kind": "distill"}
        with pytest.raises(EmbedforgeError) as caught:
            parse_recipe(recipe_values(objective=values), "r")
        assert "hunter2" not in str(caught.value).partition("(")[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    [
        ("evaluate", "URL", "--tasks", "."),
        ("curate", "pairs.jsonl", "--teacher", "URL"),
        ("compress", "URL", "--tasks", "."),
        ("export", "URL", "out"),
        ("train", "r.yaml", "--set", "model.base=URL"),
    ],
    ids=lambda line: str(line[0]),
)
def test_an_address_in_place_of_a_model_is_told_apart(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", rows=4)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_values()))
    out = () if line[0] == "export" else ("--out", "out")
    code, said, err = run(*(word.replace("URL", "http://me:hunter2@host/v1#m") for word in line), *out)
    assert code == 1
    assert "http://host/v1#m: this is an address" in err
    assert "hunter2" not in said + err


def test_a_key_in_place_of_the_name_of_its_variable_is_not_repeated(run: Run, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", rows=4)
    line = ("mine", tmp_path / "pairs.jsonl", "--teacher", "http://127.0.0.1:9/v1#m")
    code, out, err = run(*line, "--key-variable", KEY, "--out", tmp_path / "out")
    assert code == 1
    assert "is it the key itself?" in err
    assert KEY not in out + err


def test_a_key_is_taken_out_in_every_form() -> None:
    secret = Secret("a/b+c")
    assert secret.cleaned("a/b+c a%2Fb%2Bc http://u:p@h") == "[key] [key] http://h"
    assert "a/b" not in f"{secret} {secret!r}"


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_one_line_and_its_own_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, code: int
) -> None:
    """In every verb: `mine`, `evaluate`, `adapt`, `curate` are what is called here."""
    from embedforge.curate import run as curating
    from embedforge.evaluate import run as evaluating
    from embedforge.mine import run as mining
    from embedforge.prove import run as proving
    from embedforge.search import run as indexing

    def signalled(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    write_pairs(tmp_path / "pairs.jsonl", rows=4)
    (tmp_path / "a.md").write_text("# Words\n\nA few words.\n")
    for module, verb, line in (
        (mining, "mine", (tmp_path / "pairs.jsonl", "--teacher", "bm25")),
        (evaluating, "evaluate", ("bm25", "--tasks", tmp_path)),
        (indexing, "index", (tmp_path / "a.md", "--model", "embedforge:forge-tiny")),
        (proving, "adapt", (tmp_path,)),
        (curating, "curate", (tmp_path / "pairs.jsonl",)),
    ):
        monkeypatch.setattr(module, verb, signalled)
        before = signal.getsignal(signal.SIGTERM)
        found, _, err = run(verb, *line, "--out", tmp_path / "out")
        assert found == code
        assert err.strip().startswith("Stopped. ")
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_fails_gives_the_signals_back(tiny_base: Path, tmp_path: Path) -> None:
    from embedforge.train.run import train

    write_pairs(tmp_path / "pairs.jsonl")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with disk_with_room_for(20_000), pytest.raises((EmbedforgeError, OSError)):
        train(tiny_recipe(tiny_base, tmp_path / "pairs.jsonl"), tmp_path / "run", quiet=True)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_in_training_saves_and_the_run_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    """A real process, as a cluster ends it."""
    write_pairs(tmp_path / "pairs.jsonl")
    settings = {"precision": "float32", "save_steps": 1000, "log_steps": 1}
    values = tiny_recipe(tiny_base, tmp_path / "pairs.jsonl", training=settings).model_dump(mode="json")
    values["stages"][0]["steps"] = 4000
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    asked = ["train", "recipe.yaml", "--out", "run", "--device", "cpu"]
    command = [sys.executable, "-m", "embedforge", *asked]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=environment)
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 240
    while not log.exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with (
        pytest.raises(EmbedforgeError, match=rf"process {process.pid} on .*train recipe.yaml"),
        hold(log.parent),
    ):
        pass
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 143, message
    assert message.rstrip().endswith("--resume")
    assert list((tmp_path / "run" / "stages" / "1-one").glob("checkpoint-*/complete"))
    assert not (tmp_path / "run" / LOCK).exists()


# --- one run in a folder --------------------------------------------------------------------------


def test_a_folder_is_held_by_one_run_and_free_again_after_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with hold(out):
        assert contents(out) == set()
        with (
            pytest.raises(EmbedforgeError, match=rf"another run .*process {os.getpid()} .*another --out"),
            hold(out),
        ):
            pass
        (out / "kept").touch()
    with hold(out):
        assert contents(out) == {"kept"}
    with pytest.raises(Terminated), hold(tmp_path / "refused"):
        raise Terminated
    assert not (tmp_path / "refused").exists()


def test_what_a_killed_run_left_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"process": 1}')
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_of_two_runs_at_once_the_second_says_who_is_there(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    """Every verb with a folder of its own; the second blamed the disk, and both wrote one log."""
    write_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(tiny_recipe(tiny_base, tmp_path / "pairs.jsonl").model_dump(mode="json"))
    )
    out = tmp_path / "out"
    lines = [
        ("train", tmp_path / "recipe.yaml", "--device", "cpu"),
        ("mine", tmp_path / "pairs.jsonl", "--teacher", "bm25"),
        ("adapt", Path(__file__).parent, "--device", "cpu"),
        (
            "sweep",
            tmp_path / "recipe.yaml",
            "--grid",
            "training.log_steps=1,2",
            "--dev",
            tmp_path / "pairs.jsonl",
        ),
        ("compress", "weights", "embedforge:forge-tiny", "--int8"),
    ]
    if importlib.util.find_spec("mteb"):
        write_datasets(tmp_path / "tasks")
        lines.append(("compress", "embedforge:forge-tiny", "--tasks", tmp_path / "tasks" / "sts"))
    with hold(out):
        for line in lines:
            code, _, err = run(*line, "--out", out)
            assert code == 1, err
            assert f"process {os.getpid()}" in err
        assert contents(out) == set()


# --- a disk that is full --------------------------------------------------------------------------


def test_a_full_disk_in_the_final_save_keeps_all_that_was_trained(tiny_base: Path, tmp_path: Path) -> None:
    from embedforge.train import run as training

    write_pairs(tmp_path / "pairs.jsonl")
    recipe = tiny_recipe(tiny_base, tmp_path / "pairs.jsonl")
    honest = training.save

    def full(*arguments: Any) -> None:
        with disk_with_room_for(10_000):
            honest(*arguments)

    patch = pytest.MonkeyPatch()
    patch.setattr(training, "save", full)
    with pytest.raises(EmbedforgeError, match=r"(?s)nothing was changed.*make room.*--resume"):
        training.train(recipe, tmp_path / "run", quiet=True)
    patch.undo()
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").glob("stages/*/done.safetensors")}
    assert len(done) == 2
    training.train(recipe, tmp_path / "run", resume=True, quiet=True)
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert (tmp_path / "run" / "model" / "contract.json").exists()


@pytest.mark.parametrize("room", [300, 10_000, 60_000])
def test_a_full_disk_in_export_keeps_what_was_there(run: Run, tmp_path: Path, room: int) -> None:
    """Less than the tokenizer, whose library has an error of its own; less than the weights."""
    golden = Path(__file__).parent / "golden"
    out = tmp_path / "model"
    assert run("export", golden / "llm2vec_tiny" / "llama", out, "--pooling", "mean")[0] == 0
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    for verb, source in (("export", "llm2vec_tiny/llama"), ("convert", "nvembed_tiny")):
        with disk_with_room_for(room):
            code, _, err = run(verb, golden / source, out)
        assert code == 1
        assert err.startswith(f"embedforge: {out}: could not be written, nothing was changed")
        assert "What was there before is as it was; make room" in err
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_in_mining_names_the_file(run: Run, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    for room in (100, 4000):
        with disk_with_room_for(room):
            code, _, err = run(
                "mine", tmp_path / "pairs.jsonl", "--teacher", "bm25", "--out", tmp_path / "out"
            )
        assert code == 1
        assert str(tmp_path / "out") in err
        assert "make room" in err or "free some space" in err
    assert run("mine", tmp_path / "pairs.jsonl", "--teacher", "bm25", "--out", tmp_path / "out")[0] == 0


# --- what is read ---------------------------------------------------------------------------------


def recipe_values(**stage: Any) -> dict[str, Any]:
    first = {"name": "a", "steps": 10, "warmup_steps": 1, "mix": {"sources": [{"path": "a"}]}}
    return {"name": "mine", "stages": [{**first, **stage}]}


STEPS = list(zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in STEPS),
        "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in STEPS),
        "a: &a [*a]",
        "[" * 300 + "]" * 300,
        "- " * 3000 + "1",
        "a: 2024-13-45",
        "a: !!bool maybe",
        "a: " + "9" * 5000,
    ],
    ids=["aliases", "merges", "itself", "flow", "block", "date", "switch", "digits"],
)
def test_yaml_that_would_fill_the_memory_or_break_the_reader_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(EmbedforgeError, match=r"recipe\.yaml.*not valid YAML"):
        load_recipe(str(file))


def test_a_number_is_one_that_looks_like_it() -> None:
    read = parse_yaml("{a: 1:30, b: 010, c: 1_000, d: 0.5, e: 0x1f, f: -3, g: .5e+3, h: off}")
    assert read == {"a": "1:30", "b": "010", "c": 1000, "d": 0.5, "e": 31, "f": -3, "g": 500.0, "h": False}


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 300 + "]" * 300, "9" * 5000])
def test_json_has_bounds_too(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"steps": True}, "stages.0.steps: this is no switch"),
        ({"steps": 10**30}, "stages.0.steps: .*less than or equal"),
        ({"learning_rate": float("inf")}, "stages.0.learning_rate: .*finite"),
        ({"learning_rate": True}, "stages.0.learning_rate: this is no switch"),
        ({"objective": {"temperature": float("inf")}}, "temperature: .*finite"),
        (
            {"objective": {"kind": "sum", "terms": [{"weight": 1e300}, {"kind": "spread_out"}]}},
            "weight: .*less",
        ),
        (
            {"objective": {"kind": "matryoshka", "dims": [8, True], "objective": {}}},
            "dims: this is no switch",
        ),
    ],
)
def test_a_number_of_a_recipe_is_one_that_can_be_meant(stage: dict[str, Any], said: str) -> None:
    with pytest.raises(EmbedforgeError, match=said):
        parse_recipe(recipe_values(**stage), "r")
    for seed in (-1, 2**32):
        with pytest.raises(EmbedforgeError, match="seed: "):
            parse_recipe({**recipe_values(), "seed": seed}, "r")


def test_a_switch_is_no_length_of_a_contract() -> None:
    with pytest.raises(EmbedforgeError, match=r"contract\.text_max_tokens: this is no switch"):
        parse_recipe({**recipe_values(), "contract": {"text_max_tokens": True}}, "r")


def test_a_warm_up_longer_than_its_stage_is_refused_where_both_are_said(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe_values(warmup_steps=50)))
    with pytest.raises(EmbedforgeError, match=r"stage 'a': warmup_steps \(50\) is more than steps \(10\)"):
        load_recipe(str(file))
    file.write_text(yaml.safe_dump(recipe_values(warmup_steps=5)))
    with pytest.raises(EmbedforgeError, match="warmup_steps"):
        load_recipe(str(file), ["stages.a.warmup_steps=50"])
    assert load_recipe(str(file), ["stages.a.steps=2"]).stages[0].warmup_steps == 5
    assert "learning rate" in " ".join(run("show", file, "--set", "stages.a.steps=2")[1].split())


@pytest.mark.parametrize("verb", ["curate", "mine", "train"])
def test_a_pipe_is_not_waited_for(run: Run, tmp_path: Path, verb: str) -> None:
    file, out = tmp_path / "rows.jsonl", ("--out", tmp_path / "out")
    os.mkfifo(file)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_values(mix={"sources": [{"path": str(file)}]})))
    lines = {"curate": (file,), "mine": (file, "--teacher", "bm25"), "train": (tmp_path / "r.yaml",)}
    watch = threading.Timer(20, lambda: os.close(os.open(file, os.O_WRONLY)))  # ends a test that waits
    watch.start()
    code, _, err = run(verb, *lines[verb], *out)
    watch.cancel()
    assert code == 1
    assert "this is a pipe, not a file" in err


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedforge.data import readers

    monkeypatch.setattr(readers, "MOST_LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text('{"query": "a", "positives": ["b"]}\n' + " " * 1001)
    with pytest.raises(EmbedforgeError, match=r"a\.jsonl, line 2: the line has no end within 1,000 bytes"):
        list(readers.read_records(tmp_path / "a.jsonl"))


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("hidden_size", value) for value in (-1, 0, "a", True, 1.5, 10**30, 10**8)),
        *(("vocab_size", 10**8), ("num_hidden_layers", 10**9), ("rms_norm_eps", float("nan"))),
        *(("model_type", []), ("rope_theta", True), ("num_key_value_heads", 0)),
    ],
)
def test_a_wrong_value_of_a_config_is_found_without_torch(key: str, value: Any) -> None:
    values = {"model_type": "llama", "hidden_size": 32, "vocab_size": 100, "num_hidden_layers": 2} | {
        key: value
    }
    with pytest.raises(EmbedforgeError, match=rf"config\.json: .*{key}"):
        check_values(Path("config.json"), values, weight_bytes=100_000)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope_scaling", 3), ("hidden_act", "nosuch"), ("num_attention_heads", 7), ("quantization_config", 3)],
)
def test_what_transformers_does_not_understand_is_one_message(
    tiny_base: Path, tmp_path: Path, key: str, value: Any
) -> None:
    for file in tiny_base.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text()) | {key: value}
    config.unlink()
    config.write_text(json.dumps(values))
    with pytest.raises(EmbedforgeError, match=str(tmp_path)):
        load_decoder(str(tmp_path))


def test_sizes_are_refused_before_they_are_allocated(tiny_base: Path, tmp_path: Path) -> None:
    from embedforge.model.adapter import add_lora
    from embedforge.model.pooling import build_pooler

    for settings in ({"latents": 2**20, "heads": 1024, "head_dim": 2**16}, {"heads": 10**30}):
        with pytest.raises(EmbedforgeError, match="pooling 'latent'"):
            build_pooler("latent", 4096, **settings)
    decoder, _ = load_decoder(str(tiny_base))
    with pytest.raises(EmbedforgeError, match=r"adapter\.rank 1,000,000,000: needs .* of memory"):
        add_lora(decoder, rank=10**9)
