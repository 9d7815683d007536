"""The last step of forge-tiny: its vectors turned so that their beginnings hold the most, into the package.

    python scripts/forge_tiny_finish.py runs/forge/c/model --texts runs/forge/texts/texts-009.jsonl

The map after the pooling is followed by a rotation onto the principal axes of the vectors of some texts,
folded into it. A rotation changes no cosine; the first 192 or 96 numbers are then the best that a linear
cut can be.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from embedforge.data.readers import read_records
from embedforge.files import read_json
from embedforge.model.encoder import embedding_model, load, save
from embedforge.recipe import load_recipe

ABOUT = """
## What it is, and of what

A static embedder for English text and Python code: token vectors that began as those of SmolLM2-135M
(Apache-2.0), distilled from all-MiniLM-L6-v2 (Apache-2.0). It does not see the order of words. Vectors can
be cut to 192 or 96 numbers.

Trained on English Wikipedia of 2015 (CC BY-SA 3.0), Project Gutenberg (public domain in the USA), PEPs,
Rust RFCs, Swift Evolution and EIPs (public domain, MIT, Apache-2.0, CC0), speeches of US presidents, and
train splits of SQuAD (CC BY-SA 4.0), MedQuAD (CC BY 4.0), banking77 (CC BY 4.0), CLINC150 (CC BY 3.0),
StackOverflow titles (CC BY-SA), Tatoeba (CC BY 2.0 FR) and the movie reviews of Pang and Lee (CC BY 4.0 as
NLTK states), and docstrings and code of 33 Python packages (Apache-2.0, MIT, BSD, matplotlib's own; they are
named in scripts/forge_tiny_code.py). How it is made and what it scores: docs/forge-tiny.md of embedforge.
"""
PACKAGED = Path(__file__).parents[1] / "src/embedforge/forge_tiny"


def main() -> None:
    """Rotate, compare, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PACKAGED)
    parser.add_argument("--sample", type=int, default=20_000)
    args = parser.parse_args()
    texts = [record.text("text") for record in islice(read_records(args.texts), args.sample)]
    st = load(args.model, device="cpu", dtype="float32")
    vectors = np.asarray(st.encode_document(texts), dtype=np.float64)
    shares, axes = np.linalg.eigh(vectors.T @ vectors)
    turn = torch.from_numpy(axes[:, ::-1].copy())
    model = embedding_model(st)
    assert model.projection is not None
    with torch.no_grad():
        weight, bias = model.projection.weight, model.projection.bias
        weight.copy_((turn.T @ weight.double()).float())
        bias.copy_((turn.T @ bias.double()).float())
    recipe = load_recipe("forge-tiny").model_dump(mode="json")
    taken = read_json(args.model / "recipe.json")["stages"]
    for stage, one in zip(recipe["stages"], taken, strict=True):
        assert stage["name"] == one["name"]
        stage["steps"] = one["steps"]
    save(model, args.out, recipe, dtype="bfloat16")
    with (args.out / "README.md").open("a", encoding="utf-8") as card:
        card.write(ABOUT)
    again = np.asarray(load(args.out, device="cpu", dtype="float32").encode_document(texts[:500]), np.float64)
    before, after = vectors[:500] @ vectors[:500].T, again @ again.T
    print(f"largest change of a cosine, in bfloat16: {np.abs(before - after).max():.4f}")
    for dims in (96, 192):
        print(f"share of the length in the first {dims}: {shares[::-1][:dims].sum() / shares.sum():.3f}")


if __name__ == "__main__":
    main()
