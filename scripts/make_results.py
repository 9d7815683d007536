"""Make the tables of docs/results.md: train on the standard library, then compare before and after.

    python scripts/make_results.py --out runs/results
    python scripts/make_results.py --out runs/decoder --base embedforge:base --tasks FOLDER_OF_DATASETS

The first table of a base is that of `embedforge quickstart`, with several seeds; the second scores the
first seed's model on a folder of datasets (docs/evaluation.md), whose text it has never seen. Each table
stands between two comments of docs/results.md and only what is between them is replaced. Run again to go on
where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sections import replace_section

from embedforge.evaluate.run import evaluate
from embedforge.files import read_json
from embedforge.model.folder import BUNDLED, DEFAULT_MODEL
from embedforge.prove.run import quickstart

BM25 = "bm25"
MAX_TOKENS = 192
"""What the model of recipe `tiny` reads; the untrained base gets no more."""
Figures = dict[str, Any]


def main() -> None:
    """Run what is missing in --out, then rewrite the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--tasks", type=Path, help="folder of datasets; without it only the first table")
    parser.add_argument("--results", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--base", default=DEFAULT_MODEL, help=f"{DEFAULT_MODEL} or {BUNDLED}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    where = "" if args.base == DEFAULT_MODEL else f", {args.base}"

    runs = [args.out / f"stdlib-{seed}" for seed in args.seeds]
    reports = [
        quickstart(None, run, base=args.base, seed=seed) for run, seed in zip(runs, args.seeds, strict=True)
    ]
    replace_section(args.results, f"standard library{where}", stdlib_table(reports))
    if args.tasks is None:
        return
    model = str(runs[0] / "run" / "model")
    before = f"{BUNDLED}@mean" if args.base == BUNDLED else args.base
    evaluate([before, model, BM25], str(args.tasks), args.out / "open", max_tokens=MAX_TOKENS)
    results = read_json(args.out / "open" / "results.json")
    trained = next(label for label in results["mean"] if label.endswith("model"))
    systems = {"BM25": BM25, "base": before, "trained": trained}
    table = open_table(results, systems, "base", "trained")
    replace_section(args.results, f"open test sets{where}", table)


def stdlib_table(reports: Sequence[Figures]) -> str:
    """Return the quickstarts' figures as Markdown: means over the seeds, and from which to which seed."""
    lines = [
        f"{len(reports)} seeds; {span([report['questions']['all'] for report in reports], '{:,.0f}')} "
        f"held-out questions, {span([report['documents'] for report in reports], '{:,.0f}')} passages; "
        f"{span([report['details']['minutes'] for report in reports], '{:.1f}')} minutes in all, "
        f"{steps(reports)}. {machine(reports[0]['details']['versions'])}",
        "",
        "| | nDCG@10 | recall@10 | MRR@10 | clustering, V | trained minus this | beyond chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for system in ("BM25", *reports[0]["systems"]):
        metrics = [
            [row["values"][system]["mean"] for row in each]
            for each in zip(*map(measures, reports), strict=True)
        ]
        clusters = [report["clustering, v-measure"]["values"].get(system) for report in reports]
        cells = [span(values) for values in metrics]
        cells.append(span([value["mean"] for value in clusters]) if all(clusters) else "–")
        gains = [measures(report)[0]["trained minus"].get(system) for report in reports]
        cells.append(span([gain["difference"] for gain in gains], "{:+.3f}") if all(gains) else "")
        cells.append(f"{sum(gain['is_real'] for gain in gains)} of {len(gains)}" if all(gains) else "")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measures(report: Figures) -> list[Figures]:
    """Return a report's figures on all questions, metric by metric."""
    return list(report["retrieval"]["all"].values())


def steps(reports: Sequence[Figures]) -> str:
    """Return how many steps the stages took."""
    names = reports[0]["details"]["steps"]
    return ", ".join(
        f"{span([report['details']['steps'][name] for report in reports], '{:.0f}')} steps of stage {name}"
        for name in names
    )


def span(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Return the mean over seeds, and the lowest and highest."""
    mean = sum(values) / len(values)
    text = form.format(mean)
    return text if len(values) == 1 else f"{text} [{form.format(min(values))}, {form.format(max(values))}]"


def open_table(results: Figures, systems: Mapping[str, str], first: str, last: str) -> str:
    """Return an evaluation's figures as Markdown: a row a task, grouped by type, then means of types.

    Args:
        results: what `evaluate` has written.
        systems: its models, by what the table calls them.
        first: the one of these that the evaluation compared the others with.
        last: the one whose difference to it the table shows.
    """
    one, other = systems[first], systems[last]
    lines = [
        f"{len(results['tasks'])} test sets. {machine(results['versions'])}",
        "",
        "| type | test set | metric | " + " | ".join(systems) + f" | {last} minus {first} |",
        "|---|---|---|" + "---|" * (len(systems) + 1),
    ]
    for name, row in sorted(results["tasks"].items(), key=lambda item: (kind_of(item[1]), item[0])):
        metric = next(found["metric"] for found in row.values() if found)
        cells = [f"{row[key]['score']:.3f}" if row[key] else "–" for key in systems.values()]
        lines.append(
            f"| {kind_of(row)} | {name} | {metric} | {' | '.join(cells)} | "
            f"{difference(results['differences'][other].get(name))} |"
        )
    for kind, means in sorted(results["by_type"].items()):
        cells = [f"{means[key]:.3f}" if means[key] is not None else "–" for key in systems.values()]
        change = means[other] - means[one]
        lines.append(f"| **{kind}** | **mean** | | {' | '.join(cells)} | {change:+.3f} |")
    return "\n".join(lines)


def kind_of(row: dict[str, Figures | None]) -> str:
    """Return the type of a task from whatever model could do it."""
    return str(next(found["type"] for found in row.values() if found))


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


if __name__ == "__main__":
    main()
