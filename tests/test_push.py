"""`embedforge push`: what goes to a hub and what does not; a small server speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

import embedforge
from embedforge.cli import app
from embedforge.errors import EmbedforgeError
from embedforge.model.push import pack, push

HEAD = "---\nlicense: apache-2.0\nbase_model: a/base\n---\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("push") / "model"
    model = embedforge.build(base=str(tiny_base), contract=embedforge.Contract(max_tokens=32))
    recipe = {"name": "r", "model": {"base": str(tiny_base)}, "stages": [{"path": "C:\\Users\\me\\a.jsonl"}]}
    embedforge.save(model, folder, recipe)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a commit of small files needs."""

    calls: list[tuple[str, Any]]
    private: bool
    status = 200

    def answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer({"id": "me/model", "private": self.private, "siblings": [], "sha": "0" * 40})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        sent = [json.loads(line) for line in text.splitlines()]
        self.calls.append((self.path, sent))
        here = f"http://{self.headers['Host']}/me/model"
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in sent[0]["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.answer({"commitUrl": f"{here}/commit/1", "commitOid": "1", "hookOutput": ""})
        else:
            self.answer({"url": here, "errors": [], "warnings": []})

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[Hub], str]]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    handler = type("Mine", (Hub,), {"calls": [], "private": True})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_dry_run_shows_everything_and_needs_no_network(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "notes.md").write_text("mine")
    (model / ".cache").mkdir()
    (model / ".cache" / "x.json").write_text("{}")
    monkeypatch.setattr("socket.socket.connect", None)
    result = CliRunner().invoke(app, ["push", str(model), "me/model", "--dry-run"])
    assert result.exit_code == 0, result.output
    for said in (
        "me/model (private)",
        "model.safetensors",
        "left out",
        "notes.md",
        "license",
        "gives its goldens",
    ):
        assert said in result.output
    assert "x.json" not in result.output
    assert "nothing was sent" in result.output


def test_one_commit_holds_the_model_and_no_path_of_this_machine(
    model: Path, hub: tuple[type[Hub], str], tiny_base: Path
) -> None:
    handler, endpoint = hub
    url = push(pack(model, "me/model", public=False), message="m", say=print, endpoint=endpoint)
    assert url == f"{endpoint}/me/model/commit/1"
    (created,) = [sent[0] for path, sent in handler.calls if path == "/api/repos/create"]
    assert "private" in (created.get("visibility"), "private" * bool(created.get("private")))
    (commit,) = [sent for path, sent in handler.calls if "/commit/" in path]
    files = {
        one["value"]["path"]: base64.b64decode(one["value"]["content"])
        for one in commit
        if one["key"] == "file"
    }
    assert {"model.safetensors", "contract.json", "README.md", "tokenizer.json"} <= set(files)
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    recipe = json.loads(files["recipe.json"])
    assert recipe["model"]["base"] == tiny_base.name
    assert recipe["stages"] == [{"path": "a.jsonl"}]


def test_a_private_model_is_not_sent_to_a_public_place(model: Path, hub: tuple[type[Hub], str]) -> None:
    handler, endpoint = hub
    handler.private = False
    with pytest.raises(EmbedforgeError, match="there already and public; say --public"):
        push(pack(model, "me/model", public=False), message="m", say=print, endpoint=endpoint)
    assert not any("/commit/" in path for path, _ in handler.calls)
    handler.status = 401
    with pytest.raises(EmbedforgeError, match="hf auth login"):
        push(pack(model, "me/model", public=False), message="m", say=print, endpoint=endpoint)


def test_what_is_no_model_or_has_no_licence_is_refused(model: Path) -> None:
    card = (model / "README.md").read_text(encoding="utf-8").partition("\n---\n")[2]
    (model / "README.md").write_text("---\nlibrary_name: x\n---\n" + card, encoding="utf-8")
    with pytest.raises(EmbedforgeError, match="a public model needs a licence"):
        pack(model, "me/model", public=True)
    (model / "README.md").write_text(HEAD + card, encoding="utf-8")
    assert pack(model, "me/model", public=True).missing == []
    for name in ("model", "a/b/c", "../x", "me/"):
        with pytest.raises(EmbedforgeError, match="NAME/MODEL"):
            pack(model, name, public=False)
    (model / "README.md").unlink()
    with pytest.raises(EmbedforgeError, match=r"README.md not there; embedforge export"):
        pack(model, "me/model", public=False)
    with pytest.raises(EmbedforgeError, match="no such folder"):
        pack(model / "nothing", "me/model", public=False)
