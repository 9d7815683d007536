"""What each part of forge-tiny gives, with seeds, on its development tasks: a table of docs/forge-tiny.md.

    python scripts/forge_tiny_table.py --data runs/forge/data --tasks runs/forge/dev --teacher MINILM \\
        --out runs/parts

Every row is a recipe of scripts/forge_tiny, an eighth of the shipped one, trained with several seeds by the
engine of `embedforge sweep`; "two runs merged" is the mean of the weights of a seed's run and the next one's.
Data and tasks are those of scripts/forge_tiny.sh. Run again to go on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from make_results import machine
from sections import replace_section
from tables import Variant, compared, evaluated, rows_of_sweep

from embedforge.evaluate.run import versions
from embedforge.prove.taught import with_teacher
from embedforge.recipe import load_recipe
from embedforge.sweep.grid import Cell, Judged
from embedforge.sweep.run import sweep
from embedforge.train.merge import merge

RECIPES = Path(__file__).parent / "forge_tiny"
VARIANTS = {  # the first is what the others are compared with
    "as-made": "as it is made, in small",
    "closed-form": "closed form, no training",
    "static": "distillation, no pairs",
    "spread-out": "and the spread-out term",
    "contrastive": "pairs without the teacher",
    "no-code": "no code",
}
MERGED = "two runs merged"


def main() -> None:
    """Train and score what is missing in --out, then rewrite the section of the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--teacher", required=True, help="all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path, default=Path("docs/forge-tiny.md"))
    args = parser.parse_args()

    cells = [cell_of(name, label, args.teacher) for name, label in VARIANTS.items()]
    sweep(cells, args.seeds, args.out / "sweep", judged=Judged(str(args.tasks)), source_folder=args.data)
    rows = rows_of_sweep(cells, args.seeds, args.out / "sweep")
    rows.append(Variant(MERGED, merged_in_turn(rows[0].models, args.out / "merged")))
    results, rows = evaluated(rows, args.tasks, args.out / "sweep" / "evaluation")
    tasks = sorted(results.tasks)
    lines = [f"{machine(versions())} {len(tasks)} development tasks, {args.seeds} seeds."]
    replace_section(args.page, "parts", "\n".join([*lines, "", *compared(results, rows, tasks)]))


def cell_of(name: str, label: str, teacher: str) -> Cell:
    """Return a variant, its teacher put in."""
    return Cell(label, with_teacher(load_recipe(str(RECIPES / f"{name}.yaml")), teacher))


def merged_in_turn(models: tuple[str, ...], out: Path) -> tuple[str, ...]:
    """Merge each model with the next one, the last with the first."""
    folders = [out / str(number) for number in range(len(models))]
    for number, folder in enumerate(folders):
        if not folder.exists():
            merge([models[number], models[(number + 1) % len(models)]], folder)
    return tuple(map(str, folders))


if __name__ == "__main__":
    main()
