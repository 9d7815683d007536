"""/v1/search over a real index: hits, both scores, filters, refusals, a newer generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from embedforge.encode import encode
from embedforge.errors import EmbedforgeError
from embedforge.search import Document, build_index
from embedforge.serve import searching
from embedforge.serve.app import create_app
from embedforge.serve.service import Service
from embedforge.text.contract import Contract

DOCUMENTS = [
    Document("a", "how deep is the river?", "a.txt:1", {"lang": "en"}),
    Document("b", "bread and music \udcff", "b.txt:1", {"lang": "en"}),
    Document("c", "wie tief ist der Fluss", "c.txt:1", {"lang": "de"}),
]


def write(
    folder: Path, service: Service, documents: list[Document], contract: Contract | None = None
) -> None:
    texts = [document.text.encode("utf-8", "replace").decode() for document in documents]
    vectors = encode(service.model, texts)
    build_index(folder, vectors, documents, model="other", contract=contract or service.contract)


@pytest.fixture(scope="module")
def service(saved_latent: Path) -> Service:
    return Service.load(saved_latent, device="cpu")


@pytest.fixture
def client(service: Service, tmp_path: Path) -> TestClient:
    write(tmp_path / "index", service, DOCUMENTS)
    return TestClient(create_app(service, index=str(tmp_path / "index")))


def search(client: TestClient, **body: Any) -> Any:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_hits_have_the_scores_of_both_sides(service, client):
    found = search(client, query="river", k=2)
    assert found["mode"] == "fused"
    assert found["instruction"] == service.contract.default_instruction
    first = found["hits"][0]
    assert first["document"]["text"] == DOCUMENTS[0].text
    assert first["document"]["metadata"]["lang"] == "en"
    assert -1 <= first["dense"] <= 1
    assert first["lexical"] > 0
    text = first["snippet"]["text"]
    assert [text[start:end] for start, end in first["snippet"]["matches"]] == ["river"]
    by_words = search(client, query="bread", mode="lexical")
    assert [hit["document"]["text"] for hit in by_words["hits"]] == [DOCUMENTS[1].text]
    assert by_words["hits"][0]["dense"] is None


def test_one_text_is_one_hit_and_a_file_does_not_fill_all_places(service, tmp_path):
    lines = [Document(f"d{n}", f"cold line {n // 2}", f"d.txt:{n}", {"file": "d.txt"}) for n in range(8)]
    write(tmp_path / "index", service, [*DOCUMENTS, *lines])
    client = TestClient(create_app(service, index=str(tmp_path / "index")))
    hits = search(client, query="cold line", mode="lexical", k=2)["hits"]
    assert len(hits) == 2
    assert [len(hit["also"]) for hit in hits] == [1, 1]
    hits = search(client, query="cold line 1", k=5)["hits"]
    assert len([hit for hit in hits if hit["document"]["metadata"].get("file")]) == 2
    assert len({place["id"] for hit in hits for place in hit["more"]}) <= 2
    whole = search(client, query="cold line 1", mode="lexical", k=5, per_file=0)["hits"]
    assert len(whole) == 4
    refused = client.post("/v1/search", json={"query": "cold", "per_file": -1})
    assert refused.status_code == 400
    assert "per_file" in refused.text


def test_filters_and_what_is_refused(client):
    assert [hit["document"]["id"] for hit in search(client, query="x", filters=["lang=de"])["hits"]] == ["c"]
    for body, message in (
        ({"query": "x", "filters": ["nope=1"]}, "nope"),
        ({"query": " "}, "empty"),
        ({"query": "x", "k": 5000}, "1000"),
        ({"query": "long " * 500}, "truncate"),
    ):
        answer = client.post("/v1/search", json=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
    assert search(client, query="long " * 500, truncate=True)["truncated"] is True


def test_a_rebuilt_index_is_found_without_a_restart(service, client, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "_REFRESH_SECONDS", 0.0)
    before = search(client, query="river")
    write(tmp_path / "index", service, DOCUMENTS[:1])
    after = search(client, query="river")
    assert (before["documents"], after["documents"]) == (3, 1)
    assert len(after["hits"]) == 1
    assert client.get("/info").json()["index"]["documents"] == 1


def test_an_index_of_another_model_is_refused_at_the_start(service, tmp_path):
    write(tmp_path / "index", service, DOCUMENTS, Contract(max_tokens=77))
    with pytest.raises(EmbedforgeError, match="'other'"):
        create_app(service, index=str(tmp_path / "index"))
