"""The token table of forge-tiny under new decoder layers: what a longer training of it begins from.

    python scripts/forge_tiny_layers.py --layers 2 --out runs/forge/layers-base

The layers are of SmolLM2's shape and have no effect at first: their last products are zero. The map behind
the pooling is left to the recipe, scripts/forge_tiny/layers.yaml, whose ridge regression finds it anew.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from forge_tiny_finish import PACKAGED
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel

from embedforge.files import read_json, write_json
from embedforge.model.depth import without_effect

LOUDER = 8
"""By how much token vectors grow, which no norm sees: what new layers say at first is small beside them."""


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    for path in PACKAGED.glob("tokenizer*"):
        shutil.copy(path, args.out)
    settings = read_json(PACKAGED / "config.json") | {"num_hidden_layers": args.layers}
    write_json(args.out / "config.json", settings)
    torch.manual_seed(args.seed)
    decoder = LlamaModel(LlamaConfig(**settings)).bfloat16()
    for layer in decoder.layers:
        without_effect(layer)
    weights = decoder.state_dict() | load_file(PACKAGED / "model.safetensors")
    weights["embed_tokens.weight"] *= LOUDER
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    size = sum(weight.nbytes for weight in weights.values())
    print(f"{args.layers} layers, {size / 1e6:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
