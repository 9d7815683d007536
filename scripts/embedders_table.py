"""Score finished embedders on a folder of test sets, for a table between two marks of a page of docs/.

    python scripts/embedders_table.py "forge-tiny=embedforge:forge-tiny" "all-MiniLM-L6-v2=FOLDER" \\
        --tasks DATA/open --out runs/embedders --page docs/forge-tiny.md --section "open test sets"

BM25 stands beside them. The first is what the last is compared with. Run again to go on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from make_results import BM25, open_table
from sections import replace_section
from tables import link_tasks

from embedforge.evaluate.run import evaluate
from embedforge.files import read_json


def main() -> None:
    """Evaluate what is missing in --out, then rewrite the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--tasks", type=Path, required=True, help="folder of datasets")
    parser.add_argument("--only", nargs="+", metavar="KIND/NAME", help="these of its datasets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--section", required=True, help="name of the marks in the page")
    parser.add_argument("--dtype", help="of the weights; as saved by default")
    parser.add_argument("--max-tokens", type=int, help="of a text, for all models; their own by default")
    args = parser.parse_args()
    named = dict(item.split("=", 1) for item in args.models)
    tasks = args.tasks
    if args.only:
        tasks = link_tasks(args.out / "tasks", [args.tasks / name for name in args.only])
    results = evaluate(
        [*named.values(), BM25], str(tasks), args.out, dtype=args.dtype, max_tokens=args.max_tokens
    )
    labels = dict(zip(named, results.models, strict=False))
    first, *_, last = named
    table = open_table(read_json(args.out / "results.json"), {"BM25": BM25, **labels}, first, last)
    replace_section(args.page, args.section, table)


if __name__ == "__main__":
    main()
