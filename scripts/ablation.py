"""Make docs/ablation.md: NV-Embed's ablations (arXiv 2405.17428, Tables 2 to 5) and newer ones, in miniature.

    python scripts/ablation.py --open DATA/open --teacher MINILM --out runs/ablation

Every row is a recipe of scripts/ablation, trained with several seeds by the engine of `embedforge sweep`,
with two layers of SmolLM2-135M as decoder. Trained on train splits of DATA/open, with negatives of BM25,
and scored on test splits (docs/evaluation.md). Run again to go on where it stopped; with more --seeds only
what is new is trained.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from forge_tiny_texts import packed
from make_results import machine
from sections import replace_section
from tables import Variant, compared, evaluated, link_tasks, rows_of_sweep

from embedforge.data.readers import read_records
from embedforge.evaluate.run import Results, versions
from embedforge.files import write_jsonl
from embedforge.mine.keep import KeepRule
from embedforge.mine.pipeline import Selection
from embedforge.mine.run import mine
from embedforge.mine.settings import Teachers
from embedforge.prove.taught import distils, with_teacher
from embedforge.recipe import load_recipe, source_of
from embedforge.sweep.grid import Cell, Judged
from embedforge.sweep.run import sweep

RECIPES = Path(__file__).parent / "ablation"
RETRIEVAL = ("squad", "medquad", "techdoc_titles")
BLENDED = (
    "classification/banking77",
    "classification/clinc150",
    "clustering/stackoverflow_titles",
    "nli/mnli_taxi",
)
TASKS = (
    "retrieval/cranfield",
    "sts/stsb",
    "classification/trec_coarse",
)
MOST_PAIRS = 3000
"""Of a retrieval dataset."""
ATTENTION = ("bidirectional", "causal")
POOLINGS = {
    "latent": "",
    "mean": "{kind: mean}",
    "last": "{kind: last}",
    "self_attention": "{kind: self_attention, heads: 8, head_dim: 72}",
}
TWO_STAGES = "two-stages"
PAPER_POOLINGS = {  # of Table 2, after stage 1: the mean of 56 tasks
    ("bidirectional", "latent"): 64.18,
    ("bidirectional", "mean"): 64.00,
    ("bidirectional", "last"): 62.68,
    ("bidirectional", "self_attention"): 63.27,
    ("causal", "latent"): 63.39,
    ("causal", "mean"): 62.32,
    ("causal", "last"): 60.06,
    ("causal", "self_attention"): 63.11,
}
PAPER_STAGES = {
    TWO_STAGES: 72.31,
    "one-stage-in-batch": 70.83,
    "one-stage": 71.94,
    "reversed": 71.85,
}  # Table 4
PAPER_LABELS = {TWO_STAGES: 72.31, "labels": 70.82}  # Table 4
PAPER_LEARNED = {TWO_STAGES: 63.4, "distilled": 63.2, "both": 64.5}  # arXiv 2602.15547


def main() -> None:
    """Train and score what is missing in --out, then rewrite the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--open", type=Path, required=True, help="folder of datasets")
    parser.add_argument("--teacher", required=True, help="all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path, default=Path("docs/ablation.md"))
    parser.add_argument("--only-data", action="store_true", help="write OUT/data, train nothing")
    args = parser.parse_args()

    data = args.out / "data"
    write_data(args.open, data)
    if args.only_data:
        return
    tasks = link_tasks(args.out / "tasks", [args.open / task for task in TASKS])
    cells = list(cells_of(args.teacher))
    sweep(cells, args.seeds, args.out / "sweep", judged=Judged(tasks=str(tasks)), source_folder=data)
    rows = rows_of_sweep(cells, args.seeds, args.out / "sweep")
    results, rows = evaluated(rows, tasks, args.out / "sweep" / "evaluation")
    replace_section(args.page, "ablation", page(results, {row.name: row for row in rows}, args.seeds))


def write_data(root: Path, out: Path) -> None:
    """Write pairs with mined negatives, the labelled texts, and all of it as text for the vocabulary."""
    for name in RETRIEVAL:
        if not (out / f"{name}.jsonl").exists():
            source = source_of(str(root / "retrieval" / name), kind="retrieval", cap=MOST_PAIRS)
            selection = Selection(n_negatives=2, rule=KeepRule("top_k"))
            mine(source, out / "mined" / name, Teachers(("bm25",)), selection)
            shutil.copy(out / "mined" / name / "examples.jsonl", out / f"{name}.jsonl")
    for task in BLENDED:
        name = Path(task).name
        rows = [record.values for record in read_records(packed(root / task / "train.jsonl"))]
        write_jsonl(out / f"{name}.jsonl", rows)
    write_jsonl(out / "vocabulary.jsonl", ({"text": text} for text in texts_of(out)))


def texts_of(folder: Path) -> Iterator[str]:
    """Yield all texts of the training files."""
    for name in (*RETRIEVAL, *(Path(task).name for task in BLENDED)):
        for record in read_records(folder / f"{name}.jsonl"):
            for value in record.values.values():
                for item in value if isinstance(value, list) else [value]:
                    yield item["text"] if isinstance(item, dict) else str(item)


def cells_of(teacher: str) -> Iterator[Cell]:
    """Yield every variant; the first is the one that others are compared with."""
    for attention, (pooling, setting) in product(ATTENTION, POOLINGS.items()):
        changes = [f"contract.attention={attention}", *([f"model.pooling={setting}"] if setting else [])]
        yield Cell(f"{attention} {pooling}", load_recipe(str(RECIPES / f"{TWO_STAGES}.yaml"), changes))
    for path in sorted(RECIPES.glob("*.yaml")):
        if path.stem != TWO_STAGES:
            recipe = load_recipe(str(path))
            yield Cell(path.stem, with_teacher(recipe, teacher) if distils(recipe) else recipe)


def page(results: Results, rows: dict[str, Variant], seeds: int) -> str:
    """Return the tables as Markdown."""
    rows[TWO_STAGES] = replace(rows["bidirectional latent"], name=TWO_STAGES)
    tables: dict[str, dict[str, float | None]] = {
        "Attention and pooling": {" ".join(key): mean for key, mean in PAPER_POOLINGS.items()},
        "Stages and in-batch negatives": {**PAPER_STAGES},
        "Documents of classes": {**PAPER_LABELS},
        "What is learned": {**PAPER_LEARNED},
        "Merging": {TWO_STAGES: None, "merged": None},
    }
    lines = [f"{machine(versions())} {seeds} seeds."]
    for title, paper in tables.items():
        lines += ["", f"### {title}", "", *compared(results, [rows[name] for name in paper], TASKS, paper)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
