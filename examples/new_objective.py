"""A new objective: InfoNCE with a margin, by which the right answer must lead (arXiv 1902.08564).

The positive's similarity is lowered by the margin before the softmax, so that being just ahead of the others
is not enough. What is new is a class of settings, which recipes know by its `kind`, and a pure function from
a step's vectors to a loss per query. Data, candidates, GradCache, several ranks and exact resume are those of
every objective, and `kind: sum` takes it as a term.

    python examples/new_objective.py --steps 20 --out run-margin

Cost: half a minute. A recipe says `objective: {kind: margin}` once this is imported; docs/extending.md.
"""

import argparse
import json
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

import embedforge
from embedforge.recipe import parse_recipe
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


class Margin(PairObjective):
    """InfoNCE with an additive margin; settings of InfoNCE are inherited."""

    kind: Literal["margin"] = "margin"
    margin: Annotated[float, Field(ge=0)] = 0.3


@query_losses.register
def margin_losses(objective: Margin, step: StepVectors) -> torch.Tensor:
    """Return each query's loss, [Q]."""
    cosines = step.queries @ step.documents.T
    is_positive = torch.nn.functional.one_hot(step.positive, len(step.documents)).bool()
    logits = (cosines - objective.margin * is_positive) / objective.temperature
    logits = logits.masked_fill(~(step.candidates | is_positive), -torch.inf)
    return torch.nn.functional.cross_entropy(logits, step.positive, reduction="none")


def main() -> None:
    """Train on the pairs above, then see how far each right answer leads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("run-margin"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"query": query, "positives": [answer]}) for query, answer in PAIRS.items()]
    (asked.out / "pairs.jsonl").write_text("\n".join(rows))
    stage = {"name": "pairs", "steps": asked.steps, "batch_queries": len(PAIRS), "learning_rate": 1e-4}
    stage |= {"objective": {"kind": "margin", "temperature": 0.05}, "warmup_steps": 0}
    stage |= {"mix": {"sources": [{"path": "pairs.jsonl"}]}}
    values = {"name": "margin", "stages": [stage], "training": {"precision": "float32"}}
    values |= {"contract": {"default_instruction": ""}}
    folder = train(parse_recipe(values, __file__), asked.out, source_folder=asked.out, own_test=True)
    model = embedforge.load(str(folder))
    scores = model.similarity(model.encode_query([*PAIRS]), model.encode_document([*PAIRS.values()]))
    others = scores.masked_fill(torch.eye(len(PAIRS), dtype=torch.bool), -1).max(dim=1).values
    lead = scores.diagonal() - others
    print(f"{(lead > 0).float().mean():.0%} of the answers come first, by {lead.mean():.2f} on average")


if __name__ == "__main__":
    main()
