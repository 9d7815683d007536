"""The README's tree is true: it names every package and no folder that is not there, each with a clause."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tree() -> dict[str, str]:
    """Return path -> clause from the README's indented tree; folders end with a slash."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
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


def test_the_readme_names_every_folder() -> None:
    named = tree()
    assert [path for path in named if not (ROOT / path).exists()] == [], "not there"
    packages = (path.parent.relative_to(ROOT) for path in (ROOT / "src" / "embedforge").glob("*/__init__.py"))
    assert [path for path in packages if f"{path.as_posix()}/" not in named] == [], "not named"


def test_every_entry_has_its_clause() -> None:
    assert [path for path, clause in tree().items() if not path.endswith("/") and len(clause) < 8] == []
