"""The trees are true: the README's names folders, docs/files.md every file, each with a clause."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "scripts", "docs", "benchmarks")
WHOLE = {"src/embedforge/base/", "src/embedforge/synthesize/prompts/", "tests/"}
"""Folders that the tree of files names as one."""


def tree(page: str = "docs/files.md") -> dict[str, str]:
    """Return path -> clause from a page's indented tree; folders end with a slash."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"# What is where\n.*?```\n(.*?)```", text, re.DOTALL)
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


def test_the_readme_names_every_folder() -> None:
    named = tree("README.md")
    assert [path for path in named if not (ROOT / path).exists()] == [], "not there"
    packages = (path.parent.relative_to(ROOT) for path in (ROOT / "src" / "embedforge").glob("*/__init__.py"))
    assert [path for path in packages if f"{path.as_posix()}/" not in named] == [], "not named"


def test_every_entry_has_its_clause() -> None:
    for page in ("docs/files.md", "README.md"):
        entries = tree(page).items()
        assert [path for path, clause in entries if not path.endswith("/") and len(clause) < 8] == []
