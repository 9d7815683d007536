"""A new objective: InfoNCE on the whole vector and on its beginnings too (Matryoshka, arXiv 2205.13147).

The model's vectors can then be cut short and still rank: an index of a quarter of the size. What is new is a
class of settings, which recipes know by its `kind`, and a pure function from a step's vectors to a loss per
query. Data, candidates, GradCache, several ranks and exact resume are those of every objective.

    python examples/new_objective.py --steps 20 --out run-matryoshka

Cost: half a minute. A recipe says `objective: {kind: matryoshka}` once this is imported; docs/extending.md.
"""

import argparse
import json
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import normalize

import embedforge
from embedforge.objectives.contrastive import info_nce
from embedforge.recipe import parse_recipe
from embedforge.recipe.base import PositiveInt
from embedforge.recipe.objectives import PairObjective
from embedforge.train.contrastive import StepVectors, query_losses
from embedforge.train.run import train

PAIRS = {
    "who painted the ceiling?": "Michelangelo painted the ceiling of the Sistine Chapel.",
    "how deep is the lake?": "Lake Baikal is 1,642 metres deep.",
    "what do bees make?": "Bees turn nectar into honey.",
    "when does ice melt?": "Water ice melts at zero degrees Celsius.",
    "who wrote the ninth symphony?": "Beethoven wrote his ninth symphony when he was deaf.",
    "why is the sky blue?": "Air scatters short wavelengths of sunlight more than long ones.",
}


class Matryoshka(PairObjective):
    """InfoNCE at several widths, the whole vector among them; settings of InfoNCE are inherited."""

    kind: Literal["matryoshka"] = "matryoshka"
    widths: tuple[PositiveInt, ...] = (96, 192)


@query_losses.register
def matryoshka_losses(objective: Matryoshka, step: StepVectors) -> torch.Tensor:
    """Return each query's loss, [Q]: the mean over the widths."""
    losses = []
    for width in (*objective.widths, step.queries.shape[1]):
        queries, documents = (normalize(side[:, :width], dim=-1) for side in (step.queries, step.documents))
        losses.append(info_nce(queries, documents, step.positive, step.candidates, objective.temperature))
    return torch.stack(losses).mean(dim=0)


def main() -> None:
    """Train on the pairs above, then find each answer with whole vectors and with a quarter of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("run-matryoshka"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"query": query, "positives": [answer]}) for query, answer in PAIRS.items()]
    (asked.out / "pairs.jsonl").write_text("\n".join(rows))
    stage = {"name": "pairs", "steps": asked.steps, "batch_queries": len(PAIRS), "learning_rate": 1e-4}
    stage |= {"objective": {"kind": "matryoshka", "temperature": 0.05}, "warmup_steps": 0}
    stage |= {"mix": {"sources": [{"path": "pairs.jsonl"}]}}
    values = {"name": "matryoshka", "stages": [stage], "training": {"precision": "float32"}}
    values |= {"contract": {"default_instruction": ""}}
    folder = train(parse_recipe(values, __file__), asked.out, source_folder=asked.out, own_test=True)
    model = embedforge.load(str(folder))
    queries, answers = model.encode_query([*PAIRS]), model.encode_document([*PAIRS.values()])
    for width in (queries.shape[1], 96):
        scores = model.similarity(queries[:, :width], answers[:, :width])
        found = (scores.argmax(dim=1) == torch.arange(len(PAIRS))).float().mean()
        print(f"{width} dimensions: {found:.0%} of the answers come first")


if __name__ == "__main__":
    main()
