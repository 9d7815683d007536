"""A new pooling: the mean over a text's last k tokens, between `last` (k = 1) and `mean` (all of them).

What is new is a class of settings without torch, which recipes know by its `kind`, and a module of the same
kind that does it. Masks, training, saving, goldens and loading are those of every pooling.

    python examples/new_pooling.py --steps 20 --out run-tail

Cost: half a minute on two cores. A recipe says `pooling: {kind: tail, k: 8}` once this module is imported;
who loads a saved model has to import it too, and is told so. docs/extending.md has the rest.
"""

import argparse
import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import embedforge
from embedforge.model.pooling import Pooler, average
from embedforge.recipe import parse_recipe
from embedforge.recipe.base import PositiveInt
from embedforge.recipe.model import Pooling
from embedforge.train.run import train

PAIRS = {
    "who painted the ceiling?": "Michelangelo painted the ceiling of the Sistine Chapel.",
    "how deep is the lake?": "Lake Baikal is 1,642 metres deep.",
    "when does ice melt?": "Water ice melts at zero degrees Celsius.",
}


class Tail(Pooling):
    """The mean over the last k pooled tokens, EOS among them."""

    kind: Literal["tail"] = "tail"
    k: PositiveInt = 4


class TailPooler(Pooler):
    """Its arguments after the hidden size are the settings above; it may have parameters of its own."""

    kind = "tail"

    def __init__(self, hidden_size: int, k: int = 4) -> None:
        super().__init__(hidden_size)
        self.k = k

    def forward(self, token_states: Tensor, pooling_mask: Tensor) -> Tensor:
        """Pool [texts, tokens, H] by a mask [texts, tokens] of 0/1 into [texts, H]."""
        mask = pooling_mask.bool()
        from_the_end = mask.flip(1).cumsum(dim=1).flip(1)  # 1 for the last pooled token
        tail = mask & (from_the_end <= self.k)
        return average(token_states, tail, tail)


def main() -> None:
    """Train on the pairs above, load what was saved, and find each answer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("run-tail"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"query": query, "positives": [answer]}) for query, answer in PAIRS.items()]
    (asked.out / "pairs.jsonl").write_text("\n".join(rows))
    stage = {"name": "pairs", "steps": asked.steps, "batch_queries": len(PAIRS), "learning_rate": 1e-4}
    stage |= {"warmup_steps": 0, "mix": {"sources": [{"path": "pairs.jsonl"}]}}
    values = {"name": "tail", "model": {"pooling": {"kind": "tail", "k": 8}}, "stages": [stage]}
    values |= {"contract": {"default_instruction": ""}, "training": {"precision": "float32"}}
    folder = train(parse_recipe(values, __file__), asked.out, source_folder=asked.out, own_test=True)
    model = embedforge.load(str(folder))
    scores = model.similarity(model.encode_query([*PAIRS]), model.encode_document([*PAIRS.values()]))
    found = (scores.argmax(dim=1) == torch.arange(len(PAIRS))).float().mean()
    print(f"{found:.0%} of the answers come first, by vectors of the last 8 tokens")


if __name__ == "__main__":
    main()
