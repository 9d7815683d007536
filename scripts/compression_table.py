"""NV-Embed's table of pruning in miniature: after pruning, after recovery, and with int8 weights.

    python scripts/compression_table.py MODEL --tasks FOLDER --texts texts.jsonl --page docs/compress.md

Writes the table between the page's marks, and OUT/table.json. Runs go on where they stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from embedforge.compress.weights import MODEL, PRUNED, RECOVERY, WeightSettings, compress_weights
from embedforge.curate.sources import sources_of
from embedforge.evaluate.run import evaluate
from embedforge.files import write_json, write_text
from embedforge.run_folder import facts

CRITERIA = ("magnitude", "wanda")
SPARSITIES = ("2:4", "4:8", "0.5")
MARKS = "<!-- compress-weights -->", "<!-- /compress-weights -->"


def main() -> None:
    arguments = parse()
    texts = tuple(sources_of(arguments.texts))
    folders: dict[tuple[str, str, str], Path] = {("none", "dense", "pruned"): Path(arguments.model)}
    rounded = arguments.out / "int8"
    compress_weights(arguments.model, rounded, WeightSettings(int8=True), arguments.device)
    folders["none", "dense", "int8"] = rounded / MODEL
    for how in CRITERIA:
        for sparsity in SPARSITIES:
            out = arguments.out / f"{how}-{sparsity.replace(':', 'of')}"
            settings = WeightSettings(
                prune=how,
                sparsity=sparsity,
                texts=texts,
                recover=arguments.steps,
                int8=True,
                batch=arguments.batch,
                learning_rate=arguments.learning_rate,
            )
            compress_weights(arguments.model, out, settings, arguments.device)
            folders[how, sparsity, "pruned"] = out / PRUNED
            folders[how, sparsity, "recovered"] = out / RECOVERY / "model"
            folders[how, sparsity, "int8"] = out / MODEL
    names = [str(folder) for folder in folders.values()]
    results = evaluate(names, arguments.tasks, arguments.out / "evaluation", device=arguments.device)
    means: dict[tuple[str, str, str], float] = {}
    for key, label in zip(folders, results.models, strict=True):
        scores = [results.score(label, task) for task in results.tasks]
        means[key] = sum(score or 0.0 for score in scores) / len(scores)
    named = {" ".join(key): mean for key, mean in means.items()}
    write_json(arguments.out / "table.json", {**facts(), "means": named})
    table = table_of(means, arguments, list(results.tasks))
    print(table)
    if arguments.page is not None:
        page = arguments.page.read_text(encoding="utf-8")
        before, rest = page.split(MARKS[0])
        write_text(arguments.page, f"{before}{MARKS[0]}\n{table}{MARKS[1]}{rest.split(MARKS[1])[1]}")


def table_of(
    means: dict[tuple[str, str, str], float], arguments: argparse.Namespace, tasks: list[str]
) -> str:
    lines = ["| criterion | sparsity | pruned | recovered | and int8 |", "|---|---|---|---|---|"]
    for how, sparsity in dict.fromkeys(key[:2] for key in means):
        cells = (means.get((how, sparsity, state)) for state in ("pruned", "recovered", "int8"))
        shown = " | ".join("–" if mean is None else f"{mean:.3f}" for mean in cells)
        lines.append(f"| {how} | {sparsity} | {shown} |")
    lines += [
        "",
        f"Mean main score of {', '.join(tasks)}; the first row is the model as it was. Recovery: "
        f"{arguments.steps} steps of {arguments.batch} texts, one seed. `scripts/compression_table.py`.",
    ]
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a folder that embedforge saved")
    parser.add_argument("--tasks", required=True, help="as for embedforge evaluate")
    parser.add_argument(
        "--texts", action="append", required=True, help="for wanda and recovery; may be repeated"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    parser.add_argument("--page", type=Path, help="docs/compress.md")
    parser.add_argument("--device")
    return parser.parse_args()


if __name__ == "__main__":
    main()
