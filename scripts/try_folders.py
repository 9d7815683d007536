"""What somebody finds who points embedforge at a folder: the table of docs/search.md.

    python scripts/try_folders.py FOLDER... --questions scripts/try_folders.jsonl [--model MODEL] [--show]

Each folder is indexed by `embedforge index` in a process of its own, and asked the questions that name it.
A line of the questions is {"folder": NAME, "query": ..., "files": [...]}: NAME is the folder's own, the files
are those, relative to it, that would answer. A line may also have "text": what the passage itself must hold,
for folders of few and long files. Counted is in how many questions such a hit is the first, among three,
among ten. --show prints the rank of every question.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import embedforge
from embedforge.data.readers import read_records
from embedforge.search.document import MODES, Hit

WITHIN = (1, 3, 10)


@dataclass(frozen=True)
class Question:
    """What is asked, and what answers it."""

    folder: str
    query: str
    files: tuple[str, ...]
    text: str = ""

    def rank(self, hits: Sequence[Hit]) -> int | None:
        """Return the place of the first hit that answers, from 1."""
        for place, hit in enumerate(hits, start=1):
            if hit.document.metadata["file"] in self.files and self.text in hit.document.text:
                return place
        return None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--model", default="embedforge:forge-tiny")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    questions = [
        Question(
            folder=values["folder"],
            query=values["query"],
            files=tuple(values["files"]),
            text=values.get("text", ""),
        )
        for values in (record.values for record in read_records(args.questions))
    ]
    print(
        "| folder | passages | CPU, s | questions | "
        + " | ".join(MODES)
        + " |\n|---|---|---|---|"
        + "---|" * len(MODES)
    )
    with tempfile.TemporaryDirectory() as kept:
        for folder in args.folders:
            index = Path(kept) / folder.name
            seconds = indexed(folder, index, args.model)
            asked = [question for question in questions if question.folder == folder.name]
            row = found(index, asked, args.show)
            documents = len(embedforge.Index.open(index))
            print(f"| {folder.name} | {documents:,} | {seconds:.0f} | {len(asked)} | {' | '.join(row)} |")


def indexed(folder: Path, index: Path, model: str) -> float:
    """Index a folder as a user does; return the processor time of the whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        sys.executable,
        "-m",
        "embedforge",
        "index",
        str(folder),
        "--out",
        str(index),
        "--model",
        model,
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def found(index: Path, questions: Sequence[Question], show: bool) -> list[str]:
    """Ask in every mode; return "first / in three / in ten" of each."""
    with embedforge.Index.open(index) as opened:
        ranks = {
            mode: [
                question.rank(opened.search(question.query, max(WITHIN), mode=mode)) for question in questions
            ]
            for mode in MODES
        }
    if show:
        for place, question in enumerate(questions):
            listed = ", ".join(f"{mode} {ranks[mode][place] or '-'}" for mode in MODES)
            print(f"{question.query}: {listed}", file=sys.stderr)
    return [
        " / ".join(str(sum(rank is not None and rank <= most for rank in ranks[mode])) for most in WITHIN)
        for mode in MODES
    ]


if __name__ == "__main__":
    main()
