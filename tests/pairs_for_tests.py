"""A few pairs of a question and its answer, as files that docstrings and examples/ read."""

from __future__ import annotations

import json
from pathlib import Path

PAIRS = {
    "how do I undo a commit?": "git reset moves the branch back to an earlier commit",
    "put changes aside": "git stash keeps the changes of the working tree for later",
    "who changed this line?": "git blame names the commit that last touched each line",
    "find the commit that broke the build": "git bisect halves the history until one commit is left",
    "copy one commit to another branch": "git cherry-pick applies the change of a commit here",
    "show what is not committed yet": "git diff prints the lines that differ from the index",
    "download a repository": "git clone copies a repository with its whole history",
    "give a version a name": "git tag marks a commit with a name that does not move",
}
RECIPE = """\
name: pairs
contract: {max_tokens: 32}
stages:
  - name: retrieval
    steps: 100
    batch_queries: 4
    negatives: 0
    mix:
      sources:
        - {path: pairs.jsonl, instruction: "Given a question, retrieve the command that answers it"}
training: {precision: float32}
"""


def write_pairs_folder(folder: Path) -> None:
    """Write pairs.jsonl, a recipe.yaml that trains on them, and datasets/, the same to be searched."""
    lines = [json.dumps({"query": query, "positives": [text]}) for query, text in PAIRS.items()]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    dataset = folder / "datasets" / "retrieval" / "pairs"
    (dataset / "qrels").mkdir(parents=True)
    for name, texts in (("queries", PAIRS), ("corpus", PAIRS.values())):
        rows = [json.dumps({"_id": f"{row}", "text": text}) for row, text in enumerate(texts)]
        (dataset / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    judged = [f"{row}\t{row}\t1" for row in range(len(PAIRS))]
    (dataset / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
