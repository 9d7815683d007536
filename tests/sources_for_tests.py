"""Small files for the sources of a recipe, each in the form that its kind asks for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from embedforge.recipe import Recipe, Source

ROWS = 66


def rows_of(source: Source) -> list[dict[str, object]]:
    """So many records of a source's kind that each gives one Example or two."""
    texts = [f"text {number} of many" for number in range(ROWS)]
    if source.kind in ("labels", "clusters"):
        return [{"text": text, "label": f"class_{number % 3}"} for number, text in enumerate(texts)]
    if source.kind == "scored_pairs":
        return [{"sentence1": text, "sentence2": f"other {text}", "score": 4.5} for text in texts]
    if source.kind == "texts":
        return [{"text": text} for text in texts]
    assert source.kind == "examples", source.kind
    return [{"query": f"which {text}?", "positive": text, "negative": f"not {text}"} for text in texts]


def is_file(source: Source) -> bool:
    """Whether a source is read from here: neither the hub's nor the catalogue's."""
    return not source.path.startswith(("hub:", "catalog:"))


def write_sources(recipe: Recipe, folder: Path) -> None:
    """Write every file that the recipe names, below `folder`; datasets of the hub are no files."""
    for stage in recipe.stages:
        for source in stage.mix.sources:
            if not is_file(source):
                continue
            path = folder / source.path
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = rows_of(source)
            lines = [row["text"] for row in rows] if path.suffix == ".txt" else map(json.dumps, rows)
            content = "".join(f"{line}\n" for line in lines).encode()
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
