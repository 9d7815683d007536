"""The part of a page that a script writes."""

from __future__ import annotations

from pathlib import Path

from embedforge.files import write_text


def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the comments `<!-- begin NAME -->` and `<!-- end NAME -->` of a file."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path}: it has no section '{begin}' ... '{end}' to write into")
    write_text(path, f"{before}{begin}\n{text}\n{end}{after}")
