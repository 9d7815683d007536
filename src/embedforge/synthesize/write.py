"""The files of a run: Examples as JSONL, all together and by group, sources for a recipe's mix, passages."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import yaml

from embedforge.data.fields import record_of
from embedforge.documents.document import Chunk
from embedforge.files import replace_file, replace_folder, write_jsonl, write_text
from embedforge.synthesize.groups import Group, groups
from embedforge.synthesize.harvest import ExampleOutcome, Tally

EXAMPLES = "examples.jsonl"
GROUPS = "groups"
MIX = "mix.yaml"
PASSAGES = "passages.jsonl"
_MARKER = "README.txt"
_NOTE = "Examples by group, written anew by every `embedforge synthesize` run with this folder as --out.\n"


def write_examples(out: Path, outcomes: Iterable[ExampleOutcome]) -> Tally:
    """Write what was kept, one Example a line, and count everything.

    Files appear when all is written; until then those of an earlier run stay. Where nothing is kept there is
    no examples.jsonl and no mix.yaml, nor one of an earlier run.
    """
    tally = Tally()
    with replace_folder(out / GROUPS, _MARKER) as folder, contextlib.ExitStack() as stack:
        (folder / _MARKER).write_text(_NOTE, encoding="utf-8")
        partial = stack.enter_context(replace_file(out / EXAMPLES))
        all_together = stack.enter_context(partial.open("w", encoding="utf-8"))
        files: dict[str, IO[str]] = {}
        for outcome in outcomes:
            tally.add(outcome)
            if outcome.reason or outcome.example is None:
                continue
            name = outcome.group.name
            if name not in files:
                files[name] = stack.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8"))
            line = json.dumps(record_of(outcome.example), ensure_ascii=False) + "\n"
            files[name].write(line)
            all_together.write(line)
    if tally.kept:
        write_text(out / MIX, mix_of([groups()[name] for name in groups() if tally.kept[name]]))
    else:
        (out / EXAMPLES).unlink()
        (out / MIX).unlink(missing_ok=True)
    return tally


def write_passages(out: Path, passages: Iterable[Chunk]) -> None:
    """Write the passages that queries are written for, as `embedforge mine --corpus` reads them."""
    records = ({"_id": passage.id, "text": passage.text} for passage in passages)
    write_jsonl(out / PASSAGES, records)


def mix_of(kept: Iterable[Group]) -> str:
    """Return the YAML of a stage's `mix` with a source for each group."""
    sources = [
        {
            "path": f"{GROUPS}/{group.name}.jsonl",
            "name": f"synthetic-{group.name}",
            "in_batch_negatives": group.in_batch_negatives,
            "symmetric": group.symmetric,
        }
        for group in kept
    ]
    head = (
        "# Sources for a stage's mix. Paths start at this folder: `embedforge train RECIPE --data FOLDER`.\n"
    )
    return head + yaml.safe_dump({"sources": sources}, sort_keys=False)
