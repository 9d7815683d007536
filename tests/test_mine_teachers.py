"""Teachers that are models: here, foreign, and behind HTTP, on a real server that misbehaves on request."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from embedforge import load
from embedforge.errors import EmbedforgeError
from embedforge.mine import endpoint
from embedforge.mine.embedder import Prompts
from embedforge.mine.endpoint import EndpointTeacher
from embedforge.mine.teachers import open_model

TEXTS = ["the river flows", "a baker and a loaf of bread", "law"]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- a model with a contract -------------------------------------------------------------------------


def test_a_contract_puts_each_querys_own_instruction(model_folder: Path):
    teacher = open_model(str(model_folder), prompts=Prompts(), device="cpu")
    st = load(str(model_folder), device="cpu")
    found = teacher.queries(TEXTS, ["Find it", "", "Find it"])
    prompt = "Instruct: Find it\nQuery: "
    expected = [st.encode(TEXTS[0], prompt=prompt), st.encode(TEXTS[1]), st.encode(TEXTS[2], prompt=prompt)]
    np.testing.assert_allclose(found, unit(np.stack(expected)), atol=0.02)
    np.testing.assert_allclose(teacher.documents(TEXTS), unit(st.encode_document(TEXTS)), atol=0.02)


def test_documents_of_symmetric_data_carry_the_instruction(model_folder: Path):
    teacher = open_model(str(model_folder), prompts=Prompts(), document_instruction="Find it", device="cpu")
    np.testing.assert_allclose(teacher.documents(TEXTS), teacher.queries(TEXTS, ["Find it"] * 3), atol=1e-5)


def test_identities_tell_settings_apart(model_folder: Path):
    def identity(**changes) -> dict:
        return open_model(str(model_folder), prompts=Prompts(), device="cpu", **changes).identity

    assert identity() == identity()
    assert (
        len({json.dumps(identity(**c)) for c in ({}, {"max_tokens": 8}, {"document_instruction": "x"})}) == 3
    )


def test_weights_tell_models_apart_whose_goldens_hold_no_vectors(model_folder: Path, tmp_path: Path):
    """So sentence-transformers' trainer leaves them: the same path may hold another model tomorrow."""
    st, identities = load(str(model_folder), device="cpu"), []
    for _ in range(2):
        st.save(str(tmp_path / "model"))
        identities.append(open_model(str(tmp_path / "model"), prompts=Prompts(), device="cpu").identity)
        for parameter in st.parameters():
            parameter.data *= 1.5
    assert identities[0] != identities[1]


def test_a_prompt_for_a_model_with_a_contract_is_refused(model_folder: Path):
    with pytest.raises(EmbedforgeError, match="has a contract"):
        open_model(str(model_folder), prompts=Prompts(query="q: "), device="cpu")


# --- a model of sentence-transformers ----------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["[UNK]", "query", "passage", *{word for text in TEXTS for word in text.split()}]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.random.default_rng(0).standard_normal((len(words), 8)).astype(np.float32)
    folder = tmp_path_factory.mktemp("foreign") / "model"
    SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)],
        prompts={"query": "query ", "document": "passage "},
        device="cpu",
    ).save(str(folder))
    return folder


def test_a_foreign_model_keeps_its_own_prompts(foreign: Path, caplog: pytest.LogCaptureFixture):
    teacher = open_model(str(foreign), prompts=Prompts(), device="cpu")
    st = SentenceTransformer(str(foreign), device="cpu")
    np.testing.assert_allclose(teacher.queries(TEXTS, [""] * 3), unit(st.encode_query(TEXTS)), atol=1e-6)
    np.testing.assert_allclose(teacher.documents(TEXTS), unit(st.encode_document(TEXTS)), atol=1e-6)
    assert not caplog.records
    teacher.queries(TEXTS, ["Find it"] * 3)
    assert "the source's instruction is not used" in caplog.text


def test_a_prompt_replaces_a_foreign_models_own(foreign: Path):
    teacher = open_model(str(foreign), prompts=Prompts("passage {instruction} ", ""), device="cpu")
    st = SentenceTransformer(str(foreign), device="cpu")
    found = teacher.queries(["law", "river"], ["the", "a"])
    np.testing.assert_allclose(
        found, unit(st.encode(["passage the law", "passage a river"], prompt="")), atol=1e-6
    )
    np.testing.assert_allclose(teacher.documents(["law"]), unit(st.encode(["law"], prompt="")), atol=1e-6)


@pytest.mark.parametrize("prompts", [Prompts(query="{task}: "), Prompts(document="{instruction}: ")])
def test_a_prompt_with_other_braces_is_refused(foreign: Path, prompts: Prompts):
    with pytest.raises(EmbedforgeError, match="no other braces"):
        open_model(str(foreign), prompts=prompts, device="cpu")


# --- an endpoint -------------------------------------------------------------------------------------

