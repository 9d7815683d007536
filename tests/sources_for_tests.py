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
    assert source.kind == "examples", source.kind
    return [{"query": f"which {text}?", "positive": text, "negative": f"not {text}"} for text in texts]


def write_sources(recipe: Recipe, folder: Path) -> None:
    """Write every file that the recipe names, below `folder`."""
    for stage in recipe.stages:
        for source in stage.mix.sources:
            path = folder / source.path
            path.parent.mkdir(parents=True, exist_ok=True)
            content = "".join(json.dumps(row) + "\n" for row in rows_of(source)).encode()
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
