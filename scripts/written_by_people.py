"""Serve questions that people wrote as if a language model did, to try `embedforge synthesize` without one.

    python scripts/written_by_people.py --data FOLDER/retrieval/squad --documents my-documents
    embedforge synthesize --endpoint http://127.0.0.1:8000/v1 --model people --corpus my-documents

FOLDER/retrieval/squad is SQuAD as a BEIR folder (docs/data.md). --documents writes its paragraphs to files:
a Markdown file for each article, a text file for each paragraph whose article is not known. The server speaks
as much of OpenAI's protocol as is asked of it, on the loopback alone. To a prompt that holds some of the
paragraphs it answers with a question about one of them, drawn by the request's seed; it knows no other task.
So what is made of the answers shows what good questions are worth, and nothing about a model that writes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from embedforge.data.beir import read_qrels, read_queries
from embedforge.data.readers import read_records
from embedforge.data.task_folder import split_file

START = 80
"""Characters of a paragraph by which it is known; no two begin alike."""


def main() -> None:
    """Write the documents where asked to, then serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="SQuAD as a BEIR folder")
    parser.add_argument("--documents", type=Path, help="folder to write the paragraphs to")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    paragraphs = {str(row["_id"]): row for row in read_paragraphs(args.data)}
    if args.documents is not None:
        write_documents(args.documents, list(paragraphs.values()))
    questions = questions_of(args.data)
    by_start = {paragraphs[name]["text"][:START]: own for name, own in questions.items()}
    with ThreadingHTTPServer(("127.0.0.1", args.port), handler(by_start)) as server:
        print(f"{len(by_start):,} paragraphs at http://127.0.0.1:{args.port}/v1; Ctrl-C ends it", flush=True)
        server.serve_forever()


def read_paragraphs(data: Path) -> list[Mapping[str, Any]]:
    """Return the corpus: `_id`, `title`, `text`."""
    return [record.values for record in read_records(split_file(data, "corpus"))]


def questions_of(data: Path) -> dict[str, list[str]]:
    """Return paragraph id -> the questions that it answers, of all splits."""
    texts = dict(read_queries(data))
    questions: defaultdict[str, list[str]] = defaultdict(list)
    for split in ("train", "dev", "test"):
        for judgement in read_qrels(data, split):
            questions[judgement.document_id].append(texts[judgement.query_id])
    return questions


def write_documents(folder: Path, paragraphs: Sequence[Mapping[str, Any]]) -> None:
    """Write articles as Markdown, and paragraphs without a title as text files; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    articles: defaultdict[str, list[str]] = defaultdict(list)
    for row in paragraphs:
        if row["title"]:
            articles[row["title"]].append(row["text"])
        else:
            (folder / f"{row['_id']}.txt").write_text(row["text"] + "\n", encoding="utf-8")
    for title, texts in articles.items():
        name = "".join(letter if letter.isalnum() else "-" for letter in title)
        (folder / f"{name}.md").write_text("\n\n".join([f"# {title}", *texts]) + "\n", encoding="utf-8")


def handler(by_start: Mapping[str, Sequence[str]]) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            payload = json.dumps(completion(body, by_start)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def completion(body: Mapping[str, Any], by_start: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a chat completion; words stand for tokens in its usage."""
    prompt = body["messages"][-1]["content"]
    found = [question for start, own in by_start.items() if start in prompt for question in own]
    text = json.dumps({"query": random.Random(body.get("seed")).choice(found)}) if found else "I do not know."
    read, written = len(prompt.split()), len(text.split())
    return {
        "id": "answer",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


if __name__ == "__main__":
    main()
