"""A server over a tiny latent model: its answers are those of `encode`, and its refusals say the way out."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from embedforge.encode import encode
from embedforge.serve.app import create_app
from embedforge.serve.queue import BatchQueue
from embedforge.serve.service import Service
from embedforge.serve.settings import Limits
from serve_for_tests import served

TEXTS = ["how deep is the river?", "", " odd\n🙂", "bread and music"]
LONG = "bread and music " * 100
INSTRUCTION = "Find the köan"


@pytest.fixture(scope="module")
def service(saved_latent: Path) -> Service:
    limits = Limits(tokens_per_batch=256, queue_tokens=2048, texts=16, body_bytes=50_000)
    return Service.load(saved_latent, limits, device="cpu")


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


def post(client: TestClient, path: str, **body: Any) -> Any:
    return client.post(path, json=body)


def expected(service: Service, texts: list[str], **frame: Any) -> np.ndarray:
    """What `encode` makes of them as documents, or as queries where `instruction` is given."""
    contract = service.contract
    if "instruction" not in frame:
        return encode(service.model, texts, contract.document_prefix(), suffix=contract.document_suffix())
    given = frame["instruction"]
    return encode(service.model, texts, contract.query_prefix(given), suffix=contract.query_suffix(given))


def embeddings(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


# --- vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "frame", "applied"),
    [
        ({}, {}, ""),
        ({"input_type": "document"}, {}, ""),
        ({"input_type": "query"}, {"instruction": None}, None),
        ({"instruction": INSTRUCTION}, {"instruction": INSTRUCTION}, INSTRUCTION),
        ({"input_type": "document", "instruction": INSTRUCTION}, {"instruction": INSTRUCTION}, INSTRUCTION),
        ({"input_type": "query", "instruction": ""}, {"instruction": ""}, ""),
    ],
)
def test_both_protocols_give_the_vectors_of_encode(service, client, asked, frame, applied):
    openai_answer = post(client, "/v1/embeddings", input=TEXTS, model=service.name, **asked)
    tei_answer = post(client, "/embed", inputs=TEXTS, **asked)
    wanted = expected(service, TEXTS, **frame)
    np.testing.assert_allclose(embeddings(openai_answer), wanted, atol=1e-5)
    np.testing.assert_allclose(tei_answer.json(), wanted, atol=1e-5)
    for answer in (openai_answer, tei_answer):
        assert answer.headers["embedforge-contract"] == service.contract.fingerprint
        assert answer.headers["embedforge-pooling"] == "latent"
        instruction = service.contract.default_instruction if applied is None else applied
        assert unquote(answer.headers["embedforge-instruction"]) == instruction


def test_fewer_dimensions_and_fewer_bits(service, client):
    whole = expected(service, TEXTS)
    cut = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(
        embeddings(post(client, "/v1/embeddings", input=TEXTS, dimensions=8)), cut, atol=1e-5
    )
    bits = embeddings(post(client, "/v1/embeddings", input=TEXTS, dimensions=8, precision="binary"))
    assert bits.tolist() == np.packbits(cut > 0, axis=1).tolist()
    answer = post(client, "/v1/embeddings", input=TEXTS, precision="int8", encoding_format="base64")
    for item, vector in zip(answer.json()["data"], whole, strict=True):
        numbers = np.frombuffer(base64.b64decode(item["embedding"]), dtype=np.int8)
        np.testing.assert_allclose(numbers * item["scale"], vector, atol=item["scale"])
    half = post(client, "/embed", inputs=TEXTS, precision="float16").json()
    np.testing.assert_allclose(half, whole, atol=1e-3)


def test_token_ids_are_this_models_or_refused(service, client):
    text = "how deep is the river?"
    ids = service.model.tokenizer(text)["input_ids"]
    for given in (ids, [ids], [ids[1:-1]]):  # with BOS and EOS, and without
        answer = post(client, "/v1/embeddings", input=given, tokenizer=service.name)
        np.testing.assert_allclose(embeddings(answer), expected(service, [text]), atol=1e-5)
    for given, asked in (
        ([ids], {}),
        ([ids], {"tokenizer": "cl100k"}),
        ([[5, 5, 10**6]], {"tokenizer": service.name}),
        ([list(b"river")], {"tokenizer": service.name}),
    ):
        answer = post(client, "/v1/embeddings", input=given, **asked)
        assert answer.status_code == 400
        assert service.name in answer.json()["error"]["message"]


def test_a_long_text_is_an_error_unless_it_may_be_cut(service, client):
    for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs")):
        refused = client.post(path, json={field: ["short", LONG]})
        assert refused.status_code == 400
        assert "text 1 is" in refused.text
        assert "tokens too long" in refused.text
        assert "truncate" in refused.text
        cut = client.post(path, json={field: ["short", LONG], "truncate": True})
        assert cut.headers["embedforge-truncated"] == "1"
    answer = post(client, "/v1/embeddings", input=["short", LONG], truncate=True)
    assert answer.json()["truncated"] == [1]
    np.testing.assert_allclose(embeddings(answer), expected(service, ["short", LONG]), atol=1e-5)


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/embeddings", {"input": "a", "model": "ada"}, 404, "'ada', and this server has 'latent'"),
        ("/v1/embeddings", {"input": "a", "dimensons": 8}, 400, "Did you mean 'dimensions'"),
        ("/v1/embeddings", {"input": []}, 400, "input must be a text, or a list"),
        ("/v1/embeddings", {"input": "a", "dimensions": 33}, 400, "dimensions is 33"),
        ("/v1/embeddings", {"input": "a", "dimensions": 9, "precision": "binary"}, 400, "multiple of 8"),
        ("/v1/embeddings", {"input": "\ud800"}, 400, "not valid Unicode"),
        ("/v1/embeddings", {"input": ["a"] * 17}, 413, "at most 16"),
        ("/v1/embeddings", {"input": "a" * 60_000}, 413, "50000 bytes"),
        ("/v1/search", {"query": "a"}, 404, "--index"),
        ("/embed", {"inputs": "a", "truncate": 0}, 400, "truncate"),
        ("/embed", {"inputs": "a", "dimensions": "8"}, 400, "must be a number"),
        ("/embed", {"inputs": "a", "normalize": False}, 400, "unit length"),
        ("/embed", {"inputs": "a", "truncation_direction": "left"}, 400, "truncation_direction"),
        ("/embed", {"inputs": "a", "prompt_name": "query", "input_type": "document"}, 400, "differ"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_a_refusal_says_what_is_wrong(client, path, body, status, message):
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status
    assert message in (error["message"] if path.startswith("/v1/") else error)


def test_a_body_that_is_not_json(client):
    kind = {"content-type": "application/json"}
    assert "not valid JSON" in client.post("/embed", content=b"{", headers=kind).json()["error"]
    assert "Content-Type" in client.post("/embed", content=b"{}").json()["error"]
    chunks = (b'{"inputs": "' + b"a" * 30_000 for _ in range(3))  # of no announced length
    assert client.post("/embed", content=chunks, headers=kind).status_code == 413


def test_a_client_may_insist_on_a_contract(service, client):
    for wanted, status in ((service.fingerprint, 200), ("0" * 64, 412)):
        answer = client.post("/embed", json={"inputs": "a"}, headers={"embedforge-contract": wanted})
        assert answer.status_code == status


def test_the_key_opens_everything_and_is_said_nowhere(service, caplog, capfd):
    client = TestClient(create_app(service, api_key="s3cret"))  # outside a block: the service stays open
    for path in ("/", "/health"):
        assert client.get(path).status_code == 200
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
        for path in ("/info", "/metrics", "/openapi.json", "/v1/models"):
            answer = client.get(path, headers=given)
            assert answer.status_code == 401
            assert "s3cret" not in answer.text
    assert client.get("/info", headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert "s3cret" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("texts", [1, 8])
def test_a_full_queue_answers_429_to_one_text_and_to_many(service, client, texts):
    gate, real = threading.Event(), service.queue

    def wait_and_embed(rows):
        assert gate.wait(10)
        return service._embed(rows)

    service.queue = BatchQueue(wait_and_embed, 64, 100)
    try:
        accepted = service.queue.submit(service.model.renderer.render([LONG, "a b c d e f g h i"]))
        for path, field in (("/embed", "inputs"), ("/v1/embeddings", "input")):
            refused = client.post(path, json={field: [LONG[: 120 // texts]] * texts})
            assert refused.status_code == 429, refused.text
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        gate.set()
        assert accepted.result(10).shape == (2, 32)
    finally:
        gate.set()
        service.queue = real


def test_where_the_queue_is_full_a_request_is_refused_unread(service, client):
    gate, real = threading.Event(), service.queue
    rows = service.model.renderer.render([LONG])

    def wait_and_embed(rows):
        assert gate.wait(10)
        return service._embed(rows)

    service.queue = BatchQueue(wait_and_embed, 64, len(rows[0].input_ids))
    try:
        accepted = service.queue.submit(rows)
        for path in ("/embed", "/v1/embeddings"):
            assert client.post(path, content=b"no JSON").status_code == 429
        assert client.get("/health").status_code == 200
        gate.set()
        assert accepted.result(10).shape == (1, 32)
        assert client.post("/embed", content=b"no JSON").status_code == 400
    finally:
        gate.set()
        service.queue = real


# --- about the server ------------------------------------------------------------------------------


def test_the_server_says_what_it_is_and_counts(service, client):
    info = client.get("/info").json()
    assert info["model_id"] == "latent"
    assert info["model_type"] == {"embedding": {"pooling": "latent"}}
    assert info["fingerprint"] == service.contract.fingerprint
    assert info["default_instruction"] == service.contract.default_instruction
    assert client.get("/v1/models").json()["data"][0]["id"] == "latent"
    before = client.get("/metrics").text
    post(client, "/embed", inputs=["a", "b"])
    after = client.get("/metrics").text
    count = 'embedforge_requests_total{path="/embed",status="200"} '
    assert _value(after, count) == _value(before, count) + 1
    assert _value(after, "embedforge_texts_total ") == _value(before, "embedforge_texts_total ") + 2
    assert _value(after, "embedforge_queue_tokens ") == 0


def _value(metrics: str, name: str) -> float:
    return sum(float(line[len(name) :]) for line in metrics.splitlines() if line.startswith(name))


def test_the_page_runs_its_own_script_only(client):
    page = client.get("/")
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_openais_client_and_a_graceful_end(service, monkeypatch):
    """What was accepted is answered after the server was told to stop."""
    entered = threading.Event()

    def slow(rows):
        entered.set()
        threading.Event().wait(0.3)
        return service._embed(rows)

    wanted = expected(service, TEXTS, instruction=None)
    monkeypatch.setattr(service, "queue", BatchQueue(slow, 64, 4096))
    with served(create_app(service, api_key="k")) as (url, server), ThreadPoolExecutor() as pool:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        assert client.models.list().data[0].id == "latent"
        with pytest.raises(openai.NotFoundError, match="this server has 'latent'"):
            client.embeddings.create(model="ada", input="a")
        answer = pool.submit(
            client.embeddings.create, model="latent", input=TEXTS, extra_body={"input_type": "query"}
        )
        assert entered.wait(10)
        server.should_exit = True
        got = [item.embedding for item in answer.result(20).data]
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_mistakes_show_before_a_model_is_loaded(run, saved_latent: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            ((tmp_path / "none",), "none"),
            ((saved_latent, "--index", tmp_path / "none"), "there is no such folder"),
            ((saved_latent, "--queue-tokens", "10"), "less than one batch"),
            ((saved_latent, "--port", port), "another program has it"),
            ((saved_latent, "--host", "192.0.2.1"), "--host 192.0.2.1"),
            ((saved_latent, "--api-key", "schlüssel"), "ASCII"),
        ):
            code, _, err = run("serve", *arguments)
            assert code == 1, err
            assert message in err
