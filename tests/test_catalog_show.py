"""`embedforge catalog`: what it prints, and what it finds out from a hub."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from rich.console import Console

from embedforge.data.catalog import load_catalog
from embedforge.data.catalog_check import check_entries
from embedforge.data.catalog_show import catalog
from embedforge.errors import EmbedforgeError

CATALOG = load_catalog()


def printed(*arguments: object, **options: object) -> str:
    console = Console(width=160, file=io.StringIO())
    catalog(*arguments, console=console, **options)  # type: ignore[arg-type]
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_table_lists_what_is_asked_for() -> None:
    assert all(name in printed() for name in CATALOG)
    e5 = printed(paper="e5-mistral")
    assert "t2ranking" in e5
    assert "emotion" not in e5
    assert "sts12" in printed(kind="scored_pairs")
    with pytest.raises(EmbedforgeError, match=r"--paper 'nv-embed' is none of.*Did you mean 'nv-embed-v"):
        printed(paper="nv-embed")
    for chosen, message in (
        ({"kind": "labels", "paper": "e5-mistral"}, "no entry is of kind 'labels' and used by 'e5-mistral'$"),
        ({"kind": "nli"}, "no entry is of kind 'nli'$"),
    ):
        with pytest.raises(EmbedforgeError, match=message):
            printed(**chosen)


def test_a_narrow_terminal_gets_a_line_for_each_dataset() -> None:
    console = Console(width=80, file=io.StringIO())
    catalog(console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[0].rstrip("*") for line in lines[1 : len(CATALOG) + 1]] == list(CATALOG)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(EmbedforgeError, match="--check and --json exclude each other"):
        printed(check=True, as_json=True)
    with pytest.raises(EmbedforgeError, match="--paper e5-mistral has no effect on one entry"):
        printed("nq", paper="e5-mistral")


def test_recalled_instructions_are_marked() -> None:
    text = printed("nq")
    assert "instruction, nv-embed (recalled)" in text
    assert "instruction, e5-mistral  " in text


def test_an_entry_is_shown_in_full() -> None:
    text = printed("hover")
    for word in (
        "catalog:hover",
        "supporting_facts.key",
        "mteb/hotpotqa",
        "17,000",
        "recalled, not verified",
    ):
        assert word in text
    assert json.loads(printed("hover", as_json=True))["hover"]["layout"] == "titles"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[huggingface_hub.HfApi]:
    """A server here that speaks enough of the hub's protocol: datasets are gated, gone, or have changed."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/datasets/").partition("?")[0]
            code = 404 if name in ("mteb/fever", "mteb/hotpotqa") else 200
            files = CATALOG["stackexchangeclusteringp2p"].files[1:] if name.startswith("flax") else ()
            configs = ["corpus", "queries"] if name == "mteb/scifact" else ["en", "en-triplet", "fr-triplet"]
            body: dict = {
                "id": name,
                "sha": "0123456789",
                "siblings": [{"rfilename": file} for file in files],
                "tags": [],
            }
            if name in ("mteb/scifact", "sentence-transformers/miracl"):
                body["cardData"] = {"configs": [{"config_name": config} for config in configs]}
            self.send_response(code)
            if code == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
                body = {"error": "Repository not found"}
            body["gated"] = "auto" if name == "mteb/nfcorpus" else False
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
    server.shutdown()
    server.server_close()


def test_a_check_says_of_each_entry_what_the_hub_says(hub: huggingface_hub.HfApi) -> None:
    found = {item.name: item for item in check_entries(CATALOG, hub)}
    failures = {
        "fever": "mteb/fever is not there",
        "hotpotqa": "mteb/hotpotqa is not there",
        "hover": "mteb/hotpotqa is not there",  # whose texts it needs
        "scifact": "there is no configuration default",
        "miracl-multilingual": "there is no configuration ar-triplet, bn-triplet",
        "stackexchangeclusteringp2p": "there is no file android.stackexchange.com.jsonl.gz",
    }
    assert {name: item.state for name, item in found.items()} == (
        {name: "ok" if entry.hub else "by hand" for name, entry in CATALOG.items()}
        | {"nfcorpus": "gated"}
        | dict.fromkeys(failures, "failed")
    )
    for name, what in failures.items():
        assert what in found[name].detail


def test_without_a_network_a_check_is_one_error() -> None:
    with pytest.raises(EmbedforgeError, match="the hub cannot be reached, so nothing was checked"):
        check_entries(CATALOG)
