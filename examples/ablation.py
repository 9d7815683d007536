"""An ablation in a loop: one field of a recipe takes several values, everything else stays.

    python examples/ablation.py recipe.yaml model.pooling.kind mean last weighted_mean --tasks datasets

Trains the recipe once a value, evaluates all models on a folder of datasets (docs/evaluation.md), and prints
each score with its 95 % interval and its difference to the first value's. A difference whose interval holds
zero may be chance; try more than one --set seed=N before you believe a small one.

Cost: one training run and one evaluation a value; both go on where they stopped when it is started again.
`--set KEY=VALUE` changes a key for all runs: --set stages.retrieval.steps=100, say.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

import embedforge
from embedforge.evaluate.units import Units, compare, interval

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recipe", help="a file, or a shipped recipe by name")
parser.add_argument("field", help="which key to vary")
parser.add_argument("values", nargs="+")
parser.add_argument("--tasks", type=Path, required=True)
parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
parser.add_argument("--out", type=Path, default=Path("ablation"))
args = parser.parse_args()

models = []
for value in args.values:
    recipe = embedforge.load_recipe(args.recipe, [*args.set, f"{args.field}={value}"])
    folder = args.out / f"{args.field}={value}"
    models.append(embedforge.train(recipe, folder, source_folder=Path(args.recipe).parent, resume=True))

results = embedforge.evaluate(models, args.tasks, args.out / "evaluation")

for task, row in results.tasks.items():
    table = Table("value", "score", "95 % interval", "difference", "95 % interval", title=task)
    first = None
    for value, label in zip(args.values, results.models, strict=True):
        units = Units.from_json(row[label]["units"])
        if units is None:  # the metric is no mean over queries or texts, so there is no interval
            table.add_row(value, f"{row[label]['score']:.3f}")
            continue
        score = interval(units)
        cells = [value, f"{score.mean:.3f}", f"{score.low:.3f} to {score.high:.3f}"]
        if first is None:
            first = units
        else:
            test = compare(first, units)
            mark = "" if test.is_real else ", may be chance"
            cells += [f"{test.difference:+.3f}", f"{test.low:+.3f} to {test.high:+.3f}{mark}"]
        table.add_row(*cells)
    Console().print(table)
print(f"All figures: {args.out / 'evaluation' / 'report.html'}")
