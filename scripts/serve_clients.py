"""Try a running server with the clients that people have, and with schemathesis.

    pip install openai langchain-openai llama-index-embeddings-openai huggingface_hub schemathesis
    embedforge serve MODEL --index INDEX --port 8080 &
    python scripts/serve_clients.py http://127.0.0.1:8080 [--schemathesis]

Each client embeds the same texts; all must get what the server gives to a bare request. In an environment of
its own: nothing of embedforge is needed here.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXTS = ["how deep is the river?", "bread and music", "Übung macht den Meister 🙂"]
Vectors = list[list[float]]


def bare(url: str, **body: Any) -> Vectors:
    """Ask without any client."""
    request = urllib.request.Request(
        f"{url}/v1/embeddings",
        json.dumps({"input": TEXTS, **body}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return [item["embedding"] for item in json.load(answer)["data"]]


def openai_client(url: str, model: str) -> dict[str, Vectors]:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def ask(**options: Any) -> Vectors:
        answer = client.embeddings.create(model=model, input=TEXTS, **options)
        return [item.embedding for item in answer.data]

    assert client.models.list().data[0].id == model
    return {
        "document": ask(),
        "query": ask(extra_body={"input_type": "query"}),
        "dimensions": ask(dimensions=8),
    }


def langchain(url: str, model: str) -> dict[str, Vectors]:
    from langchain_openai import OpenAIEmbeddings

    def embeddings(**options: Any) -> Any:
        return OpenAIEmbeddings(
            base_url=f"{url}/v1", api_key="none", model=model, check_embedding_ctx_length=False, **options
        )

    queries = embeddings(model_kwargs={"extra_body": {"input_type": "query"}})
    return {
        "document": embeddings().embed_documents(TEXTS),
        "query": [queries.embed_query(text) for text in TEXTS],
        "dimensions": embeddings(dimensions=8).embed_documents(TEXTS),
    }


def llama_index(url: str, model: str) -> dict[str, Vectors]:
    from llama_index.embeddings.openai import OpenAIEmbedding

    def embedding(**options: Any) -> Any:
        return OpenAIEmbedding(api_base=f"{url}/v1", api_key="none", model_name=model, **options)

    queries = embedding(additional_kwargs={"extra_body": {"input_type": "query"}})
    return {
        "document": embedding().get_text_embedding_batch(TEXTS),
        "query": [queries.get_query_embedding(text) for text in TEXTS],
        "dimensions": embedding(dimensions=8).get_text_embedding_batch(TEXTS),
    }


def hugging_face(url: str, _: str) -> dict[str, Vectors]:
    from huggingface_hub import InferenceClient

    client = InferenceClient(f"{url}/embed")

    def ask(**options: Any) -> Vectors:
        return client.feature_extraction(TEXTS, **options).tolist()

    return {"document": ask(normalize=True, truncate=True), "query": ask(prompt_name="query")}


CLIENTS: dict[str, Callable[[str, str], dict[str, Vectors]]] = {
    "openai": openai_client,
    "LangChain": langchain,
    "LlamaIndex": llama_index,
    "InferenceClient": hugging_face,
}


def furthest(left: Vectors, right: Vectors) -> float:
    """Return the largest difference of a number."""
    pairs = zip(left, right, strict=True)
    return max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))


def langchain_default_is_refused(url: str, model: str) -> None:
    """By default LangChain sends ids of OpenAI's tokenizer: that must be an error, never other vectors."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    try:
        client.embeddings.create(model=model, input=[[791, 8415, 7731]])
    except openai.BadRequestError as error:
        print(f"token ids of another tokenizer: refused ({error.message[:90]}...)")
        return
    raise SystemExit("token ids of another tokenizer were embedded")


def schemathesis(url: str) -> None:
    """Send what the OpenAPI page allows, and what it does not.

    What a schema cannot say (a text's tokens, whose token ids) may be refused, so that check is left out.
    """
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
    without = ("--exclude-checks", "positive_data_acceptance")
    subprocess.run([*command, "--url", url, "--max-examples", "40", "--seed", "1", *without], check=True)


def main() -> None:
    """Compare every client with a bare request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--schemathesis", action="store_true")
    options = parser.parse_args()
    with urllib.request.urlopen(f"{options.url}/info") as answer:
        model = json.load(answer)["model_id"]
    wanted = {
        "document": bare(options.url),
        "query": bare(options.url, input_type="query"),
        "dimensions": bare(options.url, dimensions=8),
    }
    if furthest(wanted["document"], wanted["query"]) <= 1e-3:
        raise SystemExit(f"{model} embeds queries and documents alike: serve one that has an instruction")
    for name, client in CLIENTS.items():
        found = {
            kind: furthest(vectors, wanted[kind]) for kind, vectors in client(options.url, model).items()
        }
        print(f"{name:16}", *(f"{kind} differs by {far:.0e}" for kind, far in found.items()))
        assert all(math.isfinite(far) and far < 1e-5 for far in found.values()), name
    langchain_default_is_refused(options.url, model)
    if options.schemathesis:
        schemathesis(options.url)


if __name__ == "__main__":
    main()
