"""`synthesize` against a real language model, served on this machine by `transformers serve`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

pytest.importorskip("openai", reason="the extra 'synthesize' is not installed")

from embedforge.synthesize.run import SynthesisSettings, synthesize


@pytest.fixture
def served(tiny_base: Path, tmp_path: Path):
    """Address and name of a random decoder that answers chats with noise."""
    folder = tmp_path / "decoder"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "eos_token_id": 1}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from transformers.cli.transformers import main; main()"
    arguments = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", command, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        )
    try:
        wait_for(server, port, tmp_path / "serve.log")
        yield f"http://127.0.0.1:{port}", str(folder)
    finally:
        server.terminate()
        server.wait()


def wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(1200):
        if server.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the server did not start")


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="transformers[serving] is not installed")
def test_noise_of_a_real_model_is_dropped_counted_and_explained(served, tmp_path):
    endpoint, model = served
    settings = SynthesisSettings(endpoint, model, examples=10, concurrency=2, max_answer_tokens=32)
    report = synthesize(tmp_path / "out", settings).report
    assert report["totals"] == {"planned": 10, "not asked yet": 0, "kept": 0, "dropped": 10}
    assert set(report["dropped"]) <= {"no task", "does not parse", "cut off at the token limit"}
    assert report["spent"]["requests"] >= 10
    assert report["spent"]["answers with estimated tokens"] == 0
    assert 0 < report["spent"]["tokens out"] <= 32 * report["spent"]["requests"]
    again = synthesize(tmp_path / "out", settings).report
    assert again["spent"] == report["spent"]