Answer = Callable[[list[str]], tuple[int, dict]]


def vector_of(text: str) -> list[float]:
    return [float(len(text)), float(text.count("e")), 1.0]


def good(texts: list[str]) -> tuple[int, dict]:
    items = [{"object": "embedding", "index": i, "embedding": vector_of(t)} for i, t in enumerate(texts)]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return 200, {"object": "list", "model": "m", "data": items[::-1], "usage": usage}


def changed(texts: list[str], change: Callable[[dict], dict]) -> tuple[int, dict]:
    status, content = good(texts)
    return status, content | {"data": [change(item) for item in content["data"]]}


class Server:
    """Answers /v1/embeddings; `answers` are given first, one a request, then good ones."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, list[str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.headers["Authorization"], body["input"]))
                assert body["model"] == "some-model"
                answer = outer.answers.pop(0) if outer.answers else good
                status, content = answer(body["input"])
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "10")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"http://127.0.0.1:{self.http.server_port}/v1#some-model"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("openai", reason="the endpoint needs the package openai")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("TEACHER_KEY", "secret")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def test_an_endpoint_gets_batches_and_the_key(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(endpoint, "TEXTS_PER_REQUEST", 3)
    teacher = EndpointTeacher(server.name, Prompts("q {instruction}: ", "d: "), key_variable="TEACHER_KEY")
    texts = [f"text {'e' * n}" for n in range(10)]
    expected = unit(np.array([vector_of("d: " + text) for text in texts]))
    np.testing.assert_allclose(teacher.documents(texts), expected, rtol=1e-5)
    assert sorted(len(sent) for _, sent in server.requests) == [1, 3, 3, 3]
    assert {key for key, _ in server.requests} == {"Bearer secret"}
    teacher.queries(["x"], ["find"])
    assert server.requests[-1][1] == ["q find: x"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_endpoint_is_asked_again(server: Server, status: int):
    server.answers = [lambda _: (status, {"error": {"message": "later"}})] * 2
    assert EndpointTeacher(server.name, Prompts()).documents(["a"]).shape == (1, 3)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _: (401, {"error": {"message": "no such key"}}), r"no such key.*\$OPENAI_API_KEY"),
        (lambda texts: good(texts[:1]), "not one of /v1/embeddings for 2 texts"),
        (lambda _: (200, {"text": "hello"}), "not one of /v1/embeddings|No embedding data"),
        (lambda texts: changed(texts, lambda item: item | {"index": 0}), "are numbered"),
        (lambda texts: changed(texts, lambda item: {"embedding": item["embedding"]}), "are numbered"),
        (lambda texts: changed(texts, lambda item: item | {"embedding": None}), "not one of"),
    ],
    ids=["refused", "too few", "something else", "one number for all", "no number", "no vector"],
)
def test_a_wrong_answer_is_an_error_that_says_so(server: Server, answer: Answer, message: str):
    server.answers = [answer]
    with pytest.raises(EmbedforgeError, match=message):
        EndpointTeacher(server.name, Prompts()).documents(["a", "b"])


def test_base64_is_understood_unasked(server: Server):
    def encode(item: dict) -> dict:
        numbers = np.array(item["embedding"], dtype="<f4")
        return item | {"embedding": base64.b64encode(numbers.tobytes()).decode()}

    server.answers = [lambda texts: changed(texts, encode)]
    expected = unit(np.array([vector_of("abc"), vector_of("e")]))
    found = EndpointTeacher(server.name, Prompts()).documents(["abc", "e"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_answers_of_different_width_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(endpoint, "TEXTS_PER_REQUEST", 1)
    server.answers = [lambda texts: changed(texts, lambda item: item | {"embedding": [1.0]})]
    with pytest.raises(EmbedforgeError, match="vectors of 1 and of 3 dimensions"):
        EndpointTeacher(server.name, Prompts()).documents(["a", "b", "c"])


def test_an_error_stops_at_once_what_is_not_sent_and_what_is_under_way(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C as well: the rest would be paid for in vain, and an answer may take minutes."""
    monkeypatch.setattr(endpoint, "TEXTS_PER_REQUEST", 1)
    stopped = threading.Event()

    def slow(texts: list[str]) -> tuple[int, dict]:
        assert stopped.wait(30), "the error waited for this answer"
        return good(texts)

    server.answers = [slow, lambda _: (401, {"error": {"message": "no"}}), *[slow] * 40]
    with pytest.raises(EmbedforgeError, match="AuthenticationError"):
        EndpointTeacher(server.name, Prompts()).documents([f"text {n}" for n in range(40)])
    stopped.set()
    assert len(server.requests) <= endpoint.REQUESTS_AT_ONCE + 1


def test_an_endpoint_without_a_model_is_refused():
    with pytest.raises(EmbedforgeError, match="add the model's name after '#'"):
        EndpointTeacher("http://127.0.0.1:9/v1", Prompts())
