"""Make the tables of docs/results.md: train on the standard library, then compare before and after.

    python scripts/make_results.py --out runs/results
    python scripts/make_results.py --out runs/results --tasks FOLDER_OF_DATASETS

The first table is that of `embedforge quickstart`; the second scores the model that it made on a folder of
datasets (docs/evaluation.md), whose text it has never seen. Each table stands between two comments of
docs/results.md and only what is between them is replaced. Run again to go on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from pathlib import Path
from typing import Any

import torch
from embedforge.quickstart.run import quickstart

from embedforge.evaluate.run import evaluate
from embedforge.files import read_json, write_text

BASE_MEAN, BM25 = "embedforge:base@mean", "bm25"
MAX_TOKENS = 192
"""What the model of recipe `tiny` reads; its untrained decoder gets no more."""
Figures = dict[str, Any]


def main() -> None:
    """Run what is missing in --out, then rewrite the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--tasks", type=Path, help="folder of datasets; without it only the first table")
    parser.add_argument("--results", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    run = args.out / f"stdlib-{args.seed}"
    if not (run / "report.json").exists():
        quickstart(None, run, seed=args.seed)
    replace_section(args.results, "standard library", stdlib_table(read_json(run / "report.json")))
    if args.tasks is None:
        return
    model = str(run / "run" / "model")
    evaluate([BASE_MEAN, model, BM25], str(args.tasks), args.out / "open", max_tokens=MAX_TOKENS)
    results = read_json(args.out / "open" / "results.json")
    trained = next(label for label in results["mean"] if label.endswith("model"))
    replace_section(args.results, "open test sets", open_table(results, trained))


def stdlib_table(report: Figures) -> str:
    """Return the quickstart's figures as Markdown."""
    details = report["details"]
    steps = ", ".join(f"{count} steps of stage {name}" for name, count in details["steps"].items())
    lines = [
        f"{report['queries']:,} held-out queries, {report['documents']:,} documents; {steps}; "
        f"{details['minutes']:.1f} minutes in all. {machine(details['versions'])}",
        "",
        "| | nDCG@10 | recall@10 | MRR@10 | clustering, V-measure | trained minus this, nDCG@10 |",
        "|---|---|---|---|---|---|",
    ]
    for system, metrics in report["retrieval"].items():
        gain = report["ndcg@10, trained minus"].get(system)
        cluster = report["clustering, v-measure"].get(system)
        cells = [*map(interval, metrics.values()), interval(cluster) if cluster else "–"]
        cells.append(f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if gain else "")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def open_table(results: Figures, trained: str) -> str:
    """Return an evaluation's figures as Markdown: a row a task, grouped by type, then means of types."""
    systems = {"BM25": BM25, "base, mean": BASE_MEAN, "trained": trained}
    lines = [
        f"{len(results['tasks'])} test sets. {machine(results['versions'])}",
        "",
        "| type | test set | metric | " + " | ".join(systems) + " | trained minus base, mean |",
        "|---|---|---|" + "---|" * (len(systems) + 1),
    ]
    for name, row in sorted(results["tasks"].items(), key=lambda item: (kind_of(item[1]), item[0])):
        metric = next(found["metric"] for found in row.values() if found)
        cells = [f"{row[key]['score']:.3f}" if row[key] else "–" for key in systems.values()]
        lines.append(
            f"| {kind_of(row)} | {name} | {metric} | {' | '.join(cells)} | "
            f"{difference(results['differences'][trained].get(name))} |"
        )
    for kind, means in sorted(results["by_type"].items()):
        cells = [f"{means[key]:.3f}" if means[key] is not None else "–" for key in systems.values()]
        change = means[trained] - means[BASE_MEAN]
        lines.append(f"| **{kind}** | **mean** | | {' | '.join(cells)} | {change:+.3f} |")
    return "\n".join(lines)


def kind_of(row: dict[str, Figures | None]) -> str:
    """Return the type of a task from whatever model could do it."""
    return str(next(found["type"] for found in row.values() if found))


def interval(figures: Figures) -> str:
    """Return a mean with its 95 % interval."""
    return f"{figures['mean']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}]"


def difference(test: Figures | None) -> str:
    """Return a paired difference, in brackets where it may be chance."""
    if test is None:
        return "not tested"
    text = f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]"
    return text if test["is_real"] else f"({text})"


def machine(versions: dict[str, str]) -> str:
    """Say when, on what and with which versions the figures were made."""
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    day = datetime.datetime.now(tz=datetime.UTC).date()
    place = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"Made on {day} ({place}; Python {platform.python_version()}, {packages})."


def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the comments `<!-- begin NAME -->` and `<!-- end NAME -->` of a file."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path}: it has no section '{begin}' ... '{end}' to write into")
    write_text(path, f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
