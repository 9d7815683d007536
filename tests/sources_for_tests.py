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
    if source.kind == "scored_pairs" and not is_mined(source):
        return [{"sentence1": text, "sentence2": f"other {text}", "score": 4.5} for text in texts]
    if source.kind == "texts":
        return [{"text": text} for text in texts]
    assert source.kind == "examples" or is_mined(source), source.kind
    return [{"query": f"which {text}?", "positive": text, "negative": f"not {text}"} for text in texts]


def is_mined(source: Source) -> bool:
    """Whether a source of the catalogue cannot be trained on as it is published: pairs without negatives."""
    pairs = source.path.startswith("catalog:") and source.kind == "scored_pairs"
    return pairs and not source.in_batch_negatives


def file_of(source: Source) -> str:
    """Where a source is read from, below the folder of the data; "" for a dataset of the hub."""
    if source.path.startswith("catalog:"):
        return f"data/{source.path.removeprefix('catalog:')}.jsonl.gz"
    return "" if source.path.startswith("hub:") else source.path


def write_sources(recipe: Recipe, folder: Path) -> None:
    """Write every file that the recipe names, and a prepared one for each entry of the catalogue."""
    for stage in recipe.stages:
        for source in stage.mix.sources:
            if not file_of(source):
                continue
            path = folder / file_of(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = rows_of(source)
            lines = [row["text"] for row in rows] if path.suffix == ".txt" else map(json.dumps, rows)
            content = "".join(f"{line}\n" for line in lines).encode()
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
