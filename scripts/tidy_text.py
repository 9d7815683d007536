"""Take white space off the ends of lines, and end each file with one newline; exit code 1 if a file changed.

For .pre-commit-config.yaml: python scripts/tidy_text.py FILE...
"""

from __future__ import annotations

import sys
from pathlib import Path


def tidied(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(lines).rstrip("\n") + "\n" if any(lines) else ""


if __name__ == "__main__":
    changed = []
    for name in sys.argv[1:]:
        path = Path(name)
        old = path.read_bytes().decode("utf-8")
        if (new := tidied(old)) != old:
            path.write_bytes(new.encode())
            changed.append(name)
            print(f"tidied {name}")
    sys.exit(bool(changed))
