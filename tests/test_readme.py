"""The README's tree names every file of the project, with a clause, and no file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "scripts", "docs")
WHOLE = {"src/embedforge/base/", "tests/"}
"""Folders that the tree names as one."""


def tree() -> dict[str, str]:
    """Return path -> clause from the README's indented tree; folders end with a slash."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## What is where\n.*?```\n(.*?)```", text, re.DOTALL)
    assert block is not None
    entries: dict[str, str] = {}
    parents: list[str] = []
    for line in block.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, clause = line.strip().partition(" ")
        del parents[depth:]
        path = "".join(parents) + name
        if name.endswith("/"):
            parents.append(name)
        entries[path] = clause.strip()
    return entries


def files() -> set[str]:
    """Return the paths that the tree should name."""
    found = {
        path.name for path in ROOT.iterdir() if path.suffix in {".toml", ".txt"} or path.name == "Makefile"
    }
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT).as_posix()
            skipped = "__pycache__" in relative or path.name == "__init__.py"
            if path.is_file() and not skipped and not relative.startswith(tuple(WHOLE)):
                found.add(relative)
    return found


def test_the_tree_names_every_file_and_no_other() -> None:
    named = {path for path in tree() if not path.endswith("/")}
    assert named - files() == set(), "the tree names files that are not there"
    assert files() - named == set(), "files that the tree does not name"
    assert tree().keys() >= WHOLE


def test_every_entry_has_its_clause() -> None:
    assert [path for path, clause in tree().items() if not path.endswith("/") and len(clause) < 8] == []
