"""Run the Python of docs/use.md, and compare its vectors with embedforge's own.

    python scripts/use_snippets.py [MODEL]

Every snippet is run in a fresh namespace with `folder` and `instruction`; one whose libraries are not
installed is skipped, by name. `query` and `documents`, where a snippet makes them, have to be what
`embedforge.load` makes of the same texts. Without MODEL, an untrained mean-pooled one of the bundled decoder
is taken: as good for comparing. What is glued to a text in place of a prompt is measured too, for the
page speaks of it.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import embedforge

PAGE = Path(__file__).parent.parent / "docs" / "use.md"
QUERY = "how do I undo a commit?"
DOCUMENTS = ["git reset moves the branch", "git stash puts changes aside"]
SAME = 0.9999


def snippets(page: Path) -> list[tuple[str, str]]:
    """Return heading and code of what is to be run."""
    found, heading = [], ""
    parts = re.finditer(
        r"^##+ ([^\n]+)$|^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    for part in parts:
        if part[1]:
            heading = part[1]
        else:
            found.append((heading, part[2]))
    return found


def missing(code: str) -> list[str]:
    """Return the packages that a snippet imports and that are not installed."""
    names = re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)
    return sorted({name for name in names if importlib.util.find_spec(name) is None})


def cosines(one: Any, other: Any) -> float:
    """Return the lowest cosine of rows of two arrays."""
    a, b = (np.atleast_2d(np.asarray(value, dtype=np.float64)) for value in (one, other))
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def made(folder: Path) -> str:
    contract = embedforge.Contract(max_tokens=128)
    embedforge.save(embedforge.build(base="embedforge:base", contract=contract), folder)
    return str(folder)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = sys.argv[1] if len(sys.argv) > 1 else made(Path(scratch) / "model")
        st = embedforge.load(folder, device="cpu")
        instruction = str(st.prompts["query"])
        ours = {"query": st.encode_query(QUERY), "documents": st.encode_document(DOCUMENTS)}
        glued = cosines(st.encode([instruction + QUERY]), ours["query"])
        print(f"{'a prefix glued to the query':34} cosine {glued:.4f} to the prompt")
        wrong = 0
        for heading, code in snippets(PAGE):
            libraries = re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)
            title = f"{heading.split(':')[0]}: {next((n for n in libraries if n != 'embedforge'), '')}"
            if absent := missing(code):
                print(f"{title:34} skipped, not installed: {', '.join(absent)}")
                continue
            names: dict[str, Any] = {"folder": folder, "instruction": instruction}
            try:
                exec(compile(code, f"{PAGE.name}: {heading}", "exec"), names)
            except Exception as error:
                print(f"{title:34} FAILED: {type(error).__name__}: {error}")
                wrong += 1
                continue
            found = {name: cosines(names[name], own) for name, own in ours.items() if name in names}
            wrong += any(value < SAME for value in found.values())
            print(f"{title:34} {', '.join(f'{name} {value:.5f}' for name, value in found.items()) or 'ran'}")
        return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
